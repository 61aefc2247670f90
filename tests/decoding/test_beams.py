"""What beams have in common with everything else: stop strings, limits, logprobs, mixes, a pool that is too small."""

import pytest

from pagedkv import LLM, BeamSearchParams, SamplingParams

PROMPTS = ["Once upon a time", "Tell me a story about a fox.", "One windy day,", "Hello"]


@pytest.fixture(scope="module")
def llm():
    with LLM("demo", dtype="float32", kv_cache_memory_bytes=32 << 20, max_num_seqs=32) as llm:
        yield llm
        llm.llm_engine.check_invariants()
        assert llm.stats()["num_used_blocks"] == 0


def beams(width=4, **arguments):
    given = {"n": width, "best_of": width, "max_tokens": 20, **arguments}
    return SamplingParams(use_beam_search=True, **given)


def results(outputs):
    return [[(c.token_ids, c.text, c.score) for c in output.outputs] for output in outputs]


def test_the_prompt_is_computed_once_and_no_beam_is_computed_twice(llm):
    llm.reset_prefix_cache()
    before = llm.stats()["num_scheduled_tokens"]
    (output,) = llm.generate([PROMPTS[0]], beams(8, ignore_eos=True), use_tqdm=False)
    num_run = llm.stats()["num_scheduled_tokens"] - before
    assert num_run <= len(output.prompt_token_ids) + 8 * 19


def test_n_of_best_of_beams_are_the_best_ones(llm):
    (whole,) = llm.generate([PROMPTS[0]], beams(6), use_tqdm=False)
    (part,) = llm.generate([PROMPTS[0]], beams(6, n=2), use_tqdm=False)
    assert results([part])[0] == results([whole])[0][:2]
    assert [c.index for c in part.outputs] == [0, 1]
    scores = [c.score for c in whole.outputs]
    assert scores == sorted(scores, reverse=True)


def test_a_beam_ends_at_a_stop_string_and_its_text_ends_before_it(llm):
    (output,) = llm.generate([PROMPTS[0]], beams(4, stop=["was"], max_tokens=40), use_tqdm=False)
    stopped = [c for c in output.outputs if c.stop_reason == "was"]
    assert stopped
    assert all("was" not in c.text for c in stopped)
    assert all(c.finish_reason == "stop" for c in stopped)


def test_min_tokens_holds_endings_back(llm):
    ending = (
        llm.generate([PROMPTS[3]], beams(3, max_tokens=1), use_tqdm=False)[0].outputs[0].token_ids
    )
    (output,) = llm.generate(
        [PROMPTS[3]], beams(3, stop_token_ids=ending, min_tokens=6), use_tqdm=False
    )
    assert all(len(c.token_ids) >= 6 for c in output.outputs)
    assert all(ending[0] not in c.token_ids[:5] for c in output.outputs)


def test_logprobs_add_up_to_the_cumulative_one(llm):
    (output,) = llm.generate([PROMPTS[1]], beams(3, logprobs=2), use_tqdm=False)
    for completion in output.outputs:
        chosen = [
            position[token].logprob
            for position, token in zip(completion.logprobs, completion.token_ids, strict=True)
        ]
        assert sum(chosen) == pytest.approx(completion.cumulative_logprob, abs=1e-4)
        assert all(len(position) in (2, 3) for position in completion.logprobs)
        assert completion.score == pytest.approx(sum(chosen) / len(chosen), abs=1e-5)


def test_a_mix_gives_what_each_request_gives_alone_with_and_without_room():
    params = [
        beams(5, max_tokens=60, ignore_eos=True),
        SamplingParams(temperature=0.8, seed=3, n=3, max_tokens=60, ignore_eos=True),
        beams(2, max_tokens=50, length_penalty=0.5),
        SamplingParams(temperature=0.0, max_tokens=70, ignore_eos=True),
    ]
    arguments = {"dtype": "float32", "max_num_seqs": 24, "block_size": 8}
    with LLM("demo", kv_cache_memory_bytes=32 << 20, **arguments) as llm:
        alone = [
            results(llm.generate([prompt], one, use_tqdm=False))[0]
            for prompt, one in zip(PROMPTS, params, strict=True)
        ]
        assert results(llm.generate(PROMPTS, params, use_tqdm=False)) == alone
        num_bytes = 46 * (32 << 20) // llm.stats()["num_blocks"]
    with LLM("demo", kv_cache_memory_bytes=num_bytes, max_model_len=128, **arguments) as llm:
        tight = results(llm.generate(PROMPTS, params, use_tqdm=False))
        assert llm.stats()["num_preemptions"] > 0
        assert llm.stats()["num_used_blocks"] == 0
        llm.llm_engine.check_invariants()
    assert tight == alone


def test_beam_search_returns_whole_texts_and_scores(llm):
    (output,) = llm.beam_search(
        PROMPTS[:1], BeamSearchParams(beam_width=3, max_tokens=12), use_tqdm=False
    )
    assert len(output.sequences) == 3
    best = output.sequences[0]
    assert best.text.startswith("Once upon a time")
    assert best.score == pytest.approx(best.cum_logprob / 12, abs=1e-5)
    assert output.error is None


def test_a_width_above_the_rows_names_the_setting(llm):
    with pytest.raises(ValueError, match=r"max_num_seqs \(32\)"):
        llm.beam_search(PROMPTS[:1], BeamSearchParams(beam_width=33, max_tokens=4), use_tqdm=False)
    with pytest.raises(TypeError, match="BeamSearchParams"):
        llm.beam_search(PROMPTS[:1], SamplingParams())


def test_a_streamed_search_delivers_each_beam_once_it_has_ended(llm):
    with llm.stream(PROMPTS[2], beams(3, max_tokens=9)) as stream:
        deltas = list(stream)
        output = stream.output
    assert [delta.index for delta in deltas] == [0, 1, 2]
    assert [delta.token_ids for delta in deltas] == [c.token_ids for c in output.outputs]
    assert [delta.text for delta in deltas] == [c.text for c in output.outputs]
