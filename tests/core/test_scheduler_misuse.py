"""Whatever Python does to the scheduler and its arrays raises; nothing crashes and nothing is lost."""

import contextlib
import gc
import itertools
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from core.fake_model import Arena, allocate_arrays
from pagedkv._core import Scheduler, StepBuffers, TextDecoder

SETTINGS = {
    "num_blocks": 32,
    "block_size": 4,
    "kv_groups": [("full", 0), ("sliding", 8)],
    "max_num_seqs": 4,
    "max_num_batched_tokens": 16,
    "max_model_len": 32,
    "num_swap_blocks": 2,
    "swap_cost": 1e9,
}


@pytest.fixture
def scheduler():
    """A scheduler with one waiting request."""
    scheduler = Scheduler(**SETTINGS)
    scheduler.add_request(0, [1, 2, 3], max_tokens=4)
    return scheduler


def step(scheduler, arena, token=5):
    """One step whose samples are all `token`; None if there was nothing to do."""
    batch = scheduler.schedule(arena.buffers)
    if batch is None:
        return None
    token_ids = np.full(batch.num_samples, token, np.int32)
    return scheduler.update(batch, token_ids, np.zeros(batch.num_samples, np.float32))


def finish(scheduler, arena):
    """Runs to the end: after any error everything still works."""
    while step(scheduler, arena) is not None:
        scheduler.check_invariants()
    assert scheduler.stats()["num_used_blocks"] == 0


@pytest.mark.parametrize("name", sorted(allocate_arrays(Scheduler(**SETTINGS).sizes)))
def test_every_array_is_checked(scheduler, name):
    """Dtype, layout and writeability when registered; the shape when used."""
    arrays = allocate_arrays(scheduler.sizes)
    array = arrays[name]
    other = np.int64 if array.dtype == np.int32 else np.int32
    read_only = array.copy()
    read_only.setflags(write=False)
    wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
    for wrong, error in [
        (array.astype(other), TypeError),
        (array.astype(np.float32), TypeError),
        (array.tolist(), TypeError),
        (read_only, RuntimeError),
        (wide[..., ::2], ValueError),
    ]:
        with pytest.raises(error, match=name):
            StepBuffers(**{**arrays, name: wrong})
    for shape in [(*array.shape[:-1], array.shape[-1] - 1), (*array.shape, 1), ()]:
        buffers = StepBuffers(**{**arrays, name: np.zeros(shape, array.dtype)})
        with pytest.raises(ValueError, match=rf"{name} must have shape \[.*\] \(Scheduler.sizes\)"):
            scheduler.schedule(buffers)
    finish(scheduler, Arena(scheduler))


def test_arrays_that_share_memory_are_refused(scheduler):
    """Two arrays over one buffer would overwrite each other, however they were made."""
    arrays = allocate_arrays(scheduler.sizes)
    memory = bytearray(16 * 4)
    same = {name: np.frombuffer(memory, np.int32) for name in ("input_ids", "positions")}
    with pytest.raises(ValueError, match="input_ids and positions share memory"):
        StepBuffers(**{**arrays, **same})
    with pytest.raises(ValueError, match="row_ids and seq_lens share memory"):
        StepBuffers(**{**arrays, "row_ids": arrays["seq_lens"]})


def test_arrays_may_be_longer_than_needed(scheduler):
    """An arena may be made for a larger configuration, and slots may be padded."""
    arrays = allocate_arrays(scheduler.sizes, num_padded=5)
    for name in ("input_ids", "row_fills", "table_updates", "query_start_loc"):
        arrays[name] = np.repeat(arrays[name], 2, axis=0)
    buffers = StepBuffers(**arrays)
    batch = scheduler.schedule(buffers)
    assert arrays["input_ids"][: batch.num_tokens].tolist() == [1, 2, 3]
    tables = arrays["block_tables"][:, arrays["row_ids"][0], 0]
    assert arrays["slot_mapping"][:, 0].tolist() == (4 * tables).tolist()


