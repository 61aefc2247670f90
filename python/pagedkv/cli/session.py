"""What every command does around its work: load with signs of life, print as text comes, sum up."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from typing import TYPE_CHECKING

from pagedkv.cli.options import engine_arguments

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from pagedkv.llm import LLM, TokenStream
    from pagedkv.outputs import RequestOutput
    from pagedkv.stats import EngineStats

_BAR_WIDTH = 24


@contextlib.contextmanager
def open_llm(options: argparse.Namespace, model: str) -> Iterator[LLM]:
    """Loads the model, and closes it in the end; says on stderr what takes so long."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    # The engine's own lines are the signs of life; those of the libraries below are not asked for.
    level = logging.WARNING if options.quiet else logging.INFO
    logging.getLogger("pagedkv").setLevel(logging.DEBUG if options.verbose else level)
    if not options.quiet:
        print(f"loading {model} ...", file=sys.stderr, flush=True)
    started = time.monotonic()
    # The libraries below take seconds to import: after the line that says so, and counted.
    from pagedkv.llm import LLM

    with LLM(model, **engine_arguments(options)) as llm:
        if not options.quiet:
            loaded = llm.llm_engine.parts.loaded
            print(
                f"{loaded.model_type} in {str(loaded.dtype).removeprefix('torch.')} on {loaded.device}, "
                f"ready after {time.monotonic() - started:.1f} s",
                file=sys.stderr,
            )
        yield llm


def print_stream(stream: TokenStream) -> RequestOutput | None:
    """Prints a stream's text as it appears; None if it was interrupted."""
    with stream:
        for delta in stream:
            print(delta.text, end="", flush=True)
            if delta.error is not None:
                print(f"\n[failed: {delta.error}]", file=sys.stderr)
    print(flush=True)
    return stream.output


def print_summary(stats: EngineStats, outputs: list[RequestOutput]) -> None:
    """Prints how the KV cache was used, on stderr."""
    print(format_summary(stats, outputs), file=sys.stderr)


def format_summary(stats: EngineStats, outputs: list[RequestOutput]) -> str:
    """A compact table: blocks, slots, sharing, cached tokens, times.

    Args:
        stats: of the engine.
        outputs: of the requests it ran.
    """

    def figure(name: str) -> float:
        return float(stats.get(name) or 0)

    blocks, peak = figure("num_blocks"), figure("peak_used_blocks")
    size = int(figure("block_size"))
    lines = [
        ("blocks", f"{peak:,.0f} of {blocks:,.0f} used at the most, {size} tokens each"),
        ("slots", f"{_bar(figure('mean_slot_use'))} of the held slots hold a token"),
        (
            "sharing",
            (
                f"{_bar(figure('mean_sharing'))} of the blocks saved; "
                f"{figure('num_forks'):,.0f} forks, {figure('num_cow_copies'):,.0f} copies on write"
            ),
        ),
        (
            "prefix cache",
            (
                f"{figure('num_cached_prompt_tokens'):,.0f} of {figure('num_prompt_tokens'):,.0f} "
                "prompt tokens reused"
            ),
        ),
        ("preemptions", f"{figure('num_preemptions'):,.0f}"),
        ("first token", _milliseconds(outputs)),
        (
            "speed",
            f"{figure('num_generated_tokens'):,.0f} tokens at {figure('tokens_per_second'):,.0f} tokens/s",
        ),
    ]
    width = max(len(name) for name, _ in lines)
    body = "\n".join(f"  {name:<{width}}  {text}" for name, text in lines)
    return f"\nKV cache\n{body}"


def _bar(share: float) -> str:
    filled = round(share * _BAR_WIDTH)
    return f"[{'#' * filled}{'.' * (_BAR_WIDTH - filled)}] {share:6.1%}"


def _milliseconds(outputs: list[RequestOutput]) -> str:
    times = [
        seconds for output in outputs if (seconds := output.metrics.time_to_first_token) is not None
    ]
    if not times:
        return "-"
    mean = f"{1000 * sum(times) / len(times):,.0f} ms"
    return mean if len(times) == 1 else f"{mean} (mean of {len(times)})"
