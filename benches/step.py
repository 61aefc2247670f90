"""What one decode step costs through the bindings, beside the same loop in Rust alone.

    python benches/step.py [--num-steps 300] [--rounds 3]

One step is `schedule` (plan and fill the arrays) and `update`; no model runs. The Rust figure comes from
rust/core/examples/step_cost.rs (needs cargo). Both are medians over steps; of several rounds, taken in turns, the
smallest counts. With thousands of sequences most of the difference is not the bindings: called inside a Python process,
the Rust loop itself was as much slower. Build the extension in release mode first (`make setup`).
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from pagedkv._core import Scheduler, StepBuffers

ROOT = Path(__file__).resolve().parents[1]
NUM_SEQS = (1, 64, 256, 1024, 4096)
BLOCK_SIZE = 16
PROMPT_LEN = 16
MAX_MODEL_LEN = 4096
NUM_WARM_UP_STEPS = 32


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="cost of a decode step through the bindings")
    parser.add_argument("--num-steps", type=int, default=300, help="steps per round")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    rust = build_rust()
    print(f"{'sequences':>9} {'us/step':>9} {'Rust':>9} {'more':>7} {'us/sequence':>12}")
    for num_seqs in NUM_SEQS:
        python_figures, rust_figures = [], []
        for _ in range(arguments.rounds):
            python_figures.append(measure(num_seqs, num_steps=arguments.num_steps))
            if rust is not None:
                command = [rust, str(num_seqs), str(arguments.num_steps)]
                rust_figures.append(float(subprocess.check_output(command, text=True)))
        python_us, rust_us = min(python_figures), min(rust_figures, default=float("nan"))
        more, each = python_us - rust_us, python_us / num_seqs
        print(f"{num_seqs:>9} {python_us:>9.1f} {rust_us:>9.1f} {more:>7.1f} {each:>12.3f}")


def build_rust() -> Path | None:
    """The Rust loop as a program; None without cargo."""
    cargo = shutil.which("cargo")
    if cargo is None:
        print("cargo not found: no Rust figures", file=sys.stderr)
        return None
    target = ["--release", "--package", "pagedkv-core", "--example", "step_cost"]
    subprocess.run([cargo, "build", "--quiet", *target], cwd=ROOT, check=True)
    return ROOT / "target" / "release" / "examples" / "step_cost"


def measure(num_seqs: int, *, num_steps: int) -> float:
    """Median microseconds of a step in which `num_seqs` sequences decode one token each."""
    num_tokens = PROMPT_LEN + BLOCK_SIZE + NUM_WARM_UP_STEPS + num_steps + 1
    scheduler = Scheduler(
        num_blocks=num_seqs * (-(-num_tokens // BLOCK_SIZE) + 1) + 1,
        block_size=BLOCK_SIZE,
        kv_groups=[("full", 0)],
        max_num_seqs=num_seqs,
        max_num_batched_tokens=max(num_seqs, 2048),
        max_model_len=MAX_MODEL_LEN,
        max_num_waiting=num_seqs,
    )
    for request_id in range(num_seqs):
        # Prompts differ, so that nothing is shared, and so do their lengths, so that every step completes as many blocks.
        last = request_id + PROMPT_LEN + request_id % BLOCK_SIZE
        prompt = np.arange(request_id, last, dtype=np.int32)
        scheduler.add_request(request_id, prompt, max_tokens=num_tokens)
    buffers = allocate(scheduler.sizes)
    token_ids = np.full(num_seqs, 5, dtype=np.int32)
    logprobs = np.zeros(num_seqs, dtype=np.float32)
    durations: list[int] = []
    num_warm = 0
    while len(durations) < num_steps:
        started = time.perf_counter_ns()
        batch = scheduler.schedule(buffers)
        assert batch is not None, "sequences are longer"
        num_samples = batch.num_samples
        scheduler.update(batch, token_ids[:num_samples], logprobs[:num_samples])
        duration = time.perf_counter_ns() - started
        if batch.num_tokens == num_seqs:
            num_warm += 1
        if num_warm > NUM_WARM_UP_STEPS:
            durations.append(duration)
    return statistics.median(durations) / 1000


def allocate(sizes: dict[str, int]) -> StepBuffers:
    """The step arrays that a scheduler needs."""
    rows, tokens, groups = sizes["num_rows"], sizes["num_tokens"], sizes["num_groups"]

    def zeros(*shape: int) -> np.ndarray:
        return np.zeros(shape, dtype=np.int32)

    return StepBuffers(
        row_ids=zeros(rows),
        query_start_loc=zeros(rows + 1),
        seq_lens=zeros(rows),
        input_ids=zeros(tokens),
        input_source=zeros(tokens),
        positions=zeros(tokens),
        block_tables=zeros(groups, rows, sizes["blocks_per_row"]),
        table_updates=zeros(sizes["num_table_updates"], 4),
        row_forks=zeros(2 * rows, 2),
        logits_indices=zeros(rows),
        sample_rows=zeros(rows),
        sample_index=zeros(rows),
        sample_positions=zeros(rows),
        num_candidates=zeros(rows),
        block_copies=zeros(sizes["num_block_copies"], 3),
        swap_out=zeros(0, 3),
        swap_in=zeros(0, 3),
        slot_mapping=np.zeros((groups, tokens), dtype=np.int64),
        row_fills=np.zeros((2 * rows, 3), dtype=np.int64),
    )


if __name__ == "__main__":
    main()