def test_arrays_that_were_changed_in_place_are_noticed(scheduler):
    """Memory that Python took back is never written."""
    arena = Arena(scheduler)
    arena.arrays["input_ids"].resize(1, refcheck=False)
    with pytest.raises(ValueError, match=r"input_ids must have shape \[16\].*got \[1\]"):
        scheduler.schedule(arena.buffers)
    arena.arrays["input_ids"].resize(16, refcheck=False)
    arena.arrays["positions"].setflags(write=False)
    with pytest.raises(RuntimeError, match="positions cannot be written"):
        scheduler.schedule(arena.buffers)
    arena.arrays["positions"].setflags(write=True)
    finish(scheduler, arena)


def test_registered_arrays_outlive_their_names(scheduler):
    """The core holds what it writes to; a batch needs nothing of it any more."""
    arena = Arena(scheduler)
    arena.arrays.clear()
    gc.collect()
    batch = scheduler.schedule(arena.buffers)
    del arena
    gc.collect()
    scheduler.update(batch, np.array([5], np.int32), np.zeros(1, np.float32))
    finish(scheduler, Arena(scheduler))


def test_fresh_buffers_get_the_whole_block_tables(scheduler):
    """Tables persist between steps, so that other arrays must catch up first."""
    first, second = Arena(scheduler), Arena(scheduler)
    step(scheduler, first)
    step(scheduler, second)
    row = second.arrays["row_ids"][0]
    tables = second.arrays["block_tables"][:, row]
    assert tables[:, 0].all()
    np.testing.assert_array_equal(tables, first.arrays["block_tables"][:, row])


@pytest.mark.parametrize(
    ("token_ids", "logprobs", "error", "message"),
    [
        (
            np.zeros(1, np.int64),
            np.zeros(1, np.float32),
            TypeError,
            "token_ids must be an array of",
        ),
        (np.zeros(1, np.int32), np.zeros(1, np.float64), TypeError, "logprobs must be an array of"),
        ([5], np.zeros(1, np.float32), TypeError, "list"),
        (
            np.zeros(2, np.int32),
            np.zeros(2, np.float32),
            ValueError,
            r"token_ids must have shape \[1\]",
        ),
        (
            np.zeros(1, np.int32),
            np.zeros((1, 2), np.float32),
            ValueError,
            "logprobs must have shape",
        ),
        (
            np.full(1, -1, np.int32),
            np.zeros(1, np.float32),
            ValueError,
            r"token_ids\[0\] must be 0",
        ),
    ],
)
def test_wrong_samples_are_refused_and_the_batch_stays(
    scheduler, token_ids, logprobs, error, message
):
    """After the error the same batch can be updated."""
    arena = Arena(scheduler)
    batch = scheduler.schedule(arena.buffers)
    with pytest.raises(error, match=message):
        scheduler.update(batch, token_ids, logprobs)
    every_other = np.arange(8, dtype=np.int32)[5:6:2]
    scheduler.update(batch, every_other, np.zeros(1, np.float32))
    assert scheduler.output_token_ids(0, 0).tolist() == [5]
    finish(scheduler, arena)


