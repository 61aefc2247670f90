"""What an engine is told once, at the start."""

from __future__ import annotations

from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from pagedkv.errors import not_supported_yet, unknown_parameter
from pagedkv.generation_defaults import check_generation_config
from pagedkv.reasoning_config import ReasoningConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import torch

BLOCK_SIZES = (8, 16, 32, 64, 128, 256)
LogprobsMode: TypeAlias = Literal[
    "raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits"
]
SCHEDULING_POLICIES = ("fcfs", "priority")
MAX_NUM_SEQS_LIMIT = 65_536
MAX_THREADS = 1024
MAX_SWAP_SPACE = 1 << 20
MAX_BATCHED_TOKENS_LIMIT = 1 << 22

# Arguments of the classic API that have no effect yet, with the values that ask for nothing.
_NOT_YET: dict[str, tuple[object, ...]] = {
    "compilation_config": (None,),
    "cpu_offload_gb": (0,),
    "data_parallel_size": (1,),
    "enable_lora": (False, None),
    "hf_overrides": (None, {}),
    "kv_cache_dtype": ("auto",),
    "logits_processors": (None, []),
    "max_lora_rank": (None, 16),
    "num_gpu_blocks_override": (None,),
    "pipeline_parallel_size": (1,),
    "quantization": (None,),
    "sliding_window": (None,),
    "speculative_config": (None,),
    "speculative_model": (None,),
    "task": (None, "auto", "generate"),
    "tensor_parallel_size": (1,),
    "tokenizer_mode": (None, "auto"),
}
# Arguments of the classic API whose every value leaves results as they are: accepted.
_WITHOUT_EFFECT = frozenset(
    {
        "disable_custom_all_reduce",
        "disable_log_stats",
        "enable_chunked_prefill",
        "enforce_eager",
        "max_context_len_to_capture",
        "max_seq_len_to_capture",
        "use_v2_block_manager",
    }
)
_ALIASES = {"kv_cache_memory": "kv_cache_memory_bytes"}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """The settings of an engine, checked.

    Attributes:
        model: a folder, a hub id, or "demo" for the bundled model.
        tokenizer: folder or hub id of the tokenizer; None for the model's own.
        skip_tokenizer_init: work on token ids alone.
        revision: branch, tag or commit of a hub id.
        dtype: of weights, keys and values; "auto" for the checkpoint's own.
        device: "auto" takes a GPU where there is one.
        attention_backend: "auto", "cpu" or "torch".
        num_threads: threads of the model's work on a CPU, torch's and the kernels'; None for as many as torch takes, which is
            OMP_NUM_THREADS or the physical cores.
        cpu_kernels: on a CPU, compute linear layers, norms, rotary embeddings and activations in kernels of pagedkv; False
            leaves them to torch.
        trust_remote_code: run Python code that the model brings.
        fuse_projections: run projections of the same tensor, such as query, key and value, as one matrix product; "auto"
            for those that gain by it and give the same bits.
        latent_kv_cache: cache the latents of models with latent attention (the DeepSeek family) rather than keys and
            values expanded from them, which take many times the memory.
        max_model_len: the longest context in tokens; None for all the model is made for.
        block_size: tokens per KV block.
        kv_cache_memory_bytes: memory of the KV cache; None sizes it from what there is.
        swap_space: GiB of the host that preempted requests move their keys and values to, where that costs less than
            computing them again; None for 4 with a GPU and 0 on a CPU.
        gpu_memory_utilization: share of the GPU's memory that weights and KV cache may take.
        max_num_seqs: sequences that run at once.
        max_num_batched_tokens: tokens of one step; None chooses by device.
        max_num_waiting: requests that may wait; one more is refused.
        enable_prefix_caching: find the blocks of equal prompt prefixes again.
        scheduling_policy: "fcfs" or "priority" (lower values first).
        max_logprobs: the most ``SamplingParams.logprobs`` a request may ask for; -1 for the whole vocabulary.
        logprobs_mode: what is reported as log-probabilities: "raw_logprobs" or "raw_logits" of the model,
            "processed_logprobs" or "processed_logits" behind everything the request does to them. Nothing is done to those of
            prompts.
        seed: seed of the requests that bring none.
        chat_template: a Jinja template instead of the model's own.
        generation_config: sampling of calls that bring none: "auto" for what the checkpoint's author set, "neutral" for
            the defaults of `SamplingParams`, or a folder with another generation_config.json.
        reasoning_config: what begins and ends a model's thinking, which `SamplingParams.thinking_token_budget` needs: a
            `ReasoningConfig` or a dict of its fields.
        override_generation_config: single values above those, by the names of generation_config.json.

    Raises:
        TypeError: a value of the wrong type.
        ValueError: a value out of range.
    """

    model: str | Path
    tokenizer: str | Path | None = None
    skip_tokenizer_init: bool = False
    revision: str | None = None
    dtype: str | torch.dtype = "auto"
    device: str | torch.device = "auto"
    attention_backend: str = "auto"
    num_threads: int | None = None
    cpu_kernels: bool = True
    trust_remote_code: bool = False
    fuse_projections: bool | Literal["auto"] = "auto"
    latent_kv_cache: bool = True
    max_model_len: int | None = None
    block_size: int = 16
    kv_cache_memory_bytes: int | None = None
    swap_space: float | None = None
    gpu_memory_utilization: float = 0.9
    max_num_seqs: int = 256
    max_num_batched_tokens: int | None = None
    max_num_waiting: int = 1_000_000
    enable_prefix_caching: bool = True
    scheduling_policy: str = "fcfs"
    max_logprobs: int = 20
    logprobs_mode: LogprobsMode = "raw_logprobs"
    seed: int = 0
    chat_template: str | None = None
    generation_config: str | Path = "auto"
    override_generation_config: Mapping[str, Any] | None = None
    reasoning_config: ReasoningConfig | Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Checks every field that can be checked without the model."""
        self._check_types()
        if not str(self.model):
            msg = "model must be a folder, a hub id or 'demo', got an empty string"
            raise ValueError(msg)
        if self.block_size not in BLOCK_SIZES:
            known = ", ".join(map(str, BLOCK_SIZES))
            msg = f"block_size must be one of {known}, got {self.block_size}"
            raise ValueError(msg)
        _check_choice("scheduling_policy", self.scheduling_policy, SCHEDULING_POLICIES)
        _check_choice("logprobs_mode", self.logprobs_mode, get_args(LogprobsMode))
        if not 0.0 < self.gpu_memory_utilization <= 1.0:
            msg = f"gpu_memory_utilization must be in (0, 1], got {self.gpu_memory_utilization}"
            raise ValueError(msg)
        if self.swap_space is not None and not 0.0 <= self.swap_space <= MAX_SWAP_SPACE:
            msg = f"swap_space must be from 0 to {MAX_SWAP_SPACE} GiB, got {self.swap_space}"
            raise ValueError(msg)
        _check_range("max_model_len", self.max_model_len, low=2, high=1 << 30)
        _check_range("kv_cache_memory_bytes", self.kv_cache_memory_bytes, low=1, high=1 << 50)
        _check_range("num_threads", self.num_threads, low=1, high=MAX_THREADS)
        _check_range("max_num_seqs", self.max_num_seqs, low=1, high=MAX_NUM_SEQS_LIMIT)
        _check_range("max_num_waiting", self.max_num_waiting, low=1, high=1 << 31)
        _check_range("max_logprobs", self.max_logprobs, low=-1, high=1 << 20)
        _check_range("seed", self.seed, low=-(2**63), high=2**64 - 1)
        batched = self.max_num_batched_tokens
        _check_range("max_num_batched_tokens", batched, low=1, high=MAX_BATCHED_TOKENS_LIMIT)
        if batched is not None and batched < self.max_num_seqs:
            msg = (
                f"max_num_batched_tokens ({batched}) must be at least max_num_seqs "
                f"({self.max_num_seqs}), so that every running sequence gets a token; raise the "
                "first or lower the second"
            )
            raise ValueError(msg)
        check_generation_config(self.generation_config, self.override_generation_config)
        if self.reasoning_config is not None:
            reasoning = ReasoningConfig.of(self.reasoning_config)
            object.__setattr__(self, "reasoning_config", reasoning)

    @classmethod
    def from_arguments(cls, model: str | Path, arguments: Mapping[str, Any]) -> EngineConfig:
        """Builds a configuration from keyword arguments, the classic API's among them.

        Raises:
            UnknownParameterError: an argument that does not exist.
            TypeError: a value of the wrong type.
            ValueError: a value out of range, or one that has no effect yet.
        """
        known = {field.name for field in fields(cls)}
        accepted: dict[str, Any] = {}
        owner = "LLM"
        for given_name, value in arguments.items():
            name = _ALIASES.get(given_name, given_name)
            if name in known:
                if name in accepted:
                    msg = f"{name} and its alias {given_name} were both given; keep one"
                    raise ValueError(msg)
                accepted[name] = value
            elif name in _NOT_YET:
                if not any(type(value) is type(v) and value == v for v in _NOT_YET[name]):
                    raise not_supported_yet(owner, name, value)
            elif name not in _WITHOUT_EFFECT:
                names = [*known, *_NOT_YET, *_WITHOUT_EFFECT, *_ALIASES]
                raise unknown_parameter(owner, name, names)
        if accepted.get("seed", 0) is None:
            accepted["seed"] = 0
        return cls(model=model, **accepted)

    def _check_types(self) -> None:
        for wanted, is_right, names in _TYPES:
            for name in names:
                value = getattr(self, name)
                if not is_right(value):
                    msg = f"{name} must be {wanted}, got {value!r}"
                    raise TypeError(msg)


def _is_int(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_path(value: object) -> bool:
    return isinstance(value, str) or hasattr(value, "__fspath__")


_TYPES: tuple[tuple[str, Callable[[object], bool], tuple[str, ...]], ...] = (
    (
        "True or False",
        lambda value: isinstance(value, bool),
        (
            "skip_tokenizer_init",
            "cpu_kernels",
            "trust_remote_code",
            "enable_prefix_caching",
            "latent_kv_cache",
        ),
    ),
    (
        "True, False or 'auto'",
        lambda value: isinstance(value, bool) or value == "auto",
        ("fuse_projections",),
    ),
    (
        "an int",
        _is_int,
        ("block_size", "max_num_seqs", "max_num_waiting", "max_logprobs", "seed"),
    ),
    (
        "an int or None",
        lambda value: value is None or _is_int(value),
        ("max_model_len", "kv_cache_memory_bytes", "max_num_batched_tokens", "num_threads"),
    ),
    (
        "a number",
        lambda value: isinstance(value, Real) and not isinstance(value, bool),
        ("gpu_memory_utilization",),
    ),
    (
        "a number or None",
        lambda value: value is None or (isinstance(value, Real) and not isinstance(value, bool)),
        ("swap_space",),
    ),
    (
        "a str",
        lambda value: isinstance(value, str),
        ("attention_backend", "scheduling_policy", "logprobs_mode"),
    ),
    (
        "a str or None",
        lambda value: value is None or isinstance(value, str),
        ("revision", "chat_template"),
    ),
    ("a folder, a hub id or 'demo'", _is_path, ("model",)),
    ("'auto', 'neutral' or a folder", _is_path, ("generation_config",)),
    (
        "a dict or None",
        lambda value: value is None or isinstance(value, dict),
        ("override_generation_config",),
    ),
    (
        "a folder, a hub id or None",
        lambda value: value is None or _is_path(value),
        ("tokenizer",),
    ),
)


def _check_range(name: str, value: int | None, *, low: int, high: int) -> None:
    if value is not None and not low <= value <= high:
        msg = f"{name} must be from {low} to {high}, got {value}"
        raise ValueError(msg)


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        msg = f"{name} must be {' or '.join(map(repr, known))}, got {value!r}"
        raise ValueError(msg)
