"""Attention on the CPU beside torch's: decode, prefill, and rows that share a prefix.

Peer: ``scaled_dot_product_attention`` over the same keys and values laid out contiguously, the faster of its grouped form
and the one with key heads repeated beforehand. Each case takes turns between the two, in one process, and prints medians.
Floors: decode must read every key and value once (bytes / read bandwidth, measured in the same turns), prefill must multiply (2 operations
per number of a key and a value and query that attends it / torch's measured matrix product).

    python benches/attention.py --threads 2
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch.nn.functional import scaled_dot_product_attention

from pagedkv import _core
from pagedkv.attention.base import LayerCache, LayerSpec, StepInputs
from pagedkv.attention.cpu_backend import CpuBackend
from pagedkv.pages import prefer_large_pages

Run = Callable[[], object]
Clock = Callable[[], float]

BLOCK_SIZE = 16
# Beyond the last-level cache, so that nothing is read from it twice.
COLD_BYTES = 160 * 2**20
LARGEST_EXPANDED_BYTES = 700 * 2**20
# Of the calls of a turn: some layers of a model.
TURN_SECONDS = 2e-3


@dataclass(frozen=True, kw_only=True)
class Case:
    """One step: ``batch`` rows of ``context`` keys, of which the last ``query_len`` are queries."""

    batch: int
    context: int
    heads: tuple[int, int]
    head_dim: int = 64
    dtype: torch.dtype = torch.float32
    query_len: int = 1
    shared: bool = False

    @property
    def num_layers(self) -> int:
        """How many copies of the keys it takes to keep them out of the caches."""
        return 1 if self.query_len > 1 else max(1, -(-COLD_BYTES // self.kv_bytes))

    @property
    def num_tables(self) -> int:
        """Rows with blocks of their own."""
        return 1 if self.shared else self.batch

    @property
    def kv_bytes(self) -> int:
        """Bytes of the keys and values of a layer."""
        size = self.num_tables * self.context * self.heads[1] * self.head_dim
        return 2 * size * torch.finfo(self.dtype).bits // 8

    @property
    def flops(self) -> float:
        """Operations of a causal prefill."""
        pairs = self.query_len * (self.context - self.query_len) + self.query_len**2 / 2
        return 4 * self.batch * self.heads[0] * self.head_dim * pairs

    def __str__(self) -> str:
        kind = "decode" if self.query_len == 1 else "prefill"
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{kind} {self.batch} x {self.context}, {self.heads[0]}/{self.heads[1]} x {self.head_dim}, {dtype}"


def stored(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Random numbers in memory like that of an engine's pool: a piece large enough for large pages."""
    storage = torch.empty(shape, dtype=dtype)
    prefer_large_pages(storage)
    return storage.copy_(torch.randn(shape))


