"""The scheduler driven from Python: every request generates what it would alone."""

from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.fake_model import Arena, FakeModel, expected_output
from pagedkv._core import Scheduler
from pagedkv.errors import QueueFullError, RequestTooLongError, UnknownRequestError

DEFAULTS = {
    "num_blocks": 33,
    "block_size": 4,
    "kv_groups": [("full", 0)],
    "max_num_seqs": 8,
    "max_num_batched_tokens": 16,
    "max_model_len": 64,
}


class Driver:
    """A scheduler with a fake model, stepped as an engine would."""

    def __init__(self, *, num_padded=0, **settings):
        settings = {**DEFAULTS, **settings}
        self.scheduler = Scheduler(**settings)
        self.max_in_flight = settings.get("max_in_flight", 1)
        self.arenas = [
            Arena(self.scheduler, num_padded=num_padded) for _ in range(self.max_in_flight)
        ]
        self.model = FakeModel(
            self.scheduler,
            kv_groups=settings["kv_groups"],
            num_blocks=settings["num_blocks"],
            block_size=settings["block_size"],
        )
        self.in_flight = deque()
        self.num_scheduled = 0
        self.expected = {}
        self.results = {}
        self.max_batch_rows = 0

    def add(self, request_id, prompt, *, n=1, max_tokens=8, **parameters):
        self.scheduler.add_request(request_id, prompt, n=n, max_tokens=max_tokens, **parameters)
        eos_token_ids = parameters.get("eos_token_ids", ())
        self.expected[request_id] = [
            expected_output(prompt, index, max_tokens=max_tokens, eos_token_ids=eos_token_ids)
            for index in range(n)
        ]

    def schedule(self):
        arena = self.arenas[self.num_scheduled % self.max_in_flight]
        batch = self.scheduler.schedule(arena.buffers)
        if batch is not None:
            self.num_scheduled += 1
            self.in_flight.append((batch, arena))
        return batch

    def update(self):
        """Runs the oldest batch in flight."""
        batch, arena = self.in_flight.popleft()
        token_ids = self.model.run(batch, arena.arrays)
        output = self.scheduler.update(batch, token_ids, np.zeros(len(token_ids), np.float32))
        self.scheduler.check_invariants()
        for request_id in output.finished:
            self.results[request_id] = self.scheduler.take_output(request_id)
        return output

    def run(self):
        """Steps until nothing is left, then compares all outputs."""
        while self.scheduler.has_unfinished or self.in_flight:
            while len(self.in_flight) < self.max_in_flight and self.schedule() is not None:
                pass
            assert self.in_flight, "no progress"
            self.update()
        generated = {
            request_id: [sequence.token_ids.tolist() for sequence in result.sequences]
            for request_id, result in self.results.items()
        }
        assert generated == {request_id: self.expected[request_id] for request_id in generated}
        stats = self.scheduler.stats()
        assert stats["num_used_blocks"] == 0
        assert stats["num_free_blocks"] == stats["num_blocks"]
        return stats


PROMPTS = st.tuples(st.integers(0, 2), st.integers(1, 30))
REQUESTS = st.lists(st.tuples(PROMPTS, st.integers(1, 3), st.integers(1, 12)), max_size=10)


@given(
    requests=REQUESTS,
    kv_groups=st.sampled_from(
        [
            [("full", 0)],
            [("full", 0), ("sliding", 6)],
            [("full", 0), ("chunked", 8)],
        ]
    ),
    num_blocks=st.sampled_from([56, 120]),
    enable_prefix_caching=st.booleans(),
    max_in_flight=st.sampled_from([1, 2]),
    num_padded=st.sampled_from([0, 3]),
)
def test_what_a_request_generates_does_not_depend_on_what_else_runs(requests, **settings):
    """Chunks, prefix hits, forks, copies, preemptions and late ids leave no trace in the outputs."""
    driver = Driver(**settings)
    for request_id, ((first, length), n, max_tokens) in enumerate(requests):
        prompt = [(first + i) % 3 for i in range(length)]
        driver.add(request_id, prompt, n=n, max_tokens=max_tokens)
    driver.run()
    assert sorted(driver.results) == list(range(len(requests)))


