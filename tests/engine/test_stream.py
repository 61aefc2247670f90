"""stream(): deltas as they appear, and what happens when nobody wants the rest."""

import gc

import pytest

from pagedkv import LLM, SamplingParams

PARAMS = SamplingParams(temperature=0.0, max_tokens=30)


def used_blocks(llm):
    return llm.stats()["num_used_blocks"]


def test_joined_deltas_are_the_text_and_the_ids_of_generate(llm):
    (expected,) = llm.generate("Once upon a time", PARAMS, use_tqdm=False)
    stream = llm.stream("Once upon a time", PARAMS)
    deltas = list(stream)
    assert "".join(delta.text for delta in deltas) == expected.outputs[0].text
    assert [t for delta in deltas for t in delta.token_ids] == expected.outputs[0].token_ids
    assert [delta.finish_reason for delta in deltas] == [None] * (len(deltas) - 1) + ["length"]
    assert stream.output.outputs == expected.outputs
    assert len(deltas) > 5


def test_deltas_of_several_samples_carry_their_index(llm):
    params = SamplingParams(n=3, seed=2, max_tokens=12)
    (expected,) = llm.generate("Once", params, use_tqdm=False)
    parts = ["", "", ""]
    for delta in llm.stream("Once", params):
        parts[delta.index] += delta.text
    assert parts == [completion.text for completion in expected.outputs]


def test_a_stop_string_is_never_shown_half(llm):
    full = "".join(delta.text for delta in llm.stream("Once upon a time", PARAMS))
    stop = full[12:17]
    params = SamplingParams(temperature=0.0, max_tokens=30, stop=stop)
    shown = "".join(delta.text for delta in llm.stream("Once upon a time", params))
    assert shown == full[: full.index(stop)]


def test_closing_a_stream_frees_its_blocks_and_ends_it(llm):
    stream = llm.stream("Once upon a time", PARAMS)
    next(stream)
    assert used_blocks(llm) > 0
    stream.close()
    assert used_blocks(llm) == 0
    assert list(stream) == []
    stream.close()


def test_leaving_the_with_block_frees_the_blocks(llm):
    with llm.stream("Once upon a time", PARAMS) as stream:
        next(stream)
        assert used_blocks(llm) > 0
    assert used_blocks(llm) == 0


def test_dropping_a_stream_frees_its_blocks(llm):
    stream = llm.stream("Once upon a time", PARAMS)
    next(stream)
    del stream
    gc.collect()
    assert used_blocks(llm) == 0


def test_a_stream_that_was_never_read_is_ended_too(llm):
    llm.stream("Once upon a time", PARAMS)
    gc.collect()
    assert not llm.llm_engine.has_unfinished_requests()


def test_breaking_out_of_the_loop_leaves_the_engine_usable(llm):
    for delta in llm.stream("Once upon a time", PARAMS):
        if delta.text:
            break
    gc.collect()
    assert not llm.llm_engine.has_unfinished_requests()


def test_two_streams_and_a_generate_advance_together(llm):
    expected = [o.outputs[0].text for o in llm.generate(["Once", "Mia"], PARAMS, use_tqdm=False)]
    first, second = llm.stream("Once", PARAMS), llm.stream("Mia", PARAMS)
    begin = [next(first).text, next(second).text]
    llm.generate("Hello", PARAMS, use_tqdm=False)
    rest = ["".join(delta.text for delta in stream) for stream in (first, second)]
    assert [a + b for a, b in zip(begin, rest, strict=True)] == expected


def test_a_bad_stream_raises_at_the_call_and_not_at_the_first_delta(llm):
    with pytest.raises(ValueError, match="stream\\(\\) takes one prompt, got 2"):
        llm.stream(["a", "b"], PARAMS)
    with pytest.raises(ValueError, match=r"prompts\[0\] is empty"):
        llm.stream("", PARAMS)


def test_a_stream_of_a_closed_engine_raises():
    from pagedkv import EngineClosedError

    llm = LLM("demo", kv_cache_memory_bytes=8 << 20, max_num_seqs=2)
    stream = llm.stream("Once", PARAMS)
    next(stream)
    llm.close()
    with pytest.raises(EngineClosedError, match="the engine is closed; make a new one"):
        list(stream)


def test_while_five_samples_run_the_blocks_of_their_prompt_are_held_once(llm):
    llm.reset_prefix_cache()
    with llm.stream(list(range(100, 132)), SamplingParams(n=5, seed=1, max_tokens=20)) as stream:
        next(stream)
        next(stream)
        stats = llm.stats()
    # Two blocks of prompt, referred to five times.
    assert stats["num_saved_blocks"] == 8
    assert stats["num_used_blocks"] <= 2 + 5
