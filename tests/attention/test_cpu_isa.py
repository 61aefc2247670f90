"""The `cpu` backend on every instruction set of the machine, with shared blocks, and with layers of rarer kinds."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given

from attention.paged_batch import GROUP, Row, layer_spec, make_batch, part_of
from attention.random_batches import DTYPES, batches, tolerances
from pagedkv import _core
from pagedkv.attention.base import LayerCache
from pagedkv.attention.cpu_backend import CpuBackend
from pagedkv.attention.torch_backend import TorchBackend


@pytest.fixture(autouse=True)
def _restored_threads():
    before = _core.num_threads()
    yield
    _core.set_num_threads(before)


def usable_isas():
    """The instruction sets of this CPU that have a fused multiply-add."""
    before, found = _core.cpu_isa(), []
    for name in ("fused", "avx2", "avx512", "neon"):
        try:
            _core.set_cpu_isa(name)
        except ValueError:
            continue
        found.append(name)
    _core.set_cpu_isa(before)
    return found


@given(batches())
def test_every_instruction_set_of_the_machine_gives_the_same_bits(batch):
    before = _core.cpu_isa()
    outputs = []
    for name in usable_isas():
        _core.set_cpu_isa(name)
        outputs.append(batch.run(CpuBackend)[0])
    _core.set_cpu_isa(before)
    assert len(outputs) > 1 or before == "plain"
    assert all(torch.equal(outputs[0], output) for output in outputs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_threads", [1, 3])
def test_rows_that_share_blocks_have_the_same_bits_as_each_row_alone(dtype, num_threads):
    _core.set_num_threads(num_threads)
    rows = [Row(seq_len=length, query_len=count) for length, count in PREFIX_ROWS]
    batch = make_batch(layer_spec(has_sinks=True, k_dim=33), rows, dtype=dtype)
    together, cache = batch.run(CpuBackend)
    table = batch.step.block_tables[GROUP]
    ids = batch.step.row_ids.tolist()
    backend = CpuBackend(layers={0: batch.layer}, caches={0: cache})
    # Two families of rows begin with the blocks of their first member, for 384 and 160 tokens.
    for first, others, num_tokens in ((0, (1, 2, 4, 5), 384), (3, (6,), 160)):
        for other in others:
            table[ids[other], : num_tokens // 16] = table[ids[first], : num_tokens // 16]
    backend.plan(batch.step)
    shared = backend.attend(batch.layer, batch.query, batch.sinks)
    assert not torch.equal(shared, together)
    for row in range(len(rows)):
        part = part_of(batch, row)
        backend.plan(part.step)
        start, stop = batch.step.query_start_loc[row : row + 2].tolist()
        alone = backend.attend(part.layer, part.query, part.sinks)
        assert torch.equal(alone, shared[start:stop])


# (context, queries) of each row: decodes, a short chunk, and a prefill too long to share.
PREFIX_ROWS = [(700, 1), (500, 1), (640, 3), (300, 1), (900, 1), (470, 40), (200, 1)]


@given(batches(dtypes=(torch.float32,)))
def test_alibi_is_that_of_the_readable_backend(batch):
    slopes = 2.0 ** -torch.arange(1, batch.layer.num_query_heads + 1)
    outputs = []
    for kind in (CpuBackend, TorchBackend):
        backend, _ = batch.backend(kind)
        backend.plan(batch.step)
        backend.write_kv(batch.layer, batch.key, batch.value)
        outputs.append(backend.attend(batch.layer, batch.query, batch.sinks, alibi_slopes=slopes))
    torch.testing.assert_close(*outputs, **tolerances(batch))


def test_values_may_be_the_first_columns_of_the_keys():
    batch = make_batch(layer_spec(k_dim=48, v_dim=32), [Row(seq_len=300, query_len=5)])
    values = batch.cache.key[..., :32]
    outputs = []
    for kind in (CpuBackend, TorchBackend):
        cache = LayerCache(key=batch.cache.key.nan_to_num(), value=values.nan_to_num())
        aliased = LayerCache(key=cache.key, value=cache.key[..., :32])
        backend = kind(layers={0: batch.layer}, caches={0: aliased})
        backend.plan(batch.step)
        outputs.append(backend.attend(batch.layer, batch.query, None))
    torch.testing.assert_close(*outputs, **tolerances(batch))


@pytest.mark.parametrize("position", [100, 700])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_an_infinite_value_makes_an_output_infinite_not_nan(num_threads, position):
    _core.set_num_threads(num_threads)
    batch = make_batch(layer_spec(), [Row(seq_len=1300, query_len=1)])
    block = batch.step.block_tables[GROUP, batch.step.row_ids[0], position // 16]
    batch.cache.value[block, :, position % 16, 3] = torch.inf
    outputs = [batch.run(kind)[0] for kind in (CpuBackend, TorchBackend)]
    assert outputs[0][..., 3].isinf().all()
    torch.testing.assert_close(*outputs, **tolerances(batch))


def test_the_plain_form_is_announced_once_and_an_unknown_instruction_set_is_named():
    before = _core.cpu_isa()
    batch = make_batch(layer_spec(), [Row(seq_len=150, query_len=20)])
    expected = batch.run(CpuBackend)[0]
    _core.set_cpu_isa("plain")
    try:
        with pytest.warns(RuntimeWarning, match="plain form") as seen:
            output = batch.run(CpuBackend)[0]
    finally:
        _core.set_cpu_isa(before)
    assert len(seen) == 1
    torch.testing.assert_close(output, expected, **tolerances(batch))
    with pytest.raises(ValueError, match=r"PAGEDKV_CPU_ISA must be one of .*got 'sse9'"):
        _core.set_cpu_isa("sse9")
    environment = {**os.environ, "PAGEDKV_CPU_ISA": "mmx"}
    code = "from pagedkv import _core; _core.cpu_isa()"
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert "got 'mmx'" in run.stderr
