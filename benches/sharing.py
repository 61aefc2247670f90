"""What sharing saves in memory, by the paper's formula, beside the closed form of the trace. No model: only the core runs.

    python benches/sharing.py

The saving is (blocks without sharing - blocks) / blocks without sharing, summed over steps (PagedAttention, arXiv
2309.06180, section 6.3), with blocks of 16 tokens and no prefix cache. The closed form holds every full and partial block
of a prompt once and gives each sample its own blocks behind it; beams share what their common ancestors wrote, which is
counted from the beams' tokens themselves.
"""

import argparse
import sys

import numpy as np
import workloads

from pagedkv import _core
from pagedkv.step_buffers import StepArena

BLOCK_SIZE = 16
# The paper's savings for 2, 4 and 6 samples or beams.
PAPER = {
    ("alpaca", "samples"): "6.1 to 9.8 %",
    ("alpaca", "beams"): "37.6 to 55.2 %",
    ("sharegpt", "samples"): "16.2 to 30.5 %",
    ("sharegpt", "beams"): "44.3 to 66.3 %",
}


def main() -> int:
    """Prints a table of savings, and the use of slots under load."""
    parser = argparse.ArgumentParser(description="memory saved by sharing")
    parser.add_argument("--n", type=int, default=24, help="requests of each trace")
    arguments = parser.parse_args()
    write(
        "| lengths | kind | n | saved | closed form | the paper, n = 2 to 6 |\n" + "|---" * 6 + "|"
    )
    for kind in ("alpaca", "sharegpt"):
        requests = workloads.build(kind, num_requests=arguments.n, seed=0)["requests"]
        for is_beam in (False, True):
            name = "beams" if is_beam else "samples"
            for n in (2, 4, 6):
                run = Run(max_num_seqs=n * arguments.n)
                for request in requests:
                    run.add(request, n=n, is_beam=is_beam)
                run.finish()
                saved = float(run.scheduler.stats()["mean_sharing"])
                paper = PAPER[kind, name]
                write(f"| {kind} | {name} | {n} | {saved:.1%} | {run.closed_form:.1%} | {paper} |")
    run = Run(max_num_seqs=64)
    for request in workloads.build("sharegpt", num_requests=4 * arguments.n, seed=0)["requests"]:
        run.add(request, n=1, is_beam=False)
    run.finish()
    use = float(run.scheduler.stats()["mean_slot_use"])
    write(f"\nslots of running sequences that hold tokens, ShareGPT-like lengths: {use:.1%}")
    return 0


class Run:
    """Requests through the scheduler, answered at random, and their blocks counted from their tokens."""

    def __init__(self, *, max_num_seqs: int) -> None:
        """An idle scheduler with room for everything."""
        self.scheduler = _core.Scheduler(
            num_blocks=max_num_seqs * 140,
            block_size=BLOCK_SIZE,
            kv_groups=[("full", 0)],
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max(65_536, max_num_seqs),
            max_model_len=2_304,
            enable_prefix_caching=False,
        )
        self.arena = StepArena(self.scheduler.sizes)
        self.random = np.random.default_rng(0)
        self.requests: dict[int, tuple[workloads.WorkloadRequest, int, bool]] = {}
        self.num_references = self.num_blocks = 0

    @property
    def closed_form(self) -> float:
        """The saving that the tokens themselves allow."""
        return 1 - self.num_blocks / self.num_references

    def add(self, request: workloads.WorkloadRequest, *, n: int, is_beam: bool) -> None:
        """Queues a request of n samples or beams."""
        core_id = len(self.requests)
        beams = _core.BeamOptions(num_returned=n, early_stopping="never") if is_beam else None
        self.scheduler.add_request(
            core_id,
            request["prompt_token_ids"],
            n=n,
            max_tokens=request["max_tokens"],
            beams=beams,
        )
        self.requests[core_id] = (request, n, is_beam)

    def finish(self) -> None:
        """Runs to the end."""
        live = set(self.requests)
        outputs = {core_id: self.outputs(core_id) for core_id in live}
        while (batch := self.scheduler.schedule(self.arena.buffers)) is not None:
            for core_id in live:
                self.count(core_id, outputs[core_id])
            shape = (batch.num_samples, max(batch.num_candidates, 1))
            token_ids = self.random.integers(3, 8000, shape).astype(np.int32)
            logprobs = -np.sort(self.random.exponential(2.0, shape).astype(np.float32), axis=1)
            output = self.scheduler.update(batch, token_ids, logprobs)
            for core_id in output.finished:
                self.scheduler.take_output(core_id)
                live.discard(core_id)
            outputs = {core_id: self.outputs(core_id) for core_id in live}

    def outputs(self, core_id: int) -> list[tuple[int, ...]]:
        """The tokens that each sequence of a request has generated; a search begins with one."""
        _, n, _ = self.requests[core_id]
        return [tuple(self.scheduler.output_token_ids(core_id, i).tolist()) for i in range(n)]

    def count(self, core_id: int, outputs: list[tuple[int, ...]]) -> None:
        """Adds the blocks of a request in a step, from its tokens alone: distinct pasts up to the end of a block."""
        request, _, is_beam = self.requests[core_id]
        prompt_len = len(request["prompt_token_ids"])
        length = max(len(output) for output in outputs)
        beams = [output for output in outputs if len(output) == length]
        if length == 0:
            # The prompt runs: all samples refer to it, a search has one beam.
            beams = beams[:1] if is_beam else beams
            columns = -(-prompt_len // BLOCK_SIZE)
            self.num_references += columns * len(beams)
            self.num_blocks += columns
            return
        columns = -(-(prompt_len + length) // BLOCK_SIZE)
        self.num_references += columns * len(beams)
        for column in range(columns):
            end = (column + 1) * BLOCK_SIZE - prompt_len
            self.num_blocks += len({beam[:end] for beam in beams}) if end > 0 else 1


def write(line: str) -> None:
    """A line, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
