"""Linear layers: the kernel of pagedkv beside torch's, by number of rows.

    python benches/linear.py --threads 2
    python benches/linear.py --outputs 4096 --inputs 4096 --dtype bfloat16

Weights are many enough to stay out of the caches, as in a model. Both are timed in turns; medians.
The floor for few rows is reading the weights: `GB/s` beside the bandwidth of a plain sum.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable

for _name, _value in {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}.items():
    os.environ.setdefault(_name, _value)

import torch  # noqa: E402  (the settings above come first)
from torch.nn import functional  # noqa: E402

from pagedkv import _core  # noqa: E402
from pagedkv.models.linear import linear  # noqa: E402
from pagedkv.models.packed_weight import PackedWeight  # noqa: E402

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
# Bytes of the weights of one measurement: several times what last-level caches hold.
COLD_BYTES = 128 << 20


def main() -> int:
    """Prints a table."""
    parser = argparse.ArgumentParser(description="linear layers beside torch")
    parser.add_argument("--outputs", type=int, default=1376)
    parser.add_argument("--inputs", type=int, default=512)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    _core.set_num_threads(arguments.threads)
    dtype: torch.dtype = getattr(torch, arguments.dtype)
    size = arguments.outputs * arguments.inputs * dtype.itemsize
    count = max(1, COLD_BYTES // size)
    weights = [torch.randn(arguments.outputs, arguments.inputs).to(dtype) for _ in range(count)]
    numbers = torch.ones(COLD_BYTES // 4)
    bandwidth = COLD_BYTES / min(timed(numbers.sum) for _ in range(arguments.rounds))
    sys.stdout.write(f"plain read: {bandwidth / 1e9:.1f} GB/s\n\n")
    sys.stdout.write(
        "| rows | pagedkv ms | torch ms | ratio | GB/s | GFLOP/s |\n" + "|---" * 6 + "|\n"
    )
    with torch.inference_mode():
        for rows in ROWS:
            hidden = torch.randn(rows, arguments.inputs).to(dtype)
            mine, other = compare(hidden, weights, rounds=arguments.rounds)
            flops = 2 * rows * arguments.outputs * arguments.inputs
            sys.stdout.write(
                f"| {rows} | {1e3 * mine:.3f} | {1e3 * other:.3f} | {other / mine:.2f} "
                f"| {size / mine / 1e9:.1f} | {flops / mine / 1e9:.0f} |\n"
            )
    return 0


def compare(
    hidden: torch.Tensor, weights: list[torch.Tensor], *, rounds: int
) -> tuple[float, float]:
    """Median seconds per product: ours and torch's, in turns."""
    ours, theirs = [], []
    packed = [PackedWeight.pack(weight) for weight in weights]
    for _ in range(rounds):
        ours.append(timed(lambda: [linear(hidden, weight) for weight in packed]))
        theirs.append(timed(lambda: [functional.linear(hidden, weight) for weight in weights]))
    return statistics.median(ours) / len(weights), statistics.median(theirs) / len(weights)


def timed(run: Callable[[], object]) -> float:
    """Seconds that it takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
