"""The `cpu` backend: equal to the readable one, the same in every bit whatever runs beside it, safe with any input."""

import re
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attention.paged_batch import (
    GROUP,
    Row,
    first_visible_key,
    in_columns,
    layer_spec,
    make_batch,
    part_of,
    poisoned,
)
from attention.random_batches import batches, tolerances
from pagedkv import _core
from pagedkv.attention.base import LayerCache
from pagedkv.attention.cpu_backend import CpuBackend
from pagedkv.attention.torch_backend import TorchBackend


@pytest.fixture(autouse=True)
def _restored_threads():
    before = _core.num_threads()
    yield
    _core.set_num_threads(before)


@given(batches())
def test_attention_and_cache_equal_the_readable_backend_and_no_poison_leaks(batch):
    output, cache = batch.run(CpuBackend)
    expected, expected_cache = batch.run(TorchBackend)
    assert output.shape == expected.shape
    assert output.dtype == expected.dtype
    assert output.is_contiguous()
    assert not output.isnan().any()
    torch.testing.assert_close(output, expected, **tolerances(batch))
    for stored, expected_stored in zip(
        (cache.key, cache.value), (expected_cache.key, expected_cache.value), strict=True
    ):
        torch.testing.assert_close(stored, expected_stored, rtol=0, atol=0, equal_nan=True)


@given(batches(), st.data())
def test_a_query_has_the_same_bits_in_its_batch_and_in_any_chunk_alone(batch, data):
    together, cache = batch.run(CpuBackend)
    row = data.draw(st.integers(0, batch.step.num_rows - 1))
    start, stop = batch.step.query_start_loc[row : row + 2].tolist()
    first = data.draw(st.integers(0, stop - start - 1))
    count = data.draw(st.integers(1, stop - start - first))
    part = part_of(batch, row, first=first, count=count)
    backend = CpuBackend(layers={0: batch.layer}, caches={0: cache})
    backend.plan(part.step)
    alone = backend.attend(part.layer, part.query, part.sinks)
    assert torch.equal(alone, together[start + first : start + first + count])


def test_results_have_the_same_bits_on_any_number_of_threads():
    rows = [Row(seq_len=700, query_len=300), *(Row(seq_len=400, query_len=1) for _ in range(12))]
    batch = make_batch(layer_spec(k_dim=64, v_dim=64), rows)
    outputs = []
    for num_threads in (1, 2, 3):
        _core.set_num_threads(num_threads)
        outputs.append(batch.run(CpuBackend)[0])
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_a_row_does_not_depend_on_block_size():
    rows = [Row(seq_len=150, query_len=40)]
    outputs = [
        make_batch(layer_spec(), rows, block_size=size).run(CpuBackend)[0] for size in (8, 64)
    ]
    assert torch.equal(*outputs)


@pytest.mark.parametrize("kind", ["sliding", "chunked"])
def test_blocks_outside_the_window_are_given_back_and_never_looked_at(kind):
    layer = layer_spec(kind=kind, window=20)
    batch = make_batch(layer, [Row(seq_len=100, query_len=3)], block_size=8)
    table = batch.step.block_tables[GROUP, batch.step.row_ids[0]]
    num_given_back = first_visible_key(layer, 97) // 8
    assert num_given_back > 0
    assert (table[:num_given_back] == 0).all()
    output, _ = batch.run(CpuBackend)
    torch.testing.assert_close(output, batch.run(TorchBackend)[0], **tolerances(batch))


def test_rows_without_context_and_padding_give_zeros_and_slot_minus_one_stores_nothing():
    batch = make_batch(layer_spec(), [Row(seq_len=9, query_len=4)], num_padding=4)
    batch.step.seq_lens[0] = 0
    batch.step.slot_mapping[GROUP] = -1
    output, cache = batch.run(CpuBackend)
    assert output.shape[0] == 8
    assert (output == 0).all()
    assert torch.equal(cache.key.isnan(), batch.cache.key.isnan())


@pytest.mark.parametrize("keys_in_columns", [False, True])
def test_copies_follow_the_group_and_leave_the_gaps_between_blocks_alone(keys_in_columns):
    layers = {
        0: layer_spec(layer_idx=0, group=0, v_dim=5),
        1: layer_spec(layer_idx=1, group=1, v_dim=5),
        2: layer_spec(layer_idx=2, group=1, v_dim=5, alias_of=1),
    }
    copies = torch.tensor([[0, 1, 2], [1, 3, 4], [1, 3, 5]], dtype=torch.int32)
    results = []
    for kind in (CpuBackend, TorchBackend):
        generator = torch.Generator().manual_seed(3)
        caches = {}
        for index in (0, 1):
            key = poisoned(6, 2, 16, 16, torch.bfloat16)
            if keys_in_columns:
                key = in_columns(key)
            value = poisoned(6, 2, 16, 5, torch.bfloat16)
            key.copy_(torch.randn(key.shape, generator=generator))
            value.copy_(torch.randn(value.shape, generator=generator))
            caches[index] = LayerCache(key=key, value=value)
        caches[2] = caches[1]
        backend = kind(layers=layers, caches=caches)
        backend.copy_blocks(copies)
        backend.copy_blocks(copies[:0])
        memories = [
            tensor.as_strided((6 * tensor.stride(0),), (1,))
            for index in (0, 1)
            for tensor in (caches[index].key, caches[index].value)
        ]
        results.append(torch.cat(memories))
    torch.testing.assert_close(*results, rtol=0, atol=0, equal_nan=True)