def paged_layers(case: Case) -> list[Run]:
    """Functions that run the paged kernel once, each for one layer of a model in one step."""
    columns = -(-case.context // BLOCK_SIZE)
    num_blocks = 1 + case.num_tables * columns
    shape = (case.num_layers, num_blocks, case.heads[1], BLOCK_SIZE, case.head_dim)
    in_columns = (*shape[:3], case.head_dim, BLOCK_SIZE)
    keys = stored(in_columns, case.dtype).transpose(3, 4)
    values = stored(shape, case.dtype)
    layers = {index: layer_spec(case, index) for index in range(case.num_layers)}
    caches = {index: LayerCache(key=keys[index], value=values[index]) for index in layers}
    backend = CpuBackend(layers=layers, caches=caches)
    backend.plan(step_inputs(case, torch.randperm(num_blocks - 1) + 1))
    tokens = case.batch * case.query_len
    query = torch.randn(tokens, case.heads[0], case.head_dim).to(case.dtype)
    return [partial(backend.attend, layer, query, None) for layer in layers.values()]


def layer_spec(case: Case, index: int) -> LayerSpec:
    """A layer with full attention."""
    return LayerSpec(
        layer_idx=index,
        num_query_heads=case.heads[0],
        num_kv_heads=case.heads[1],
        k_dim=case.head_dim,
        v_dim=case.head_dim,
        scale=case.head_dim**-0.5,
        softcap=None,
        has_sinks=False,
        kind="full",
        window=None,
        group=0,
        storage=index,
        alias_of=None,
    )


def step_inputs(case: Case, blocks: torch.Tensor) -> StepInputs:
    """The step of a case, its rows with these blocks."""
    tokens = case.batch * case.query_len
    tables = blocks.int().reshape(1, case.num_tables, -1).expand(1, case.batch, -1)
    return StepInputs(
        row_ids=torch.arange(case.batch, dtype=torch.int32),
        query_start_loc=torch.arange(case.batch + 1, dtype=torch.int32) * case.query_len,
        seq_lens=torch.full((case.batch,), case.context, dtype=torch.int32),
        input_ids=torch.zeros(tokens, dtype=torch.int32),
        positions=torch.zeros(tokens, dtype=torch.int32),
        slot_mapping=torch.zeros(1, tokens, dtype=torch.int64),
        block_tables=tables.contiguous(),
        logits_indices=torch.zeros(0, dtype=torch.int32),
        block_copies=torch.zeros(0, 3, dtype=torch.int32),
        num_tokens_padded=tokens,
    )


def contiguous(case: Case, *, expanded: bool) -> Run:
    """A function that runs torch's kernel once."""
    num_heads, num_kv_heads = case.heads
    repeat = num_heads // num_kv_heads if expanded else 1
    shape = (case.batch, num_kv_heads, case.context, case.head_dim)
    key, value = (
        torch.randn(shape).to(case.dtype).repeat_interleave(repeat, dim=1) for _ in range(2)
    )
    query = torch.randn(case.batch, num_heads, case.query_len, case.head_dim).to(case.dtype)
    return lambda: scaled_dot_product_attention(
        query, key, value, is_causal=case.query_len > 1, enable_gqa=key.shape[1] != num_heads
    )


def in_turns(runs: Sequence[Run]) -> Run:
    """A function that runs the next of ``runs`` each time."""
    state = iter(())

    def run() -> None:
        nonlocal state
        following = next(state, None)
        if following is None:
            state = iter(runs)
            following = next(state)
        following()

    return run


def medians(functions: Sequence[Run], *, seconds: float, clock: Clock) -> list[float]:
    """Median milliseconds of each function, all of them in turns.

    A turn of a short one is several calls one after the other, as a step calls it layer after layer: threads that have just
    worked are not asleep, and the call that wakes them is not counted.
    """
    counts = []
    for function in functions:
        function()
        start = time.perf_counter()
        function()
        counts.append(min(max(1, round(TURN_SECONDS / (time.perf_counter() - start))), 32))
    times = [[] for _ in functions]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 5:
        for function, count, own in zip(functions, counts, times, strict=True):
            if count > 1:
                function()
            start = clock()
            for _ in range(count):
                function()
            own.append((clock() - start) * 1e3 / count)
    return [statistics.median(own) for own in times]


class StreamingRead:
    """A plain read of memory that is in no cache, with all threads: the floor of decode."""

    def __init__(self) -> None:
        """Makes the numbers that are read."""
        parts = torch.ones(64 * 2**20).chunk(4)
        self.nbytes = parts[0].nbytes
        self.run = in_turns([part.sum for part in parts])


def matmul_peak(seconds: float, clock: Clock) -> float:
    """Operations per second of torch's matrix product in float32: the best of several."""
    matrix = torch.randn(1024, 1024)
    best = 0.0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = clock()
        matrix @ matrix
        best = max(best, 2 * 1024**3 / (clock() - start))
    return best


def compare(
    case: Case, *, seconds: float, clock: Clock, reading: StreamingRead, peak: float
) -> None:
    """Prints one line of the table; memory is read in turns with both, for its speed changes by the minute."""
    ours = in_turns(paged_layers(case))
    peers = [in_turns([contiguous(case, expanded=False) for _ in range(case.num_layers)])]
    is_grouped = case.heads[0] != case.heads[1]
    group = case.heads[0] // case.heads[1]
    if is_grouped and case.kv_bytes * case.num_layers * group <= LARGEST_EXPANDED_BYTES:
        peers.append(in_turns([contiguous(case, expanded=True) for _ in range(case.num_layers)]))
    own, read_ms, *others = medians([ours, reading.run, *peers], seconds=seconds, clock=clock)
    torch_ms = min(others)
    if case.query_len == 1:
        share = f"{case.kv_bytes / reading.nbytes * read_ms / own:.0%} of bandwidth"
    else:
        share = f"{case.flops / peak * 1e3 / own:.0%} of matmul"
    print(f"| {case} | {own:.3f} | {torch_ms:.3f} | {own / torch_ms:.2f} | {share} |", flush=True)


def compare_shared(case: Case, *, seconds: float, clock: Clock) -> None:
    """Prints what sharing a prefix gains over distinct copies of its blocks; neither finds a layer in a cache."""
    cases = (case, replace(case, shared=False))
    runs = [in_turns(paged_layers(each)) for each in cases]
    own, other = medians(runs, seconds=seconds, clock=clock)
    print(f"| shared: {case} | {own:.3f} | {other:.3f} (distinct) | {other / own:.1f}x |  |")


def cases(*, quick: bool) -> Iterator[Case]:
    """The decode and prefill cases of the table."""
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    geometries = (((8, 8), 64), ((8, 2), 64), ((32, 8), 128))
    for context in (2048, 8192):
        for heads, head_dim in geometries:
            for dtype in dtypes:
                for batch in (1, 16) if quick else (1, 4, 16, 64):
                    case = Case(
                        batch=batch, context=context, heads=heads, head_dim=head_dim, dtype=dtype
                    )
                    if case.kv_bytes <= 600 * 2**20:
                        yield case
    for length in (1024, 4096):
        for heads, head_dim in geometries:
            for dtype in dtypes[:2]:
                yield Case(
                    batch=1,
                    context=length,
                    query_len=length,
                    heads=heads,
                    head_dim=head_dim,
                    dtype=dtype,
                )


def main() -> None:
    """Runs all cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=_core.num_threads())
    parser.add_argument("--seconds", type=float, default=1.0, help="for each case")
    parser.add_argument("--quick", action="store_true", help="two batch sizes only")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="processor time instead of the clock, for a busy machine; with --threads 1 only",
    )
    arguments = parser.parse_args()
    if arguments.cpu_time and arguments.threads != 1:
        parser.error("--cpu-time adds up the time of all threads, so it needs --threads 1")
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    torch.set_num_threads(arguments.threads)
    _core.set_num_threads(arguments.threads)
    reading, peak = StreamingRead(), matmul_peak(1.0, clock)
    (read_ms,) = medians([reading.run], seconds=1.0, clock=clock)
    speed = reading.nbytes / read_ms / 1e6
    print(f"{_core.cpu_isa()}, {arguments.threads} threads, read {speed:.1f} GB/s, ", end="")
    print(f"torch matmul {peak / 1e9:.0f} GFLOP/s\n")
    print("| case | ours ms | torch ms | ours / torch | floor |\n|---|---|---|---|---|")
    for case in cases(quick=arguments.quick):
        if arguments.only in str(case):
            compare(case, seconds=arguments.seconds, clock=clock, reading=reading, peak=peak)
    for heads, head_dim in (((8, 8), 64), ((8, 2), 64), ((32, 8), 128)):
        case = Case(batch=16, context=2048, heads=heads, head_dim=head_dim, shared=True)
        if arguments.only in f"shared: {case}":
            compare_shared(case, seconds=arguments.seconds, clock=clock)


if __name__ == "__main__":
    main()