def test_batches_are_updated_once_and_by_their_own_scheduler(scheduler):
    """A stale or foreign batch changes nothing."""
    arena = Arena(scheduler)
    other = Scheduler(**SETTINGS)
    other.add_request(0, [1, 2, 3], max_tokens=4)
    foreign = other.schedule(Arena(other).buffers)
    samples = np.array([5], np.int32), np.zeros(1, np.float32)
    batch = scheduler.schedule(arena.buffers)
    with pytest.raises(RuntimeError, match="batch 2 cannot be scheduled"):
        scheduler.schedule(arena.buffers)
    for call in (lambda: scheduler.update(foreign, *samples), lambda: scheduler.requeue(foreign)):
        with pytest.raises(ValueError, match="batch 1 is of another scheduler"):
            call()
    scheduler.update(batch, *samples)
    with pytest.raises(RuntimeError, match="batch 1 cannot be updated"):
        scheduler.update(batch, *samples)
    finish(scheduler, arena)


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        ([], ValueError, "prompt must hold at least one token"),
        ([1, -1], ValueError, r"prompt_token_ids\[1\] must be from 0 to 2147483647, got -1"),
        ([1, 2**31], ValueError, r"prompt_token_ids\[1\] .* got 2147483648"),
        ([2**80], ValueError, rf"prompt_token_ids\[0\] .* got {2**80}"),
        (np.array([3, -7], np.int32), ValueError, r"prompt_token_ids\[1\] .* got -7"),
        (np.zeros((1, 2), np.int32), ValueError, r"one dimension, got shape \[1, 2\]"),
        ([1, True], TypeError, r"prompt_token_ids\[1\] must be an int, got True"),
        ([1.0], TypeError, r"prompt_token_ids\[0\] must be an int, got 1.0 of type float"),
        (np.zeros(2, np.float32), TypeError, r"prompt_token_ids\[0\] must be an int, got 0.0"),
        ([[1]], TypeError, r"prompt_token_ids\[0\] must be an int, got \[1\] of type list"),
        ([1, None], TypeError, r"prompt_token_ids\[1\] must be an int, got None"),
        ("12", TypeError, "must be a sequence of ints or an int32 array, got str"),
        (b"12", TypeError, "got bytes"),
        ({1: 2}, TypeError, "got dict"),
        (7, TypeError, "got int"),
    ],
)
def test_prompts_of_other_things_are_refused(scheduler, prompt, error, message):
    """The message names the position and the value."""
    with pytest.raises(error, match=message):
        scheduler.add_request(1, prompt, max_tokens=1)
    assert scheduler.num_waiting == 1


