"""Workload files for benches/throughput.py: token-id prompts and output lengths, deterministic in the seed.

    python benches/workloads.py mixed --n 64 --seed 0 -o mixed.json

A file is `{"name", "seed", "requests": [{"prompt_token_ids": [...], "max_tokens": n}, ...]}`. Ids are
below 8000, so every model of benches/make_model.py can run every workload. `sharegpt` and `alpaca`
draw log-normal lengths with the means of figure 11 of the PagedAttention paper (arXiv 2309.06180).
"""

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import TypedDict

FIRST_ID, LAST_ID = 3, 7999
SHARED_PREFIX_LEN = 500


class WorkloadRequest(TypedDict):
    """One request: its prompt and the exact number of tokens it generates."""

    prompt_token_ids: list[int]
    max_tokens: int


class Workload(TypedDict):
    """The content of a workload file."""

    name: str
    seed: int
    requests: list[WorkloadRequest]


def main() -> None:
    """Writes one workload file."""
    parser = argparse.ArgumentParser(description="writes a workload file")
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("--n", type=int, default=64, help="number of requests")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--out", type=Path, help="the file; standard output if left out")
    arguments = parser.parse_args()
    workload = build(arguments.kind, num_requests=arguments.n, seed=arguments.seed)
    text = json.dumps(workload)
    if arguments.out is None:
        sys.stdout.write(text + "\n")
        return
    arguments.out.write_text(text)
    num_inputs, num_outputs = num_tokens(workload)
    sys.stdout.write(
        f"{arguments.out}: {arguments.n} requests, {num_inputs} prompt tokens, "
        f"{num_outputs} output tokens\n"
    )


def build(kind: str, *, num_requests: int, seed: int) -> Workload:
    """Returns the workload; the same arguments give the same numbers.

    Raises:
        ValueError: if the kind is not one of `KINDS`.
    """
    if kind not in KINDS:
        message = f"kind must be one of {', '.join(sorted(KINDS))}, got {kind!r}"
        raise ValueError(message)
    rng = Random(seed)
    # Drawn for every kind, so that the numbers of a kind do not depend on whether it uses the prefix.
    prefix = token_ids(rng, SHARED_PREFIX_LEN)
    requests = [KINDS[kind](rng, prefix) for _ in range(num_requests)]
    return {"name": f"{kind}-{num_requests}", "seed": seed, "requests": requests}


def load(path: Path) -> Workload:
    """Reads a workload file."""
    workload: Workload = json.loads(path.read_text())
    return workload


def num_tokens(workload: Workload) -> tuple[int, int]:
    """Returns the prompt tokens and the output tokens of all requests."""
    requests = workload["requests"]
    return (
        sum(len(request["prompt_token_ids"]) for request in requests),
        sum(request["max_tokens"] for request in requests),
    )


def mixed(rng: Random, _prefix: list[int]) -> WorkloadRequest:
    """Prompts of 16 to 255 tokens, outputs of 16 to 127."""
    prompt = token_ids(rng, rng.randrange(16, 256))
    return {"prompt_token_ids": prompt, "max_tokens": rng.randrange(16, 128)}


def sharegpt(rng: Random, _prefix: list[int]) -> WorkloadRequest:
    """Chats: 161 tokens in and 338 out on average, widely spread."""
    prompt = token_ids(rng, lognormal(rng, mean=161, sigma=1.1, low=4, high=1024))
    return {
        "prompt_token_ids": prompt,
        "max_tokens": lognormal(rng, mean=338, sigma=0.9, low=4, high=1024),
    }


def alpaca(rng: Random, _prefix: list[int]) -> WorkloadRequest:
    """Short instructions: 19 tokens in and 58 out on average."""
    prompt = token_ids(rng, lognormal(rng, mean=19, sigma=0.6, low=3, high=256))
    return {
        "prompt_token_ids": prompt,
        "max_tokens": lognormal(rng, mean=58, sigma=0.9, low=2, high=512),
    }


def shared_prefix(rng: Random, prefix: list[int]) -> WorkloadRequest:
    """One prefix of 500 tokens before 100 own ones, 32 out."""
    return {"prompt_token_ids": prefix + token_ids(rng, 100), "max_tokens": 32}


def decode_heavy(rng: Random, _prefix: list[int]) -> WorkloadRequest:
    """16 tokens in, 256 out."""
    return {"prompt_token_ids": token_ids(rng, 16), "max_tokens": 256}


def lognormal(rng: Random, *, mean: float, sigma: float, low: int, high: int) -> int:
    """Returns a whole number from the log-normal distribution of this mean, cut to [low, high]."""
    mu = math.log(mean) - sigma * sigma / 2
    return max(low, min(high, round(rng.lognormvariate(mu, sigma))))


def token_ids(rng: Random, num_ids: int) -> list[int]:
    """Returns random ids that every bench model has and that are not special."""
    return [rng.randrange(FIRST_ID, LAST_ID + 1) for _ in range(num_ids)]


KINDS: dict[str, Callable[[Random, list[int]], WorkloadRequest]] = {
    "mixed": mixed,
    "sharegpt": sharegpt,
    "alpaca": alpaca,
    "shared-prefix": shared_prefix,
    "decode-heavy": decode_heavy,
}


if __name__ == "__main__":
    main()
