"""Where the time of a decode step goes, for 1, 8 and 64 running sequences.

    python benches/step_breakdown.py --model target/bench/llama-32m --sequences 1,8,64 --threads 2

Every part of a step is wrapped by a clock; time counts for the innermost part that is running, so
the parts add up to the step. Steps run with and without the clocks in turn, which shows what the
clocks cost. `floor` is the time of the step's linear layers alone in torch: the same matrices and row
counts, called in a row with nothing between.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

for _name, _value in {
    "HF_HUB_OFFLINE": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
}.items():
    os.environ.setdefault(_name, _value)

PARTS = (
    "schedule", "arrays", "embedding", "projections", "attention", "norms and activations",
    "rest of the model", "head", "sampling", "update", "rest of the engine",
)  # fmt: skip
# Steps of one measurement; clocked and plain ones take turns in runs of this length.
RUN_LENGTH = 10


class Clocks:
    """Exclusive times of nested parts, by name, in seconds."""

    def __init__(self) -> None:
        """Starts with nothing running."""
        self.seconds: dict[str, float] = defaultdict(float)
        self._running: list[str] = []
        self._since = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Counts the time of the body for `name`, but for the parts inside it."""
        self._switch()
        self._running.append(name)
        try:
            yield
        finally:
            self._switch()
            self._running.pop()

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, clocked."""

        def clocked(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return clocked

    def _switch(self) -> None:
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now


def main() -> int:
    """Prints one table per number of sequences, and everything as JSON if asked."""
    parser = argparse.ArgumentParser(description="where the time of a decode step goes")
    parser.add_argument("--model", required=True)
    parser.add_argument("--sequences", default="1,8,64", help="running sequences, comma-separated")
    parser.add_argument("--context", type=int, default=128, help="tokens of each prompt")
    parser.add_argument("--steps", type=int, default=60, help="clocked decode steps")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--engine-args", type=json.loads, default={}, help="JSON for the engine")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    counts = [int(count) for count in arguments.sequences.split(",")]
    results = [measure(arguments, num_sequences=count) for count in counts]
    if arguments.json:
        sys.stdout.write(json.dumps(results, indent=2) + "\n")
    else:
        sys.stdout.write(table(results))
    return 0


def measure(arguments: argparse.Namespace, *, num_sequences: int) -> dict[str, Any]:
    """Decodes with `num_sequences` running sequences and returns medians in milliseconds."""
    engine = running_engine(arguments, num_sequences=num_sequences)
    clocks = Clocks()
    plain, clocked = [], []
    by_part: dict[str, list[float]] = defaultdict(list)
    undo: Callable[[], None] | None = None
    for step in range(2 * arguments.steps):
        is_clocked = step // RUN_LENGTH % 2 == 1
        if is_clocked and undo is None:
            undo = attach(clocks, engine)
        elif not is_clocked and undo is not None:
            undo()
            undo = None
        clocks.seconds.clear()
        started = time.perf_counter()
        with clocks.part("rest of the engine"):
            engine.advance(lambda _: None)
        (clocked if is_clocked else plain).append(time.perf_counter() - started)
        if is_clocked:
            for name in PARTS:
                by_part[name].append(clocks.seconds.get(name, 0.0))
    if undo is not None:
        undo()
    linear = linear_floor(engine, num_rows=num_sequences)
    engine.close()
    return {
        "sequences": num_sequences,
        "plain_ms": milliseconds(plain),
        "clocked_ms": milliseconds(clocked),
        "parts_ms": {name: milliseconds(by_part[name]) for name in PARTS},
        "floor_ms": linear,
    }


def running_engine(arguments: argparse.Namespace, *, num_sequences: int) -> Any:
    """An engine in which every sequence has its prompt behind it and decodes."""
    from pagedkv import LLMEngine, SamplingParams

    num_tokens = 2 * arguments.steps + 2 * RUN_LENGTH
    engine = LLMEngine(
        arguments.model,
        dtype=arguments.dtype,
        skip_tokenizer_init=True,
        max_num_seqs=max(num_sequences, 1),
        enable_prefix_caching=False,
        **arguments.engine_args,
    )
    params = SamplingParams(max_tokens=num_tokens, temperature=0, ignore_eos=True)
    for index in range(num_sequences):
        # (Not through add_request, which asks for the deltas of a stream.)
        ids = [3 + (index * 31 + place) % 7000 for place in range(arguments.context)]
        (request,) = engine.prepare([{"prompt_token_ids": ids}], params)
        engine.submit(request, request_id=str(index), is_streamed=False)
    while engine.stats()["num_generated_tokens"] < num_sequences:
        engine.advance(lambda _: None)
    for _ in range(3):
        engine.advance(lambda _: None)
    return engine


def attach(clocks: Clocks, engine: Any) -> Callable[[], None]:
    """Clocks the parts of the engine; returns what undoes it."""
    undone: list[Callable[[], None]] = []

    def clock(owner: Any, attribute: str, name: str) -> None:
        is_own = attribute in vars(owner)
        original = getattr(owner, attribute)
        setattr(owner, attribute, clocks.wrap(name, original))
        undone.append(
            lambda: setattr(owner, attribute, original) if is_own else delattr(owner, attribute)
        )

    parts = engine.parts
    batches = parts.batches
    proxy = SchedulerProxy(parts.scheduler, clocks)
    object.__setattr__(parts, "scheduler", proxy)
    undone.append(lambda: object.__setattr__(parts, "scheduler", proxy.scheduler))
    clock(parts.arena, "inputs", "arrays")
    clock(parts.arena, "row_fills", "arrays")
    clock(parts.sampler, "sample", "sampling")
    clock(parts.sampler, "count", "sampling")
    runner = batches._runner  # noqa: SLF001 (a bench looks inside)
    backend = runner._context.backend  # noqa: SLF001
    clock(backend, "plan", "arrays")
    clock(runner, "_padded_inputs", "arrays")
    for method in ("write_kv", "attend", "copy_blocks"):
        clock(backend, method, "attention")
    model = parts.loaded.model
    clock(model, "forward", "rest of the model")
    head = model.get_output_embeddings()
    for module in model.modules():
        name = "head" if module is head else part_of(module)
        if name is not None:
            clock(module, "forward", name)

    def undo() -> None:
        for step in reversed(undone):
            step()

    return undo


def part_of(module: Any) -> str | None:
    """The part that a module's own time belongs to; None if it is only a container."""
    import torch

    if isinstance(module, torch.nn.Embedding):
        return "embedding"
    if isinstance(module, torch.nn.Linear):
        return "projections"
    if next(module.children(), None) is None or type(module).__name__ == "KernelActivation":
        return "norms and activations"
    return None


