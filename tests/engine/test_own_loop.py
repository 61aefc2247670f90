"""LLMEngine, for people with a loop of their own."""

import itertools

import pytest

from pagedkv import LLMEngine, SamplingParams
from pagedkv.errors import EngineClosedError

PARAMS = SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True)


def drain(engine):
    outputs = []
    while engine.has_unfinished_requests():
        outputs += engine.step()
    return outputs


def test_outputs_grow_from_step_to_step_and_end_finished(engine):
    engine.add_request("a", "Once upon a time", PARAMS)
    outputs = drain(engine)
    assert [output.finished for output in outputs] == [False] * 9 + [True]
    assert {output.request_id for output in outputs} == {"a"}
    lengths = [len(output.outputs[0].token_ids) for output in outputs]
    assert lengths == list(range(1, 11))
    for before, after in itertools.pairwise(outputs):
        assert after.outputs[0].text.startswith(before.outputs[0].text)


def test_requests_may_arrive_while_others_run(engine):
    engine.add_request("a", "Once", PARAMS)
    engine.step()
    engine.add_request("b", "Mia", PARAMS)
    assert engine.get_num_unfinished_requests() == 2
    finished = [output.request_id for output in drain(engine) if output.finished]
    assert finished == ["a", "b"]


def test_an_aborted_request_delivers_nothing_more(engine):
    engine.add_request("a", "Once", PARAMS)
    engine.add_request("b", "Mia", PARAMS)
    engine.step()
    assert engine.abort_request("a")
    assert not engine.abort_request("a")
    assert {output.request_id for output in drain(engine)} == {"b"}


def test_a_name_in_use_is_refused_and_free_again_afterwards(engine):
    engine.add_request("a", "Once", PARAMS)
    with pytest.raises(ValueError, match="request_id 'a' is in use"):
        engine.add_request("a", "Mia", PARAMS)
    drain(engine)
    engine.add_request("a", "Mia", PARAMS)
    assert drain(engine)[-1].prompt == "Mia"


@pytest.mark.parametrize("request_id", ["", None, 5])
def test_a_name_must_be_a_string(engine, request_id):
    with pytest.raises(TypeError, match="request_id must be a str that is not empty"):
        engine.add_request(request_id, "Once", PARAMS)


def test_a_step_without_requests_returns_nothing(engine):
    assert engine.step() == []


def test_partial_outputs_carry_logprobs(engine):
    engine.add_request("a", "Once", SamplingParams(max_tokens=3, logprobs=1, ignore_eos=True))
    for output in drain(engine):
        completion = output.outputs[0]
        assert len(completion.logprobs) == len(completion.token_ids)


def test_a_closed_engine_refuses():
    engine = LLMEngine("demo", kv_cache_memory_bytes=8 << 20, max_num_seqs=2)
    engine.close()
    with pytest.raises(EngineClosedError):
        engine.add_request("a", "Once", PARAMS)
