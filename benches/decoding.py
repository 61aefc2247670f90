"""Decoding modes beside what they replace: beam search, n samples of one prompt, constrained output. Ratios of one run.

    python benches/make_model.py target/bench/llama-32m --size 32m
    python benches/decoding.py --model target/bench/llama-32m --threads 2

- beams: hypotheses' tokens per second (prompts x width x tokens / time) beside transformers' ``generate(num_beams)``,
  which keeps the same beams, in turns;
- siblings: n samples of one prompt with prefix caching off, beside n requests of their own with no cache;
- grammar: 32 rows under a JSON schema beside the same rows without, tokens per second.

What sharing saves in memory needs no model: benches/sharing.py. The sampler alone: benches/sampling.py.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

for _name, _value in {
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
    "HF_HUB_OFFLINE": "1",
}.items():
    os.environ.setdefault(_name, _value)

import torch  # noqa: E402  (the settings above come first)
from transformers import AutoModelForCausalLM  # noqa: E402
from workloads import token_ids  # noqa: E402

from pagedkv import LLM, SamplingParams  # noqa: E402

NUM_PROMPTS, PROMPT_LEN, NUM_TOKENS = 8, 64, 64
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name", "age", "tags"],
}


def main() -> int:
    """Prints the tables that are asked for."""
    parser = argparse.ArgumentParser(description="decoding modes beside what they replace")
    parser.add_argument("--model", required=True)
    parser.add_argument("--widths", default="4,16,64", help="of beams; empty for none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", choices=["beams", "siblings", "grammar"])
    parser.add_argument(
        "--alone",
        action="store_true",
        help="beams without transformers in the process, to be compared with another engine's",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    options = {"dtype": "float32", "num_threads": arguments.threads}
    if arguments.only in (None, "beams"):
        widths = [int(width) for width in arguments.widths.split(",") if width]
        theirs = None if arguments.alone else arguments.model
        bench_beams(arguments.model, widths, rounds=arguments.rounds, options=options, peer=theirs)
    if arguments.only in (None, "siblings"):
        bench_siblings(arguments.model, rounds=arguments.rounds, options=options)
    if arguments.only in (None, "grammar"):
        bench_grammar(rounds=arguments.rounds, options=options)
    return 0


def bench_beams(
    model: str, widths: list[int], *, rounds: int, options: dict[str, Any], peer: str | None
) -> None:
    """Beam tokens per second, ours and, with a model to load, transformers'."""
    rng = Random(1)
    prompts = [token_ids(rng, PROMPT_LEN) for _ in range(NUM_PROMPTS)]
    theirs = None if peer is None else reference(peer, torch.tensor(prompts))
    write("| width | pagedkv | transformers | ratio | steps | tokens run |\n" + "|---" * 6 + "|")
    for width in widths:
        rows = NUM_PROMPTS * width
        params = SamplingParams(
            use_beam_search=True, n=width, best_of=width, max_tokens=NUM_TOKENS, ignore_eos=True
        )
        budget = max(rows, NUM_PROMPTS * PROMPT_LEN)
        with LLM(
            model,
            skip_tokenizer_init=True,
            max_num_seqs=rows,
            max_num_batched_tokens=budget,
            max_model_len=256,
            **options,
        ) as llm:
            llm.generate([[5, 6, 7]], SamplingParams(max_tokens=2), use_tqdm=False)

            def ours(llm: LLM = llm, params: SamplingParams = params) -> None:
                llm.reset_prefix_cache()
                llm.generate(prompts, params, use_tqdm=False)

            before = llm.stats()
            other_run = (lambda: None) if theirs is None else partial(theirs, width)
            own, other = in_turns(ours, other_run, rounds=rounds)
            after = llm.stats()
        num_tokens = NUM_PROMPTS * width * NUM_TOKENS
        steps, run = (
            (int(after[name] or 0) - int(before[name] or 0)) / rounds
            for name in ("num_steps", "num_scheduled_tokens")
        )
        rates = [f"{num_tokens / statistics.median(times):.0f}" for times in (own, other)]
        ratio = f"{statistics.median(b / a for a, b in zip(own, other, strict=True)):.2f}"
        if theirs is None:
            rates[1] = ratio = "-"
        write(f"| {width} | {rates[0]} | {rates[1]} | {ratio} | {steps:.0f} | {run:.0f} |")


def reference(model: str, inputs: torch.Tensor) -> Callable[[int], None]:
    """A function that searches with so many beams in transformers."""
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()

    def search(width: int) -> None:
        with torch.inference_mode():
            loaded.generate(
                inputs,
                num_beams=width,
                num_return_sequences=width,
                max_new_tokens=NUM_TOKENS,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=2,
            )

    return search


def bench_siblings(model: str, *, rounds: int, options: dict[str, Any]) -> None:
    """Eight samples of one prompt beside eight requests; nothing is found in a prefix cache."""
    rng = Random(2)
    prompts = [token_ids(rng, 512) for _ in range(4)]
    shared = {"max_tokens": 16, "ignore_eos": True, "temperature": 1.0}
    with LLM(
        model, skip_tokenizer_init=True, enable_prefix_caching=False, max_num_seqs=64, **options
    ) as llm:

        def siblings() -> None:
            llm.generate(prompts, SamplingParams(n=8, seed=1, **shared), use_tqdm=False)

        def strangers() -> None:
            params = [SamplingParams(seed=seed, **shared) for _ in prompts for seed in range(8)]
            repeated = [prompt for prompt in prompts for _ in range(8)]
            llm.generate(repeated, params, use_tqdm=False)

        before = int(llm.stats()["num_scheduled_tokens"] or 0)
        siblings()
        num_run = int(llm.stats()["num_scheduled_tokens"] or 0) - before
        own, other = in_turns(siblings, strangers, rounds=rounds)
    ratio = statistics.median(b / a for a, b in zip(own, other, strict=True))
    once = 4 * 512 + 4 * 8 * 15
    write(f"\nn = 8, 512-token prompts, 16 new tokens, no cache: {ratio:.2f}x eight requests; ")
    write(f"{num_run} tokens run, {once} with every prompt once")


def bench_grammar(*, rounds: int, options: dict[str, Any]) -> None:
    """The bundled model's 32 rows with and without a schema, until as many tokens are out."""
    rng = Random(3)
    prompts = [[rng.randrange(3, 1000) for _ in range(32)] for _ in range(32)]
    with LLM("demo", max_num_seqs=32, **options) as llm:

        def rate(**arguments: Any) -> float:
            params = SamplingParams(temperature=1.0, seed=1, max_tokens=64, **arguments)
            started = time.perf_counter()
            outputs = llm.generate(prompts, params, use_tqdm=False)
            seconds = time.perf_counter() - started
            return sum(len(o.outputs[0].token_ids) for o in outputs) / seconds

        rate(structured_outputs={"json": SCHEMA})
        pairs = [
            (rate(structured_outputs={"json": SCHEMA}, min_tokens=0), rate(ignore_eos=True))
            for _ in range(rounds)
        ]
    cost = statistics.median(1 - bound / free for bound, free in pairs)
    bound, free = (statistics.median(numbers) for numbers in zip(*pairs, strict=True))
    write(f"\nJSON schema, 32 rows: {bound:.0f} tokens/s, without {free:.0f}; costs {cost:.0%}")


def in_turns(
    first: Callable[[], None], second: Callable[[], None], *, rounds: int
) -> tuple[list[float], list[float]]:
    """Seconds of both, one after the other, round by round."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for run, seconds in zip((first, second), times, strict=True):
            started = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - started)
    return times


def write(line: str) -> None:
    """A line, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
