"""Seconds to the first token and memory at idle: pagedkv beside plain transformers.

    python benches/startup.py --rounds 5
    python benches/startup.py --model target/bench/llama-32m --dtype float32

A run is a process of its own: import, load, and for pagedkv the first token of a prompt, for
transformers one forward pass over the same prompt. Rounds are interleaved. Time counts from the
first line of the program, so that the interpreter's own start is left out on both sides; memory
(resident and private, from the kernel) is read when the token is there. The KV cache is reserved,
not touched: pages of it that were never written are in no figure but `KV pool`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()
PROMPT = list(range(5, 21))
# What the issue of this bench allows above transformers' own start, in seconds.
ALLOWED_EXTRA_S = 0.5


def main() -> int:
    """Runs a leg in this process, or all rounds in processes of their own."""
    parser = argparse.ArgumentParser(description="time to the first token, memory at idle")
    parser.add_argument("--leg", choices=sorted(LEGS), help="run one leg here (used by the bench)")
    parser.add_argument("--model", default="demo", help="a folder; the bundled model if left out")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.leg is not None:
        sys.stdout.write(json.dumps(LEGS[arguments.leg](arguments)) + "\n")
        return 0
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in LEGS}
    for _ in range(arguments.rounds):
        for name, lines in runs.items():
            lines.append(run_leg(name, arguments))
    sys.stdout.write(report(runs))
    return 0


def run_leg(name: str, arguments: argparse.Namespace) -> dict[str, float]:
    """One run in a process of its own."""
    command = [
        sys.executable, __file__, "--leg", name,
        "--model", arguments.model, "--dtype", arguments.dtype,
    ]  # fmt: skip
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "0",
    }
    finished = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    line: dict[str, float] = json.loads(finished.stdout.splitlines()[-1])
    return line


def run_pagedkv(arguments: argparse.Namespace) -> dict[str, float]:
    """Import, engine, one generated token."""
    from pagedkv import LLM, SamplingParams

    imported = time.perf_counter()
    llm = LLM(arguments.model, dtype=arguments.dtype)
    loaded = time.perf_counter()
    llm.generate(
        [{"prompt_token_ids": PROMPT}], SamplingParams(max_tokens=1, temperature=0), use_tqdm=False
    )
    return figures(imported, loaded, pool_mb=llm.llm_engine.parts.kv_size.num_bytes / 2**20)


def run_transformers(arguments: argparse.Namespace) -> dict[str, float]:
    """Import, model and tokenizer, one forward pass."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    imported = time.perf_counter()
    folder = arguments.model
    if folder == "demo":
        import importlib.util

        found = importlib.util.find_spec("pagedkv")
        folder = str(Path(str(found.origin)).parent / "demo") if found else folder
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=arguments.dtype).eval()
    AutoTokenizer.from_pretrained(folder)
    loaded = time.perf_counter()
    with torch.inference_mode():
        model(input_ids=torch.tensor([PROMPT])).logits.argmax(-1)
    return figures(imported, loaded, pool_mb=0.0)


def figures(imported: float, loaded: float, *, pool_mb: float) -> dict[str, float]:
    """Seconds by stage, and the memory of this process in MiB."""
    ended = time.perf_counter()
    return {
        "import_s": imported - STARTED,
        "load_s": loaded - imported,
        "first_token_s": ended - loaded,
        "total_s": ended - STARTED,
        "rss_mb": memory_mb("VmRSS"),
        "private_mb": memory_mb("RssAnon"),
        "pool_mb": pool_mb,
    }


def memory_mb(field: str) -> float:
    """A line of this process's status, in MiB."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    message = f"/proc/self/status has no {field}"
    raise RuntimeError(message)


def report(runs: dict[str, list[dict[str, float]]]) -> str:
    """Medians as Markdown, and the differences within a round."""
    columns = list(next(iter(runs.values()))[0])
    rows = [["", *columns], ["---"] * (len(columns) + 1)]
    for name, lines in runs.items():
        rows.append([name, *(f"{median(lines, column):.2f}" for column in columns)])
    pairs = list(zip(runs["pagedkv"], runs["transformers"], strict=True))
    extra = statistics.median(ours["total_s"] - theirs["total_s"] for ours, theirs in pairs)
    memory = statistics.median(ours["rss_mb"] - theirs["rss_mb"] for ours, theirs in pairs)
    return "".join(f"| {' | '.join(row)} |\n" for row in rows) + (
        f"\nmore than transformers, medians of the rounds: {extra:+.2f} s (allowed "
        f"{ALLOWED_EXTRA_S:+.1f}), {memory:+.1f} MiB resident (allowed: the KV pool, "
        f"{median(runs['pagedkv'], 'pool_mb'):.1f} MiB)\n"
    )


def median(lines: list[dict[str, Any]], column: str) -> float:
    """The median of a column."""
    return statistics.median(line[column] for line in lines)


LEGS = {"pagedkv": run_pagedkv, "transformers": run_transformers}


if __name__ == "__main__":
    sys.exit(main())