class SchedulerProxy:
    """A scheduler whose two calls per step are clocked; its class takes no attributes."""

    def __init__(self, scheduler: Any, clocks: Clocks) -> None:
        """Stands for `scheduler`."""
        self.scheduler = scheduler
        self.schedule = clocks.wrap("schedule", scheduler.schedule)
        self.update = clocks.wrap("update", scheduler.update)

    def __getattr__(self, name: str) -> Any:
        """Everything else is the scheduler's."""
        return getattr(self.scheduler, name)


def linear_floor(engine: Any, *, num_rows: int) -> float:
    """Milliseconds of the step's linear layers alone, over rows as many as the step runs."""
    import torch

    from pagedkv.models import padded_rows

    linears = [
        module
        for module in engine.parts.loaded.model.modules()
        if isinstance(module, torch.nn.Linear)
    ]
    weights = [module.weight for module in linears]
    rows = padded_rows(num_rows, engine.parts.loaded.row_multiple)
    inputs = {
        weight.shape[1]: torch.randn(rows, weight.shape[1], dtype=weight.dtype)
        for weight in weights
    }
    times = []
    with torch.inference_mode():
        for _ in range(RUN_LENGTH):
            started = time.perf_counter()
            for weight in weights:
                torch.nn.functional.linear(inputs[weight.shape[1]], weight)
            times.append(time.perf_counter() - started)
    return milliseconds(times)


def milliseconds(seconds: list[float]) -> float:
    """The median."""
    return round(1000 * statistics.median(seconds), 4)


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: a row per part, a column per number of sequences."""
    head = ["part", *(f"{result['sequences']} sequences, ms" for result in results)]
    rows = [head, ["---"] * len(head)]
    for name in PARTS:
        cells = [
            f"{result['parts_ms'][name]:.3f} ({share(result, name):.0f} %)" for result in results
        ]
        rows.append([name, *cells])
    for label, key in (
        ("step with clocks", "clocked_ms"),
        ("step without clocks", "plain_ms"),
        ("floor: linear layers alone", "floor_ms"),
    ):
        rows.append([label, *(f"{result[key]:.3f}" for result in results)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def share(result: dict[str, Any], name: str) -> float:
    """Per cent of the clocked step."""
    part, whole = result["parts_ms"][name], sum(result["parts_ms"].values())
    return 100 * float(part) / float(whole)


if __name__ == "__main__":
    sys.exit(main())
