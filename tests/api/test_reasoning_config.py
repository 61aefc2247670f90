"""ReasoningConfig and thinking_token_budget: what is taken, and what is refused with which words."""

import pytest

from pagedkv import EngineConfig, ReasoningConfig, SamplingParams
from pagedkv.thinking_markers import ThinkingMarkers, thinking_markers

STRINGS = {"reasoning_start_str": "<think>", "reasoning_end_str": "</think>"}
IDS = {"reasoning_start_token_ids": [5], "reasoning_end_token_ids": [6, 7]}


class LetterTokenizer:
    """An id per letter."""

    def encode(self, text, *, add_special_tokens):
        assert not add_special_tokens
        return [ord(letter) for letter in text if letter.isalnum()]


@pytest.mark.parametrize("given", [STRINGS, IDS, STRINGS | {"reasoning_end_token_ids": None}])
def test_an_object_and_a_dict_are_the_same(given):
    settings = EngineConfig.from_arguments("demo", {"reasoning_config": given})
    assert settings.reasoning_config == ReasoningConfig(**given)
    again = EngineConfig.from_arguments("demo", {"reasoning_config": ReasoningConfig(**given)})
    assert again == settings


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({}, ValueError, "reasoning_start_str and reasoning_start_token_ids, got neither"),
        (
            {"reasoning_start_str": "<think>"},
            ValueError,
            "reasoning_end_str and reasoning_end_token_ids, got neither",
        ),
        (STRINGS | IDS, ValueError, "reasoning_start_token_ids, got both"),
        (STRINGS | {"reasoning_end_str": ""}, ValueError, "reasoning_end_str is empty"),
        (STRINGS | {"reasoning_end_str": 5}, TypeError, "reasoning_end_str must be a str, got 5"),
        (
            STRINGS | {"reasoning_end_str": "<think>"},
            ValueError,
            "begins thinking and the one that ends it must differ, got '<think>'",
        ),
        (IDS | {"reasoning_end_token_ids": (5,)}, ValueError, "must differ"),
        (IDS | {"reasoning_end_token_ids": []}, ValueError, "reasoning_end_token_ids is empty"),
        (IDS | {"reasoning_end_token_ids": [-1]}, ValueError, r"token_ids\[0\] must be non-neg"),
        (IDS | {"reasoning_end_token_ids": ["a"]}, TypeError, r"token_ids\[0\] must be an int"),
        (IDS | {"reasoning_end_token_ids": [1] * 257}, ValueError, "takes at most 256 ids"),
        ({"reasoning_begin_str": "a"}, TypeError, "did you mean 'reasoning_"),
        ("<think>", TypeError, "reasoning_config must be a ReasoningConfig, a dict or None"),
    ],
)
def test_a_wrong_value_is_named(given, error, message):
    with pytest.raises(error, match=message):
        EngineConfig.from_arguments("demo", {"reasoning_config": given})


def test_strings_become_the_ids_of_the_tokenizer():
    markers = thinking_markers(
        ReasoningConfig(reasoning_start_str="<a>", reasoning_end_str="<bc>"),
        LetterTokenizer(),
        vocab_size=128,
    )
    assert markers == ThinkingMarkers(start=(97,), end=(98, 99))


@pytest.mark.parametrize(
    ("given", "tokenizer", "message"),
    [
        (STRINGS, None, r"needs a tokenizer, .*; give reasoning_start_token_ids"),
        (STRINGS, LetterTokenizer(), "have the same token ids"),
        (
            {"reasoning_start_str": "<>", "reasoning_end_str": "b"},
            LetterTokenizer(),
            "reasoning_start_str='<>' has no tokens",
        ),
        (
            IDS | {"reasoning_end_token_ids": [6, 199]},
            None,
            r"reasoning_end_token_ids has token id 199, which is outside the vocabulary \(0 to 119\)",
        ),
        (
            {"reasoning_start_str": "é", "reasoning_end_token_ids": [6]},
            LetterTokenizer(),
            "reasoning_start_str='é' has token id 233, which is outside",
        ),
    ],
)
def test_markers_that_the_model_does_not_have_are_refused(given, tokenizer, message):
    with pytest.raises(ValueError, match=message):
        thinking_markers(ReasoningConfig(**given), tokenizer, vocab_size=120)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"thinking_token_budget": -2}, ValueError, "must be non-negative, got -2; -1 or None"),
        ({"thinking_token_budget": 1.0}, TypeError, "must be an int or None, got 1.0"),
        ({"thinking_token_budget": True}, TypeError, "must be an int or None, got True"),
        (
            {"thinking_token_budget": 4, "structured_outputs": {"regex": "a"}},
            ValueError,
            "thinking_token_budget and structured_outputs were both given",
        ),
    ],
)
def test_a_wrong_budget_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        SamplingParams(**arguments)


def test_a_budget_of_minus_1_is_none():
    params = SamplingParams(thinking_token_budget=-1, structured_outputs={"regex": "a"})
    assert params.thinking_token_budget is None
    assert SamplingParams(thinking_token_budget=0).thinking_token_budget == 0
