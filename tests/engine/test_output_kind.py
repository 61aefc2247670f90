"""output_kind and stream_interval: what a loop of one's own gets, and when."""

import pytest

from pagedkv import RequestOutputKind, SamplingParams

CUMULATIVE, DELTA, FINAL_ONLY = RequestOutputKind


def run(engine, **arguments):
    params = SamplingParams(
        **{"n": 2, "seed": 3, "max_tokens": 9, "ignore_eos": True, "logprobs": 1, **arguments}
    )
    engine.add_request("a", "Once upon a time", params)
    outputs = []
    while engine.has_unfinished_requests():
        outputs += engine.step()
    return outputs


def joined(outputs, index):
    """A sequence put together from the outputs of deltas."""
    parts = [part for output in outputs for part in output.outputs if part.index == index]
    return (
        "".join(part.text for part in parts),
        [token_id for part in parts for token_id in part.token_ids],
        [entry for part in parts for entry in part.logprobs],
    )


def test_final_only_is_the_last_cumulative_output_alone(engine):
    *partial, last = run(engine)
    (final,) = run(engine, output_kind=FINAL_ONLY)
    assert final.outputs == last.outputs
    assert final.finished
    assert [output.finished for output in partial] == [False] * 8


def test_joined_deltas_of_each_sequence_are_its_final_output(engine):
    (final,) = run(engine, output_kind=FINAL_ONLY)
    outputs = run(engine, output_kind=DELTA)
    assert [output.finished for output in outputs] == [False] * 8 + [True]
    for expected in final.outputs:
        text, token_ids, logprobs = joined(outputs, expected.index)
        assert (text, token_ids) == (expected.text, expected.token_ids)
        assert logprobs == expected.logprobs
    assert all(len(part.token_ids) == 1 for output in outputs for part in output.outputs)
    assert outputs[-1].outputs[0].cumulative_logprob == final.outputs[0].cumulative_logprob
    assert [part.finish_reason for part in outputs[-1].outputs] == ["length", "length"]


def test_a_sequence_that_ended_is_not_in_later_deltas(engine):
    """One of the two ends early, at a token of its own."""
    (final,) = run(engine, output_kind=FINAL_ONLY)
    first, second = (output.token_ids for output in final.outputs)
    stop = next(token_id for token_id in first[2:] if token_id not in second)
    outputs = run(engine, output_kind=DELTA, stop_token_ids=[stop])
    ended = [part.index for part in outputs[-1].outputs]
    assert ended == [1]
    early = [part for output in outputs for part in output.outputs if part.index == 0][-1]
    assert early.finish_reason == "stop"


@pytest.mark.parametrize("kind", [CUMULATIVE, DELTA])
def test_an_interval_delivers_the_first_token_at_once_and_the_others_in_groups(engine, kind):
    (final,) = run(engine, n=1, output_kind=FINAL_ONLY)
    outputs = run(engine, n=1, output_kind=kind, stream_interval=3)
    lengths = [len(output.outputs[0].token_ids) for output in outputs]
    assert lengths == ([1, 3, 3, 2] if kind is DELTA else [1, 4, 7, 9])
    if kind is DELTA:
        assert joined(outputs, 0)[:2] == (final.outputs[0].text, final.outputs[0].token_ids)
    assert outputs[-1].finished


def test_best_of_is_delivered_at_the_end_whatever_the_kind(engine):
    for kind in (CUMULATIVE, DELTA, FINAL_ONLY):
        (output,) = run(engine, n=2, best_of=4, output_kind=kind)
        assert output.finished
        assert [len(part.token_ids) for part in output.outputs] == [9, 9]


def test_a_stream_of_final_only_yields_each_sequence_once(llm):
    params = SamplingParams(n=2, seed=3, max_tokens=9, output_kind=FINAL_ONLY)
    (expected,) = llm.generate("Once", params, use_tqdm=False)
    deltas = list(llm.stream("Once", params))
    assert [(d.index, d.text, d.token_ids) for d in deltas] == [
        (output.index, output.text, output.token_ids) for output in expected.outputs
    ]


def test_a_stream_with_an_interval_and_logprobs_loses_nothing(llm):
    params = SamplingParams(seed=3, max_tokens=11, stream_interval=4, logprobs=2, ignore_eos=True)
    (expected,) = llm.generate("Once", params, use_tqdm=False)
    deltas = list(llm.stream("Once", params))
    assert [len(delta.token_ids) for delta in deltas] == [1, 4, 4, 2]
    assert "".join(delta.text for delta in deltas) == expected.outputs[0].text
    assert [e for delta in deltas for e in delta.logprobs] == expected.outputs[0].logprobs


def test_a_request_that_fails_hands_out_what_was_pending(engine, monkeypatch):
    """Tokens held back by an interval come with the error."""
    params = SamplingParams(
        temperature=0, max_tokens=9, ignore_eos=True, output_kind=DELTA, stream_interval=5
    )
    engine.add_request("a", "Once", params)
    outputs = engine.step() + engine.step() + engine.step()

    def fail(*arguments):
        msg = "broken"
        raise RuntimeError(msg)

    monkeypatch.setattr(engine.parts.batches, "_forward", fail)
    outputs += engine.step()
    assert [len(output.outputs[0].token_ids) for output in outputs] == [1, 2]
    assert outputs[-1].error == "RuntimeError: broken"
    assert outputs[-1].outputs[0].finish_reason == "error"