def test_storages_are_shared_not_copied():
    batch = make_batch(layer_spec(), [Row(seq_len=5, query_len=5)])
    backend, cache = batch.backend(CpuBackend)
    backend.plan(batch.step)
    backend.write_kv(batch.layer, batch.key, batch.value)
    output = backend.attend(batch.layer, batch.query, None)
    cache.value.mul_(2)
    torch.testing.assert_close(backend.attend(batch.layer, batch.query, None), output * 2)


def test_other_dtypes_than_the_cache_are_converted_and_other_caches_refused():
    batch = make_batch(layer_spec(), [Row(seq_len=5, query_len=5)], dtype=torch.bfloat16)
    backend, _ = batch.backend(CpuBackend)
    backend.plan(batch.step)
    backend.write_kv(batch.layer, batch.key.double(), batch.value.double())
    output = backend.attend(batch.layer, batch.query.float(), None)
    assert output.dtype == torch.float32
    assert torch.equal(output.bfloat16(), batch.run(CpuBackend)[0])
    cache = LayerCache(key=batch.cache.key.double(), value=batch.cache.value.double())
    with pytest.raises(TypeError, match="layer 0 must both be float32, bfloat16 or float16"):
        CpuBackend(layers={0: batch.layer}, caches={0: cache})


def test_calls_from_several_threads_give_the_right_result_or_an_error():
    rows = [Row(seq_len=300, query_len=100), Row(seq_len=200, query_len=1)]
    batch = make_batch(layer_spec(k_dim=64, v_dim=64), rows)
    expected, cache = batch.run(CpuBackend)
    backend = CpuBackend(layers={0: batch.layer}, caches={0: cache})
    backend.plan(batch.step)
    wrong = []

    def call():
        try:
            backend.write_kv(batch.layer, batch.key, batch.value)
            output = backend.attend(batch.layer, batch.query, None)
        except RuntimeError as error:
            if "another call" not in str(error) and "cannot be written" not in str(error):
                wrong.append(error)
        else:
            if not torch.equal(output, expected):
                wrong.append(output)

    threads = [threading.Thread(target=call) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def attention_arguments(**changes):
    """Arguments of a valid call: one row of 6 tokens, 4 of them queries, in two blocks of 4."""
    storage = np.ones((3, 2, 4, 8), dtype=np.float32)
    arguments = {
        "query": np.ones((4, 4, 8), dtype=np.float32),
        "output": np.empty((4, 4, 8), dtype=np.float32),
        "keys": storage,
        "values": storage,
        "dtype": "float32",
        "row_ids": np.array([1], dtype=np.int32),
        "query_start_loc": np.array([0, 4], dtype=np.int32),
        "seq_lens": np.array([6], dtype=np.int32),
        "block_tables": np.array([[0, 0], [1, 2]], dtype=np.int32),
        "scale": 1.0,
    }
    return {**arguments, **changes}


def attend(arguments):
    arguments = dict(arguments)
    return _core.paged_attention(arguments.pop("query"), arguments.pop("output"), **arguments)


def test_a_valid_call_is_accepted_so_that_the_refusals_below_mean_something():
    arguments = attention_arguments()
    attend(arguments)
    assert (arguments["output"] == 1).all()


def int32(*numbers):
    return np.array(numbers, dtype=np.int32)


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (
            TypeError,
            "query must be an array of float32, got float64",
            {"query": np.ones((4, 4, 8))},
        ),
        (TypeError, "query must be an array of int16, got float32", {"dtype": "bfloat16"}),
        (TypeError, "row_ids must be an array of int32", {"row_ids": np.array([1])}),
        (TypeError, "'list' object", {"query": [[[1.0]]]}),
        (ValueError, "dtype must be 'float32'", {"dtype": "float64"}),
        (ValueError, "query must have 3 dimensions, got 2", {"query": np.ones((4, 8), np.float32)}),
        (ValueError, "expected 8", {"query": np.ones((4, 4, 7), np.float32)}),
        (ValueError, "expected 4", {"query": np.ones((4, 3, 8), np.float32)}),
        (ValueError, "stride 1", {"query": np.ones((4, 4, 16), np.float32)[:, :, ::2]}),
        (ValueError, "strides of 0 or more", {"query": np.ones((4, 4, 8), np.float32)[::-1]}),
        (ValueError, "expected 4", {"output": np.empty((5, 4, 8), np.float32)}),
        (
            ValueError,
            "overlap",
            {
                "output": np.lib.stride_tricks.as_strided(
                    np.empty((4, 4, 8), np.float32), (4, 4, 8), (0, 32, 4)
                )
            },
        ),
        (ValueError, "expected 3", {"keys": np.ones((2, 2, 4, 8), np.float32)}),
        (ValueError, "row_ids[0] is 2, expected 0 <= row < 2", {"row_ids": int32(2)}),
        (ValueError, "row_ids[0] is -1", {"row_ids": int32(-1)}),
        (ValueError, "query_start_loc[1] is 5", {"query_start_loc": int32(0, 5)}),
        (ValueError, "query_start_loc[1] is -4", {"query_start_loc": int32(0, -4)}),
        (ValueError, "query_start_loc has size 3", {"query_start_loc": int32(0, 2, 4)}),
        (ValueError, "seq_lens[0] is 3", {"seq_lens": int32(3)}),
        (ValueError, "seq_lens[0] is 9", {"seq_lens": int32(9)}),
        (ValueError, "seq_lens[0] is -2147483648", {"seq_lens": int32(-(2**31))}),
        (
            ValueError,
            "block_tables[1, 1] is 3",
            {"block_tables": np.array([[0, 0], [1, 3]], np.int32)},
        ),
        (
            ValueError,
            "block_tables[1, 0] is -1",
            {"block_tables": np.array([[0, 0], [-1, 1]], np.int32)},
        ),
        (ValueError, "null block", {"block_tables": np.zeros((2, 2), np.int32)}),
        (ValueError, "scale must be finite, got NaN", {"scale": float("nan")}),
        (ValueError, "softcap must be finite and above 0, got 0", {"softcap": 0.0}),
        (ValueError, "window must be at least 1, got 0", {"mask": "sliding", "window": 0}),
        (ValueError, "got mask='sliding' with window=None", {"mask": "sliding"}),
        (ValueError, "got mask='full' with window=3", {"window": 3}),
        (ValueError, "mask must be", {"mask": "diagonal"}),
        (ValueError, "sinks has size 3", {"sinks": np.zeros(3, np.float32)}),
    ],
)
def test_a_bad_argument_raises_and_nothing_is_written(error, message, changes):
    arguments = attention_arguments(**changes)
    output = arguments["output"]
    output[...] = 7
    with pytest.raises(error, match=re.escape(message)):
        attend(arguments)
    assert (output == 7).all()