@pytest.mark.parametrize("max_in_flight", [1, 2])
def test_preempted_requests_resume_where_they_were(max_in_flight):
    """A pool too small for all costs time, never tokens."""
    driver = Driver(num_blocks=14, max_in_flight=max_in_flight, enable_prefix_caching=False)
    for request_id in range(5):
        driver.add(request_id, [request_id] * 9, max_tokens=20)
    stats = driver.run()
    assert stats["num_preemptions"] > 0
    assert sum(result.num_preemptions for result in driver.results.values()) > 0


def test_a_long_prompt_runs_in_chunks_and_is_found_again():
    """A step never runs more tokens than its budget, and the second run starts from the cache."""
    driver = Driver()
    prompt = list(range(40))
    driver.add(0, prompt)
    assert driver.schedule().num_tokens == 16
    driver.update()
    driver.run()
    driver.add(1, prompt)
    driver.run()
    assert driver.results[0].num_cached_tokens == 0
    assert driver.results[1].num_cached_tokens == 39


def test_siblings_share_the_prompt_until_they_write():
    """Prefill runs once for n sequences; the first write into the shared block copies it."""
    driver = Driver()
    driver.add(0, [1, 2, 3, 4, 5], n=3)
    batch = driver.schedule()
    assert (batch.num_tokens, batch.num_samples) == (5, 3)
    driver.update()
    assert driver.scheduler.stats()["num_saved_blocks"] == 4
    assert driver.schedule().num_block_copies == 2
    driver.update()
    assert driver.run()["num_forks"] == 2


def test_a_requeued_batch_does_not_count():
    """After a failed forward pass the same requests run again and generate the same tokens."""
    driver = Driver()
    driver.add(3, [1, 2, 3], n=2)
    driver.add(4, [7, 8])
    driver.schedule()
    driver.update()
    driver.schedule()
    batch, _ = driver.in_flight.pop()
    assert sorted(driver.scheduler.requeue(batch)) == [3, 4]
    driver.scheduler.check_invariants()
    assert driver.scheduler.num_waiting == 2
    with pytest.raises(RuntimeError, match="cannot be requeued"):
        driver.scheduler.requeue(batch)
    driver.run()
    assert sorted(driver.results) == [3, 4]


def test_an_aborted_request_returns_what_it_has_and_frees_its_blocks():
    """Waiting, running or with a token on its way: an abort ends it at once."""
    driver = Driver(max_num_seqs=2, max_num_batched_tokens=8)
    for request_id in range(3):
        driver.add(request_id, [request_id, 1, 2])
    driver.schedule()
    driver.update()
    assert (driver.scheduler.num_running, driver.scheduler.num_waiting) == (2, 1)
    driver.schedule()
    result = driver.scheduler.abort(0)
    assert result.sequences[0].finish_reason == "abort"
    assert result.sequences[0].token_ids.tolist() == driver.expected[0][0][:1]
    assert driver.update().accepted.tolist() == [False, True]
    assert driver.scheduler.abort(2).sequences[0].token_ids.size == 0
    assert driver.scheduler.abort(2) is None
    driver.run()
    assert list(driver.results) == [1]


def test_priorities_decide_who_starts_first():
    """Lower is sooner, whoever came first."""
    driver = Driver(policy="priority", max_num_seqs=1)
    for request_id, priority in enumerate([5, 0, -3]):
        driver.add(request_id, [request_id], max_tokens=2, priority=priority)
    driver.run()
    assert list(driver.results) == [2, 1, 0]


def test_a_full_queue_refuses_and_takes_again():
    """The bound holds, and refusing changes nothing."""
    driver = Driver(max_num_waiting=2)
    driver.add(0, [1])
    driver.add(1, [2])
    with pytest.raises(QueueFullError, match="2 requests are waiting, which is max_num_waiting"):
        driver.scheduler.add_request(2, [3], max_tokens=1)
    driver.schedule()
    driver.update()
    driver.add(2, [3])
    driver.run()
    assert sorted(driver.results) == [0, 1, 2]


