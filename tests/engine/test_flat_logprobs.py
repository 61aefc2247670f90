"""Flat log-probabilities are the list of dicts, kept in other memory."""

import pytest

from pagedkv import FlatLogprobs, Logprob, SamplingParams

POSITIONS = [
    None,
    {5: Logprob(logprob=-1.0, rank=2, decoded_token="a"), 6: Logprob(logprob=-0.5, rank=1)},
    {7: Logprob(logprob=-0.1, rank=1, decoded_token="b")},
]


@pytest.fixture
def flat():
    flat = FlatLogprobs()
    for position in POSITIONS:
        flat.append((position or {}).items())
    return flat


def test_positions_are_those_that_were_added(flat):
    assert len(flat) == 3
    assert list(flat) == POSITIONS
    assert [flat[i] for i in (0, 1, -1)] == POSITIONS
    assert flat.token_ids == [5, 6, 7]
    assert (flat.start_indices, flat.end_indices) == ([0, 0, 2], [0, 2, 3])
    with pytest.raises(IndexError):
        flat[3]


def test_a_slice_is_flat_and_counts_from_its_own_start(flat):
    assert isinstance(flat[1:], FlatLogprobs)
    assert list(flat[1:]) == POSITIONS[1:]
    assert flat[1:].start_indices == [0, 2]
    assert flat[:] == flat


def test_a_request_reports_the_same_in_both_forms(llm):
    arguments = {"temperature": 0, "max_tokens": 5, "logprobs": 2, "prompt_logprobs": 1}
    listed, flat = (
        llm.generate("Once", SamplingParams(**arguments, flat_logprobs=is_flat), use_tqdm=False)[0]
        for is_flat in (False, True)
    )
    assert isinstance(flat.prompt_logprobs, FlatLogprobs)
    assert list(flat.prompt_logprobs) == listed.prompt_logprobs
    assert isinstance(flat.outputs[0].logprobs, FlatLogprobs)
    assert list(flat.outputs[0].logprobs) == listed.outputs[0].logprobs


def test_flat_deltas_join_to_the_flat_whole(llm):
    params = SamplingParams(temperature=0, max_tokens=5, logprobs=1, flat_logprobs=True)
    (whole,) = llm.generate("Once", params, use_tqdm=False)
    parts = [entry for delta in llm.stream("Once", params) for entry in delta.logprobs]
    assert parts == list(whole.outputs[0].logprobs)
