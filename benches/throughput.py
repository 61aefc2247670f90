"""Output tokens per second of pagedkv and transformers on the same workload file.

    python benches/workloads.py mixed --n 64 -o mixed.json
    python benches/make_model.py llama-32m
    python benches/throughput.py --model llama-32m --workload mixed.json \
        --engines pagedkv,hf-static,hf-continuous --rounds 3 --batch 16
    python benches/throughput.py --model llama-32m --workload mixed.json --check

Engines that need an environment of their own come in by `--command NAME=COMMAND`, with {model},
{workload} and {dtype} in its place: any program that ends with the same result line.

Each run is a process of its own. Rounds are interleaved (A B C A B C ...), so that a machine that
slows down slows down all of them, and the ratios are medians of the ratios within a round. Every
run prints its JSON line; a table follows. `--check` measures nothing and compares pagedkv's ids
with transformers' instead (see benches/greedy_check.py).
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import engines
from greedy_check import GreedyReport, compare

Line = dict[str, Any]


def main() -> int:
    """Runs the rounds, or the check; returns the exit status."""
    parser = argparse.ArgumentParser(description="throughput of engines on one workload file")
    parser.add_argument("--model", required=True)
    parser.add_argument("--workload", type=Path, required=True)
    parser.add_argument("--engines", default="pagedkv,hf-static")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16, help="rows of a static batch")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--command",
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="another engine; {model}, {workload} and {dtype} are filled in",
    )
    parser.add_argument("--json", type=Path, help="also write every result line to this file")
    parser.add_argument("--engine-args", default="{}", help="JSON for pagedkv.LLM")
    parser.add_argument("--check", action="store_true", help="compare ids, measure nothing")
    parser.add_argument("--max-ties", type=int, default=2, help="ties that --check tolerates")
    arguments = parser.parse_args()
    commands = dict(command.split("=", 1) for command in arguments.command if "=" in command)
    if len(commands) < len(arguments.command):
        parser.error(f"--command takes NAME=COMMAND, each name once; got {arguments.command}")
    names = [*arguments.engines.split(","), *commands]
    for name in names:
        if name not in engines.LEGS and name not in commands:
            parser.error(f"--engines must name {', '.join(sorted(engines.LEGS))}; got {name!r}")
    if arguments.check:
        return run_check(arguments)
    lines: dict[str, list[Line]] = {name: [] for name in names}
    for _ in range(arguments.rounds):
        for name in names:
            line = run_leg(name, arguments, commands)
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()
            lines[name].append(line)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(lines, indent=2) + "\n")
    sys.stdout.write(table(lines))
    return 0


def run_leg(name: str, arguments: argparse.Namespace, commands: dict[str, str]) -> Line:
    """Runs an engine of this repository, or another by its command."""
    if name not in commands:
        return run_engine(name, arguments, ids_out=None)
    places = {
        "{model}": arguments.model,
        "{workload}": str(arguments.workload),
        "{dtype}": arguments.dtype,
    }
    command = [places.get(word, word) for word in shlex.split(commands[name])]
    return run_process(name, command, arguments)


def run_engine(name: str, arguments: argparse.Namespace, *, ids_out: Path | None) -> Line:
    """Runs one engine of benches/engines.py in a process of its own and returns its result line."""
    command = [
        sys.executable, engines.__file__, name, arguments.model, str(arguments.workload),
        "--batch", str(arguments.batch), "--dtype", arguments.dtype,
        "--engine-args", arguments.engine_args,
    ]  # fmt: skip
    if ids_out is not None:
        command += ["--ids-out", str(ids_out)]
    return run_process(name, command, arguments)


def run_process(name: str, command: list[str], arguments: argparse.Namespace) -> Line:
    """Runs a program with the threads of the arguments; its last line is the result.

    Raises:
        SystemExit: if it fails; its own message is already on standard error.
    """
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(arguments.threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "0",
    }
    # The arguments are this program's own; no shell is involved.
    finished = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, check=False
    )
    if finished.returncode != 0:
        message = f"{name} failed with exit status {finished.returncode}"
        raise SystemExit(message)
    line: Line = json.loads(finished.stdout.splitlines()[-1])
    return line


def run_check(arguments: argparse.Namespace) -> int:
    """Compares pagedkv's ids with transformers' one by one; returns 0 if they agree."""
    with tempfile.TemporaryDirectory() as folder:
        ids_file = Path(folder) / "ids.json"
        run_engine("pagedkv", arguments, ids_out=ids_file)
        report = compare(
            arguments.model,
            arguments.workload,
            json.loads(ids_file.read_text()),
            dtype=arguments.dtype,
        )
    sys.stdout.write(f"{report}\n")
    return 0 if is_accepted(report, max_ties=arguments.max_ties) else 1


def is_accepted(report: GreedyReport, *, max_ties: int) -> bool:
    """Returns whether nothing differs but for a few ties."""
    return not report.different and len(report.ties) <= max_ties


def table(lines: dict[str, list[Line]]) -> str:
    """Returns the medians of each engine and its ratio to each other one, as Markdown."""
    names = list(lines)
    head = ["engine", "output tokens/s", "run s", "peak RSS MB", *(f"x {name}" for name in names)]
    rows = [head, ["---"] * len(head)]
    for name in names:
        rates = [line["output_tokens_per_s"] for line in lines[name]]
        ratios = [
            statistics.median(
                rate / other["output_tokens_per_s"]
                for rate, other in zip(rates, lines[other_name], strict=True)
            )
            for other_name in names
        ]
        rows.append(
            [
                lines[name][0]["engine"],
                f"{statistics.median(rates):.1f}",
                f"{statistics.median(line['run_s'] for line in lines[name]):.2f}",
                f"{statistics.median(line['peak_rss_mb'] for line in lines[name]):.0f}",
                *(f"{ratio:.2f}" for ratio in ratios),
            ]
        )
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    sys.exit(main())