def test_a_request_that_can_never_fit_is_refused_with_the_setting_to_raise():
    """Numbers and remedy, before anything starts."""
    scheduler = Driver(num_blocks=9).scheduler
    with pytest.raises(RequestTooLongError, match=r"raise kv_cache_memory_bytes.*lower max_tokens"):
        scheduler.add_request(0, [1] * 20, n=4, max_tokens=20)
    with pytest.raises(RequestTooLongError, match="This model's maximum context length is 64"):
        scheduler.add_request(0, [1] * 64, max_tokens=1)
    assert issubclass(RequestTooLongError, ValueError)
    assert not scheduler.has_unfinished


def test_streamed_requests_report_every_token_and_others_none():
    """Deltas cost nothing for those who do not ask."""
    driver = Driver()
    driver.add(0, [1, 2], n=2, stream=True, max_tokens=3)
    driver.add(1, [1, 2])
    tokens = {0: [], 1: []}
    first_tokens = []
    while driver.scheduler.has_unfinished:
        driver.schedule()
        output = driver.update()
        first_tokens += output.first_tokens
        for request_id, index, text, token_ids, finish_reason in output.deltas:
            assert (request_id, text) == (0, "")
            tokens[index] += token_ids
            assert finish_reason == ("length" if len(tokens[index]) == 3 else None)
    assert list(tokens.values()) == driver.expected[0]
    assert sorted(first_tokens) == [0, 1]


def test_ending_ids_end_sequences_with_their_reason():
    """eos, the request's own ids, min_tokens and ignore_eos."""
    scheduler, token = Driver().scheduler, 7
    arena = Arena(scheduler)
    cases = {
        0: ({"eos_token_ids": [7]}, 1, "stop", None),
        1: ({"stop_token_ids": np.array([7], np.int32)}, 1, "stop", 7),
        2: ({"eos_token_ids": (7,), "min_tokens": 2}, 2, "stop", None),
        3: ({"eos_token_ids": [7], "ignore_eos": True}, 3, "length", None),
    }
    for request_id, (parameters, *_) in cases.items():
        scheduler.add_request(request_id, [1], max_tokens=3, **parameters)
    while (batch := scheduler.schedule(arena.buffers)) is not None:
        scheduler.update(
            batch,
            np.full((batch.num_samples, 1), token, np.int32),
            np.full((batch.num_samples, 1), -0.5, np.float32),
        )
    for request_id, (_, num_tokens, finish_reason, stop_reason) in cases.items():
        (sequence,) = scheduler.take_output(request_id).sequences
        assert sequence.token_ids.tolist() == [7] * num_tokens
        assert sequence.cumulative_logprob == -0.5 * num_tokens
        assert (sequence.finish_reason, sequence.stop_reason) == (finish_reason, stop_reason)


def test_output_is_taken_once_and_only_when_it_is_there():
    """Unknown, unfinished and taken requests are told apart."""
    driver = Driver()
    driver.add(0, [1, 2])
    with pytest.raises(RuntimeError, match="has not finished"):
        driver.scheduler.take_output(0)
    driver.schedule()
    driver.update()
    assert driver.scheduler.output_token_ids(0, 0).tolist() == driver.expected[0][0][:1]
    with pytest.raises(ValueError, match="index must be below 1, got 1"):
        driver.scheduler.output_token_ids(0, 1)
    driver.run()
    for call in (driver.scheduler.take_output, lambda i: driver.scheduler.output_token_ids(i, 0)):
        with pytest.raises(UnknownRequestError, match="request_id 0 is unknown"):
            call(0)


def test_the_prefix_cache_is_reset_only_when_nothing_runs():
    """Content in use is never forgotten."""
    driver = Driver()
    driver.add(0, list(range(12)))
    driver.schedule()
    assert not driver.scheduler.reset_prefix_cache()
    driver.update()
    driver.run()
    assert driver.scheduler.stats()["num_cached_blocks"] > 0
    assert driver.scheduler.reset_prefix_cache()
    assert driver.scheduler.stats()["num_cached_blocks"] == 0
