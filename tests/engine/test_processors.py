"""Fields that change logits, from the call to the tokens; and what cannot be served, refused before anything starts."""

import math
import re

import pytest
import torch

from pagedkv import LLM, SamplingParams

VOCAB = 1024


def run(llm, prompt="Once upon a time", **arguments):
    params = SamplingParams(
        **{"temperature": 0, "max_tokens": 8, "ignore_eos": True, "seed": 1, **arguments}
    )
    (output,) = llm.generate([prompt], params, use_tqdm=False)
    assert output.error is None
    return output.outputs[0]


def test_a_bias_makes_a_token_certain_or_impossible(llm):
    token_id = run(llm).token_ids[2]
    assert set(run(llm, logit_bias={9: 100}).token_ids) == {9}
    assert token_id not in run(llm, logit_bias={token_id: -100}).token_ids


def test_only_allowed_tokens_are_generated(llm):
    allowed = [50, 60, 70]
    assert set(run(llm, allowed_token_ids=allowed, temperature=1.5).token_ids) <= set(allowed)


def test_a_bad_word_does_not_come_at_the_start_or_after_a_space(llm):
    text = run(llm, max_tokens=30).text
    words = [word.strip(".,!?") for word in text.split()]
    word = max(set(words), key=lambda word: (len(word), word))
    assert word in words
    barred = run(llm, max_tokens=30, bad_words=[word]).text
    assert word not in [each.strip(".,!?") for each in barred.split()]


def test_the_ids_of_bad_words_are_those_with_and_without_a_space(llm):
    tokenizer = llm.llm_engine.tokenizer
    seen = []

    def look(token_ids, logits):
        seen.append(token_ids)
        return logits

    params = SamplingParams(bad_words=["fox", "two words"], logits_processors=[look], max_tokens=3)
    (request,) = llm.llm_engine.prepare(["Once"], params)
    expected = [
        tokenizer.encode(text, add_special_tokens=False)
        for text in ("fox", " fox", "two words", " two words")
    ]
    assert sorted(request.params.bad_words_token_ids) == sorted(expected)
    assert params.bad_words_token_ids == [], "the caller's own parameters are left alone"


def test_functions_of_both_shapes_see_what_was_generated(llm):
    seen = []

    def with_output(output_ids, logits):
        seen.append(list(output_ids))
        return logits

    def with_prompt(prompt_ids, output_ids, logits):
        assert list(prompt_ids) == [5, 6, 7]
        logits[:] = -math.inf
        logits[100 + len(output_ids)] = 0.0
        return logits

    completion = run(llm, [5, 6, 7], logits_processors=[with_output, with_prompt], max_tokens=3)
    assert completion.token_ids == [100, 101, 102]
    assert seen == [[], [100], [100, 101]]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda ids, logits: 1 / 0, "ZeroDivisionError"),
        (lambda ids, logits: logits[:-1], "it must return a floating-point tensor of shape"),
        (lambda ids, logits: None, "got NoneType"),
        (lambda ids, logits: torch.full_like(logits, -math.inf), "no token is left"),
        (lambda ids, logits: torch.full_like(logits, math.nan), "no token is left|NaN"),
    ],
)
def test_a_function_that_misbehaves_ends_its_own_request_alone(llm, function, message):
    good = SamplingParams(temperature=0, max_tokens=4)
    bad = SamplingParams(temperature=0, max_tokens=4, logits_processors=[function])
    alone = llm.generate(["Mia"], good, use_tqdm=False)[0].outputs
    failed, fine = llm.generate(["Once", "Mia"], [bad, good], use_tqdm=False)
    assert failed.outputs[0].finish_reason == "error"
    assert re.search(message, failed.error)
    assert fine.error is None
    assert fine.outputs == alone


@pytest.mark.parametrize(
    "function",
    [
        lambda ids, logits: torch.full_like(logits, math.nan),
        lambda ids, logits: logits.index_fill(0, torch.tensor([9]), math.nan),
        lambda ids, logits: logits if len(ids) < 2 else torch.full_like(logits, -math.inf),
    ],
)
def test_numbers_that_are_none_or_bar_everything_end_a_beam_search_alone(llm, function):
    good = SamplingParams(temperature=0, max_tokens=4)
    bad = SamplingParams(
        use_beam_search=True, best_of=3, max_tokens=4, logits_processors=[function]
    )
    alone = llm.generate(["Mia"], good, use_tqdm=False)[0].outputs
    failed, fine = llm.generate(["Once", "Mia"], [bad, good], use_tqdm=False)
    assert "no token is left" in failed.error
    assert fine.error is None
    assert fine.outputs == alone


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"allowed_token_ids": [3, VOCAB]},
            "allowed_token_ids holds token id 1024 at position 1, which is outside",
        ),
        (
            {"logit_bias": {VOCAB: 1.0}},
            "logit_bias holds token id 1024, which is outside the vocabulary",
        ),
        (
            {"logit_bias": dict.fromkeys(range(VOCAB), -100)},
            "logit_bias leaves no token to generate: it is -100 for the whole vocabulary",
        ),
        (
            {"allowed_token_ids": [2], "min_tokens": 1, "ignore_eos": False},
            "min_tokens leaves no token to generate: allowed_token_ids names ending ids alone",
        ),
        ({"use_beam_search": True, "best_of": 17}, "best_of must be at most max_num_seqs"),
    ],
)
def test_what_this_model_cannot_serve_is_refused_before_anything_starts(llm, arguments, message):
    before = llm.stats()["num_requests"]
    with pytest.raises(ValueError, match=message):
        run(llm, **arguments)
    assert llm.stats()["num_requests"] == before


def test_words_need_a_tokenizer():
    with LLM(
        "demo", skip_tokenizer_init=True, kv_cache_memory_bytes=8 << 20, max_num_seqs=2
    ) as llm:
        for arguments in ({"bad_words": ["a"]}, {"stop": ["a"]}):
            with pytest.raises(ValueError, match="a tokenizer, but the engine has none"):
                run(llm, [5], **arguments)


def test_a_prompt_is_cut_to_its_last_tokens(llm):
    whole = list(range(100, 140))
    params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True, truncate_prompt_tokens=5)
    (output,) = llm.generate([whole], params, use_tqdm=False)
    assert output.prompt_token_ids == whole[-5:]
    assert output.outputs[0].token_ids == run(llm, whole[-5:], max_tokens=3).token_ids
    long = SamplingParams(temperature=0, max_tokens=3, truncate_prompt_tokens=100)
    assert len(llm.generate(["word " * 5000], long, use_tqdm=False)[0].prompt_token_ids) == 100


def test_processed_log_probabilities_are_those_of_what_is_sampled_from():
    with LLM(
        "demo", logprobs_mode="processed_logprobs", kv_cache_memory_bytes=8 << 20, max_num_seqs=2
    ) as llm:
        completion = run(llm, temperature=2.0, allowed_token_ids=[50, 60], logprobs=2)
    for entries in completion.logprobs:
        assert set(entries) == {50, 60}
        assert math.fsum(math.exp(e.logprob) for e in entries.values()) == pytest.approx(1)


def test_best_of_is_not_ranked_by_logits():
    with (
        LLM(
            "demo",
            logprobs_mode="processed_logits",
            kv_cache_memory_bytes=8 << 20,
            max_num_seqs=2,
        ) as llm,
        pytest.raises(ValueError, match=r"best_of \(2\) above n \(1\) ranks by log-probability"),
    ):
        run(llm, temperature=1.0, best_of=2)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match=r"logprobs_mode must be 'raw_logprobs' or .*, got 'raw'"):
        LLM("demo", logprobs_mode="raw")