def test_arrays_that_are_read_only_or_both_read_and_written_are_refused():
    output = np.empty((4, 4, 8), dtype=np.float32)
    output.flags.writeable = False
    with pytest.raises(RuntimeError, match="output cannot be written"):
        attend(attention_arguments(output=output))
    both = np.ones((4, 4, 8), dtype=np.float32)
    with pytest.raises(RuntimeError, match="output cannot be written"):
        attend(attention_arguments(query=both, output=both))
    unaligned = np.zeros(4 * 4 * 8 * 4 + 1, dtype=np.uint8)[1:].view(np.float32).reshape(4, 4, 8)
    with pytest.raises(ValueError, match="query must be aligned"):
        attend(attention_arguments(query=unaligned))


@pytest.mark.parametrize(
    ("message", "slots", "num_tokens"),
    [
        ("slot_mapping[1] is 12", [3, 12], 2),
        ("slot_mapping[0] is -2", [-2, 1], 2),
        ("needs at least 2", [3, 4], 1),
    ],
)
def test_a_bad_slot_is_refused_before_anything_is_stored(message, slots, num_tokens):
    storages = [np.full((3, 2, 4, 8), 7, dtype=np.float32) for _ in range(2)]
    tokens = np.ones((num_tokens, 2, 8), dtype=np.float32)
    with pytest.raises(ValueError, match=re.escape(message)):
        _core.kv_write(
            tokens,
            tokens,
            keys=storages[0],
            values=storages[1],
            slot_mapping=np.array(slots),
            dtype="float32",
        )
    assert all((storage == 7).all() for storage in storages)


@pytest.mark.parametrize("pair", [[0, 1], [1, 0], [1, 3], [-1, 1]])
def test_a_copy_of_no_block_or_over_the_null_block_is_refused(pair):
    storage = np.zeros((3, 2, 4, 8), dtype=np.float32)
    with pytest.raises(ValueError, match=r"pairs\[0\] is block"):
        _core.copy_blocks([storage], pairs=int32(pair), dtype="float32")
