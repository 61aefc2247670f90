"""Prompts in every accepted spelling, and what the others are answered with."""

import numpy as np
import pytest

from pagedkv import SamplingParams
from pagedkv.requests import (
    check_prompt_length,
    check_token_ids,
    normalize_params,
    normalize_priorities,
    normalize_prompts,
)


def shapes(prompts, prompt_token_ids=None):
    return [
        (prompt.text, prompt.token_ids, prompt.cache_salt)
        for prompt in normalize_prompts(prompts, prompt_token_ids)
    ]


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ("a", [("a", None, None)]),
        (["a", "b"], [("a", None, None), ("b", None, None)]),
        (("a",), [("a", None, None)]),
        ([1, 2], [(None, [1, 2], None)]),
        ([[1], [2, 3]], [(None, [1], None), (None, [2, 3], None)]),
        ({"prompt": "a"}, [("a", None, None)]),
        ({"prompt_token_ids": [1]}, [(None, [1], None)]),
        ({"prompt": "a", "prompt_token_ids": [1]}, [("a", [1], None)]),
        (
            ["a", [1], {"prompt": "b", "cache_salt": "s"}],
            [("a", None, None), (None, [1], None), ("b", None, "s")],
        ),
        ([], []),
        (np.array([1, 2]), [(None, [1, 2], None)]),
        ([np.array([1, 2])], [(None, [1, 2], None)]),
    ],
)
def test_every_documented_spelling_is_understood(prompts, expected):
    assert shapes(prompts) == expected


def test_the_classic_spelling_takes_ids_beside_or_instead_of_texts():
    assert shapes(None, [1, 2]) == [(None, [1, 2], None)]
    assert shapes(None, [[1], [2]]) == [(None, [1], None), (None, [2], None)]
    assert shapes(["a", "b"], [[1], [2]]) == [("a", [1], None), ("b", [2], None)]
    with pytest.raises(ValueError, match="prompts has 2 entries and prompt_token_ids has 1"):
        normalize_prompts(["a", "b"], [[1]])


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (None, "prompts is missing"),
        (5, "prompts must be a text, token ids, a dict, or a list of them, got int"),
        (b"a", "prompts must be a text, .* got bytes"),
        (["a", None], r"prompts\[1\] must be a text, token ids or a dict, got NoneType"),
        (["a", 5], r"prompts\[1\] must be a text, token ids or a dict, got int"),
        ([{"prompt": 5}], r"prompts\[0\]\['prompt'\] must be a str, got 5"),
        ([{"prompt": "a", "cache_salt": 1}], r"prompts\[0\]\['cache_salt'\] must be a str, got 1"),
        ([{"promt": "a"}], r"prompts\[0\] has no parameter 'promt'; did you mean 'prompt'"),
    ],
)
def test_what_is_no_prompt_is_named_with_its_index(prompts, message):
    with pytest.raises(TypeError, match=message):
        normalize_prompts(prompts)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("", r"prompts\[0\] is empty"),
        (["a", ""], r"prompts\[1\] is empty"),
        ([{"prompt": ""}], r"prompts\[0\] is empty"),
        (["a", {}], r"prompts\[1\] must have 'prompt' or 'prompt_token_ids'"),
        (["a", "\ud800"], r"prompts\[1\] is not valid Unicode"),
        ([{"prompt": "a", "cache_salt": ""}], r"must have 1 to 128 characters, got 0"),
        ([{"prompt": "a", "cache_salt": "x" * 129}], r"must have 1 to 128 characters, got 129"),
        (
            [{"prompt": "a", "multi_modal_data": {"image": 1}}],
            "multi_modal_data=.* is not supported yet",
        ),
    ],
)
def test_a_prompt_that_cannot_run_is_named_with_its_index(prompts, message):
    with pytest.raises(ValueError, match=message):
        normalize_prompts(prompts)


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([], ValueError, "here is empty"),
        ([1, "a"], TypeError, "here must hold ints, got 'a' at position 1"),
        ([1, True], TypeError, "here must hold ints, got True at position 1"),
        ([1, 2.0], TypeError, r"here must hold ints, got 2.0 at position 1"),
        ([1, None], TypeError, "here must hold ints, got None at position 1"),
        (
            [0, -1],
            ValueError,
            r"token id -1 at position 1, which is outside the vocabulary \(0 to 99\)",
        ),
        ([5, 100], ValueError, r"token id 100 at position 1"),
        ([2**64], ValueError, f"token id {2**64} at position 0"),
    ],
)
def test_token_ids_are_checked_one_by_one(ids, error, message):
    with pytest.raises(error, match=message):
        check_token_ids(ids, vocab_size=100, where="here")


def test_good_token_ids_pass():
    check_token_ids([0, 99], vocab_size=100, where="here")
    check_token_ids([np.int64(3), 4], vocab_size=100, where="here")


def test_a_prompt_that_fills_the_context_is_answered_in_the_words_of_the_field():
    check_prompt_length(9, max_model_len=10, where="here")
    with pytest.raises(ValueError, match="This model's maximum context length is 10 tokens, but"):
        check_prompt_length(10, max_model_len=10, where="here")


def test_parameters_are_one_for_all_or_one_each_and_copies():
    own = SamplingParams(max_tokens=3)
    (first, second) = normalize_params(own, 2, default=SamplingParams())
    assert first is second
    assert first == own
    assert first is not own
    assert [
        p.max_tokens for p in normalize_params([own, SamplingParams()], 2, default=SamplingParams())
    ] == [3, 16]
    assert normalize_params(None, 1, default=SamplingParams())[0] == SamplingParams()
    with pytest.raises(ValueError, match="sampling_params has 1 entries for 2 prompts"):
        normalize_params([own], 2, default=SamplingParams())
    with pytest.raises(TypeError, match=r"sampling_params\[1\] must be a SamplingParams, got 5"):
        normalize_params([own, 5], 2, default=SamplingParams())
    with pytest.raises(TypeError, match="sampling_params must be a SamplingParams or a list"):
        normalize_params({"max_tokens": 3}, 2, default=SamplingParams())


def test_parameters_changed_after_they_were_made_are_checked_again():
    params = SamplingParams()
    params.temperature = -3
    with pytest.raises(ValueError, match="temperature must be non-negative, got -3"):
        normalize_params(params, 1, default=SamplingParams())


def test_priorities_are_one_for_all_or_one_each():
    assert normalize_priorities(None, 2) == [0, 0]
    assert normalize_priorities(3, 2) == [3, 3]
    assert normalize_priorities([1, -1], 2) == [1, -1]
    with pytest.raises(ValueError, match="priority has 1 entries for 2 prompts"):
        normalize_priorities([1], 2)
    with pytest.raises(ValueError, match=r"priority\[0\] must fit 32 bits"):
        normalize_priorities(2**63, 1)
    with pytest.raises(TypeError, match=r"priority\[1\] must be an int, got 'a'"):
        normalize_priorities([1, "a"], 2)
    with pytest.raises(TypeError, match="priority must be an int or a list"):
        normalize_priorities("high", 1)
