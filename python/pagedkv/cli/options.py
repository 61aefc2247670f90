"""Options that the commands share, and what they mean to the engine."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pagedkv.sampling_params import SamplingParams

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

# Flag, the field it sets, type, meaning.
_SAMPLING = (
    ("--n", "n", int, "continuations per prompt; they share the prompt's blocks"),
    ("--temperature", "temperature", float, "0 takes the most likely token"),
    ("--top-p", "top_p", float, "keep the most likely tokens up to this probability"),
    ("--top-k", "top_k", int, "keep this many most likely tokens"),
    ("--min-p", "min_p", float, "keep tokens this likely relative to the best"),
    ("--seed", "seed", int, "the same seed gives the same text"),
    ("--min-tokens", "min_tokens", int, "tokens before the model may end"),
    ("--presence-penalty", "presence_penalty", float, "against tokens already generated"),
    ("--frequency-penalty", "frequency_penalty", float, "the same, per occurrence"),
    ("--repetition-penalty", "repetition_penalty", float, "the same, as a factor"),
)
_ENGINE = (
    ("--tokenizer", "tokenizer", str, "folder or hub id of the tokenizer"),
    ("--revision", "revision", str, "branch, tag or commit of a hub id"),
    ("--dtype", "dtype", str, "auto, float32, bfloat16 or float16"),
    ("--device", "device", str, "auto, cpu, cuda or cuda:N"),
    ("--num-threads", "num_threads", int, "threads on a CPU; as many as torch takes if left out"),
    ("--attention-backend", "attention_backend", str, "auto, cpu or torch"),
    ("--max-model-len", "max_model_len", int, "the longest context in tokens"),
    ("--block-size", "block_size", int, "tokens per KV block"),
    ("--max-num-seqs", "max_num_seqs", int, "sequences that run at once"),
    ("--max-num-batched-tokens", "max_num_batched_tokens", int, "tokens per step"),
    ("--gpu-memory-utilization", "gpu_memory_utilization", float, "share of the GPU's memory"),
)


def add_sampling_options(command: argparse.ArgumentParser, *, max_tokens: int) -> None:
    """Adds the flags of `SamplingParams`."""
    group = command.add_argument_group("sampling")
    group.add_argument(
        "--max-tokens", type=int, default=max_tokens, help=f"default {max_tokens}", metavar="N"
    )
    group.add_argument(
        "--stop", action="append", metavar="TEXT", help="end at this text; may be given again"
    )
    group.add_argument("--ignore-eos", action="store_true", help="go on after the model's end")
    _add(group, _SAMPLING)


def add_engine_options(command: argparse.ArgumentParser) -> None:
    """Adds the flags of `EngineConfig`."""
    group = command.add_argument_group("engine")
    _add(group, _ENGINE)
    group.add_argument(
        "--kv-cache-memory",
        type=parse_bytes,
        metavar="BYTES",
        help="memory of the KV cache, such as 512M or 8G",
    )
    group.add_argument("--no-prefix-caching", action="store_true", help="compute every prompt anew")
    group.add_argument(
        "--trust-remote-code", action="store_true", help="run Python code that the model brings"
    )
    group.add_argument(
        "--fuse-projections",
        choices=("auto", "on", "off"),
        default="auto",
        help="one matrix product for query, key and value; auto where it pays",
    )
    group.add_argument(
        "--no-latent-kv-cache",
        action="store_true",
        help="cache expanded keys and values of latent attention",
    )
    group.add_argument(
        "--no-cpu-kernels", action="store_true", help="leave linear layers and norms to torch"
    )
    group.add_argument("--verbose", action="store_true", help="log what the engine does")


def sampling_params(options: argparse.Namespace, defaults: Mapping[str, Any]) -> SamplingParams:
    """The sampling parameters that the flags ask for.

    Args:
        options: the flags.
        defaults: fields that the checkpoint's author set; flags win.

    Raises:
        ValueError: a value out of range.
    """
    from pagedkv.sampling_params import SamplingParams

    # A terminal shows one continuation best when it is neither dull nor wild.
    fields = {"temperature": 0.8} | dict(defaults) | _given(options, _SAMPLING)
    fields["max_tokens"] = options.max_tokens
    return SamplingParams(stop=options.stop, ignore_eos=options.ignore_eos, **fields)


def engine_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """The engine's arguments that the flags ask for, the model left out."""
    arguments = _given(options, _ENGINE)
    if options.kv_cache_memory is not None:
        arguments["kv_cache_memory_bytes"] = options.kv_cache_memory
    if options.no_prefix_caching:
        arguments["enable_prefix_caching"] = False
    if options.fuse_projections != "auto":
        arguments["fuse_projections"] = options.fuse_projections == "on"
    if options.no_latent_kv_cache:
        arguments["latent_kv_cache"] = False
    if options.no_cpu_kernels:
        arguments["cpu_kernels"] = False
    if options.trust_remote_code:
        arguments["trust_remote_code"] = True
    return arguments


def parse_bytes(text: str) -> int:
    """A number of bytes, with or without K, M, G or T (powers of 1024).

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    number = text.strip().upper().removesuffix("IB").removesuffix("B")
    unit = number[-1:] if number[-1:].isalpha() else ""
    try:
        return int(float(number.removesuffix(unit)) * _UNITS[unit])
    except (KeyError, ValueError, OverflowError):
        msg = f"{text!r} is no number of bytes; write 512M or 8G"
        raise argparse.ArgumentTypeError(msg) from None


def _add(group: argparse._ArgumentGroup, table: Any) -> None:
    for flag, name, kind, meaning in table:
        metavar = {int: "N", float: "X", str: "NAME"}[kind]
        group.add_argument(flag, dest=name, type=kind, metavar=metavar, help=meaning)


def _given(options: argparse.Namespace, table: Any) -> dict[str, Any]:
    values = {name: getattr(options, name) for _, name, _, _ in table}
    return {name: value for name, value in values.items() if value is not None}