@pytest.mark.parametrize(
    "prompt",
    [
        (1, 2),
        range(1, 3),
        np.array([1, 2], np.int32),
        np.array([1, 0, 2, 0], np.int32)[::2],
        np.array([1, 2], np.uint16),
        [np.int64(1), np.int32(2)],
    ],
)
def test_prompts_may_be_any_sequence_of_ints(scheduler, prompt):
    """What holds ints is taken as it is."""
    scheduler.abort(0)
    scheduler.add_request(1, prompt, max_tokens=1)
    arena = Arena(scheduler)
    batch = scheduler.schedule(arena.buffers)
    assert arena.arrays["input_ids"][: batch.num_tokens].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"n": 0}, ValueError, r"n must be from 1 to max_num_seqs \(4\), got 0"),
        ({"n": 5}, ValueError, "got 5"),
        ({"n": 1.0}, TypeError, "n must be an int, got 1.0"),
        ({"max_tokens": 0}, ValueError, "max_tokens must be at least 1, got 0"),
        ({"max_tokens": -1}, ValueError, "max_tokens must be from 0 to 2147483647, got -1"),
        ({"max_tokens": True}, TypeError, "max_tokens must be an int, got True"),
        ({"min_tokens": 3}, ValueError, r"min_tokens must be at most max_tokens \(2\), got 3"),
        ({"stop_token_ids": [1, -2]}, ValueError, r"stop_token_ids\[1\] .* got -2"),
        ({"eos_token_ids": 3}, TypeError, "eos_token_ids must be a sequence"),
        ({"priority": 2**31}, ValueError, "priority must be from -2147483648"),
        ({"cache_salt": 3}, TypeError, "cache_salt must be str, bytes or None, got int"),
        ({"adapter_id": -1}, ValueError, "adapter_id must be from 0"),
        ({"text": "abc"}, TypeError, "text must be a TextDecoder or None"),
        ({"request_id": 0}, ValueError, "request_id 0 is in use"),
        ({"request_id": -1}, ValueError, "request_id must be from 0"),
        ({"request_id": "a"}, TypeError, "request_id must be an int, got 'a' of type str"),
    ],
)
def test_parameters_out_of_range_are_refused(scheduler, parameters, error, message):
    """The message names argument, bound and value; nothing has changed."""
    arguments = {"request_id": 1, "prompt_token_ids": [1], "max_tokens": 2, **parameters}
    with pytest.raises(error, match=message):
        scheduler.add_request(**arguments)
    assert scheduler.num_waiting == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_blocks": 1}, "num_blocks must be at least 2"),
        ({"block_size": 12}, "block_size must be a power of two, got 12"),
        ({"kv_groups": []}, "kv_groups must be at least one group"),
        ({"max_num_seqs": 0}, "max_num_seqs must be at least 1, got 0"),
        ({"max_num_batched_tokens": 3}, r"at least max_num_seqs \(4\), got 3"),
        ({"max_model_len": 1}, "max_model_len must be at least 2, got 1"),
        ({"max_in_flight": 3}, "max_in_flight must be 1 or 2, got 3"),
        ({"policy": "random"}, "policy must be 'fcfs' or 'priority', got 'random'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    """A bad configuration is a ValueError that names setting, bound and value."""
    with pytest.raises(ValueError, match=message):
        Scheduler(**{**SETTINGS, **settings})


class Stream:
    """A text decoder in Python: one letter per token, and a call at each."""

    def __init__(self, on_step=lambda: None):
        self.on_step = on_step

    def step(self, token_id):
        self.on_step()
        return chr(ord("a") + token_id)

    def flush(self):
        return ""

    def fork(self):
        return Stream(self.on_step)


def decoder(stream, stop=()):
    """The decoder around a stream."""
    return TextDecoder.from_stream(stream, stop=list(stop), include_stop_str_in_output=False)


def test_stop_strings_are_reported_as_given(scheduler):
    """The reason is the string, and every sequence has its own text."""
    text = decoder(Stream(), stop=["xyz", "ff"])
    scheduler.add_request(1, [9], n=2, max_tokens=9, text=text, stop_strings=["xyz", "ff"])
    finish(scheduler, Arena(scheduler))
    for sequence in scheduler.take_output(1).sequences:
        assert (sequence.finish_reason, sequence.stop_reason) == ("stop", "ff")
        assert (sequence.text, sequence.token_ids.tolist()) == ("", [5, 5])


def test_a_call_from_within_a_call_is_refused(scheduler):
    """A decoder that calls the scheduler gets an error, not a deadlock."""
    text = decoder(Stream(lambda: scheduler.num_running))
    scheduler.add_request(1, [9], max_tokens=2, text=text)
    finish(scheduler, Arena(scheduler))
    assert "the scheduler is in use by another call" in str(text.error)
    assert scheduler.take_output(1).sequences[0].token_ids.tolist() == [5, 5]


def test_a_call_from_another_thread_is_refused_while_one_runs(scheduler):
    """The thread that comes second gets an error; the first one finishes its step."""
    has_entered, may_go_on = threading.Event(), threading.Event()

    def wait():
        has_entered.set()
        assert may_go_on.wait(30)

    scheduler.add_request(1, [9], max_tokens=1, text=decoder(Stream(wait)))
    arena = Arena(scheduler)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(step, scheduler, arena)
        assert has_entered.wait(30)
        for call in (
            scheduler.stats,
            scheduler.check_invariants,
            lambda: scheduler.add_request(2, [1], max_tokens=1),
            lambda: scheduler.schedule(arena.buffers),
            lambda: scheduler.abort(1),
        ):
            with pytest.raises(RuntimeError, match="in use by another call"):
                call()
        may_go_on.set()
        assert first.result(30).finished == [1]
    finish(scheduler, arena)


def test_threads_that_race_never_break_the_books():
    """Calls interleave at every point that the interpreter offers; each succeeds or raises."""
    scheduler = Scheduler(**SETTINGS)
    ids = itertools.count()

    def hammer(_):
        arena = Arena(scheduler)
        for _ in range(200):
            with contextlib.suppress(RuntimeError, ValueError):
                scheduler.add_request(next(ids), [1, 2, 3, 4, 5], max_tokens=3)
            with contextlib.suppress(RuntimeError, ValueError):
                step(scheduler, arena)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(hammer, range(2)))
    finally:
        sys.setswitchinterval(interval)
    scheduler.check_invariants()
    finish(scheduler, Arena(scheduler))
