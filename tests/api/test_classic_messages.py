"""The messages that code and tests written for the classic API match on, word for word."""

import re

import pytest

from pagedkv import SamplingParams

BEAMS = {"use_beam_search": True, "best_of": 2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n must be at least 1, got 0"),
        ({"temperature": -0.5}, "temperature must be non-negative, got -0.5"),
        ({"top_p": 1.5}, "top_p must be in (0, 1], got 1.5"),
        ({"top_k": -3}, "top_k must be -1 (disable), or at least 1, got -3"),
        ({"min_p": -0.1}, "min_p must be in [0, 1], got -0.1"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ({"logprobs": -5}, "logprobs must be non-negative, got -5"),
        ({"presence_penalty": 3.0}, "presence_penalty must be in [-2, 2], got 3.0"),
        ({"frequency_penalty": -3.0}, "frequency_penalty must be in [-2, 2], got -3.0"),
        ({"best_of": 2, "n": 3}, "best_of must be greater than or equal to n"),
        (
            {"use_beam_search": True, "best_of": 1},
            "best_of must be greater than 1 when using beam search. Got 1",
        ),
        ({"use_beam_search": True}, "best_of must be greater than 1 when using beam search. Got 1"),
        ({**BEAMS, "temperature": 0.5}, "temperature must be 0 when using beam search."),
        ({**BEAMS, "top_p": 0.5}, "top_p must be 1 when using beam search."),
        ({**BEAMS, "top_k": 5}, "top_k must be -1 when using beam search."),
        (
            {**BEAMS, "early_stopping": "always"},
            "early_stopping must be True, False, or 'never', got always",
        ),
        (
            {"early_stopping": True},
            "early_stopping is not effective and must be False when not using beam search.",
        ),
        (
            {"early_stopping": "never"},
            "early_stopping is not effective and must be False when not using beam search.",
        ),
        (
            {"length_penalty": 0.9},
            "length_penalty is not effective and must be the default value of 1.0 when not using beam search.",
        ),
        ({"best_of": 2, "temperature": 0}, "best_of must be 1 when using greedy sampling. Got 2"),
        (
            {"stop": "a", "detokenize": False},
            "stop strings are only supported when detokenize is True. Set detokenize=True to use stop.",
        ),
    ],
)
def test_a_classic_mistake_is_answered_in_the_classic_words(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        SamplingParams(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {**BEAMS},
        {**BEAMS, "temperature": 0.0, "top_k": -1, "top_p": 1.0},
        {**BEAMS, "early_stopping": "never", "length_penalty": 0.0},
        {**BEAMS, "early_stopping": True, "length_penalty": -2.0},
        {"use_beam_search": True, "n": 4},
        {"n": 3, "best_of": 3},
        {"n": 3, "best_of": 5},
        {"temperature": 0.0, "best_of": 1},
        {"temperature": 2.5},
    ],
)
def test_what_the_classic_api_allowed_is_allowed(arguments):
    SamplingParams(**arguments)
