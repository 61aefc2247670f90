"""Sampling: the kernel of pagedkv beside sorts in torch, by the shape of the logits.

    python benches/sampling.py --threads 2

`sorted top-p` is top_p as it is usually written: sort, softmax, running sum, mask, scatter, draw with exponential noise.
`twin` is pagedkv's own reference in torch, equal in ids. All are timed in turns; medians.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable

for _name, _value in {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}.items():
    os.environ.setdefault(_name, _value)

import numpy as np  # noqa: E402  (the settings above come first)
import torch  # noqa: E402

from pagedkv import SamplingParams, _core  # noqa: E402
from pagedkv.sampling.cpu_choice import choose_on_cpu  # noqa: E402
from pagedkv.sampling.rows import SamplingRows  # noqa: E402
from pagedkv.sampling.targets import SampleTargets  # noqa: E402
from pagedkv.sampling.torch_choice import choose_with_torch  # noqa: E402

TEMPERATURE, TOP_P = 0.8, 0.95


def main() -> int:
    """Prints a table."""
    parser = argparse.ArgumentParser(description="the sampler beside sorts in torch")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--vocabulary", type=int, default=128_000)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    _core.set_num_threads(arguments.threads)
    sys.stdout.write(
        f"{arguments.rows} rows x {arguments.vocabulary} tokens, temperature {TEMPERATURE}, "
        f"top_p {TOP_P}, {arguments.threads} threads, {_core.cpu_isa()}\n\n"
        "| logits | kept tokens | pagedkv ms | twin ms | sorted top-p ms | twin / pagedkv "
        "| sorted / pagedkv |\n" + "|---" * 7 + "|\n"
    )
    generator = torch.Generator().manual_seed(0)
    shape = (arguments.rows, arguments.vocabulary)
    for name, scale in (("normal, deviation 1", 1.0), ("deviation 3", 3.0), ("deviation 5", 5.0)):
        logits = torch.randn(shape, generator=generator) * scale
        ours, twin, plain = compare(logits, rounds=arguments.rounds)
        kept = (sorted_top_p(logits) > -torch.inf).sum(dim=1).double().mean()
        sys.stdout.write(
            f"| {name} | {kept:.0f} | {1e3 * ours:.1f} | {1e3 * twin:.0f} | {1e3 * plain:.0f} "
            f"| {twin / ours:.1f} | {plain / ours:.1f} |\n"
        )
    return 0


@torch.inference_mode()
def compare(logits: torch.Tensor, *, rounds: int) -> tuple[float, float, float]:
    """Median seconds of the kernel, of its twin and of the sort, in turns."""
    count = logits.shape[0]
    parameters = SamplingRows(max_num_seqs=count, vocab_size=logits.shape[1])
    for row in range(count):
        parameters.fill(row, SamplingParams(temperature=TEMPERATURE, top_p=TOP_P), seed=row)
    where = SampleTargets(
        rows=np.arange(count, dtype=np.int32),
        sample_index=np.zeros(count, dtype=np.int32),
        positions=np.zeros(count, dtype=np.int32),
    )
    times: tuple[list[float], ...] = ([], [], [])
    runs: tuple[Callable[[], object], ...] = (
        lambda: choose_on_cpu(logits, None, parameters, where, mode="raw_logprobs"),
        lambda: choose_with_torch(logits, None, parameters, where, mode="raw_logprobs"),
        lambda: draw(sorted_top_p(logits), logits),
    )
    for _ in range(rounds):
        for run, seconds in zip(runs, times, strict=True):
            seconds.append(timed(run))
    ours, twin, plain = (statistics.median(seconds) for seconds in times)
    return ours, twin, plain


def sorted_top_p(logits: torch.Tensor) -> torch.Tensor:
    """Scaled logits with what is outside the nucleus at -inf."""
    scaled = logits / TEMPERATURE
    values, ids = scaled.sort(dim=-1, descending=False)
    is_out = values.softmax(dim=-1).cumsum(dim=-1) <= 1 - TOP_P
    is_out[:, -1] = False
    return scaled.scatter(-1, ids, values.masked_fill(is_out, -torch.inf))


def draw(scaled: torch.Tensor, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and their log-probabilities."""
    probabilities = scaled.softmax(dim=-1)
    tokens = probabilities.div_(torch.empty_like(probabilities).exponential_(1)).argmax(dim=-1)
    return tokens, logits.log_softmax(dim=-1).gather(-1, tokens.unsqueeze(-1))


def timed(run: Callable[[], object]) -> float:
    """Seconds that it takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
