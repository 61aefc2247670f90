"""SamplingParams: defaults, messages, what is refused."""

import math

import numpy as np
import pytest

from pagedkv import SamplingParams


def test_defaults_are_those_of_the_classic_api():
    params = SamplingParams()
    assert (params.n, params.max_tokens, params.min_tokens) == (1, 16, 0)
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (1.0, 1.0, -1, 0.0)
    assert (params.stop, params.stop_token_ids, params.logprobs, params.seed) == (
        [],
        [],
        None,
        None,
    )
    assert (params.detokenize, params.skip_special_tokens, params.ignore_eos) == (True, True, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n must be at least 1, got 0"),
        ({"n": 10**9}, "n must be at most 16384, got 1000000000"),
        ({"n": 2, "temperature": 0}, "n must be 1 when using greedy sampling, got 2"),
        ({"temperature": -1.0}, "temperature must be non-negative, got -1.0"),
        ({"temperature": math.nan}, "temperature must be non-negative, got nan"),
        ({"temperature": math.inf}, "temperature must be non-negative, got inf"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"top_p": 1.1}, r"top_p must be in \(0, 1\], got 1.1"),
        ({"top_p": math.nan}, r"top_p must be in \(0, 1\], got nan"),
        ({"top_k": -2}, r"top_k must be -1 \(disable\), or at least 1, got -2"),
        ({"min_p": 2}, r"min_p must be in \[0, 1\], got 2"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ({"max_tokens": 2**63}, "max_tokens must be at most 2147483647, got 9223372036854775808"),
        ({"min_tokens": -1}, "min_tokens must be greater than or equal to 0, got -1"),
        ({"min_tokens": 17}, "min_tokens must be less than or equal to max_tokens=16, got 17"),
        ({"logprobs": -1}, "logprobs must be non-negative, got -1"),
        ({"presence_penalty": -2.01}, r"presence_penalty must be in \[-2, 2\], got -2.01"),
        ({"frequency_penalty": 1e308}, r"frequency_penalty must be in \[-2, 2\], got 1e\+308"),
        ({"repetition_penalty": 0}, "repetition_penalty must be greater than zero, got 0"),
        ({"repetition_penalty": math.inf}, "repetition_penalty must be greater than zero, got inf"),
        ({"seed": 2**63}, "seed must be a signed 64-bit integer, got 9223372036854775808"),
        ({"stop": ""}, "stop cannot contain an empty string"),
        ({"stop": ["a", ""]}, "stop cannot contain an empty string"),
        ({"stop": ["a"] * 65}, "stop takes at most 64 strings, got 65"),
        ({"stop": "x" * 5000}, r"stop\[0\] has 5000 characters, at most 4096 work"),
        (
            {"stop": "x", "detokenize": False},
            "stop strings are only supported when detokenize is True. Set detokenize=True to use stop.",
        ),
        ({"stop_token_ids": [-1]}, r"stop_token_ids\[0\] must be non-negative, got -1"),
        ({"stop_token_ids": list(range(2000))}, "stop_token_ids takes at most 1024 ids, got 2000"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_bound(arguments, message):
    with pytest.raises(ValueError, match=message):
        SamplingParams(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 1.5}, "n must be an int, got 1.5"),
        ({"n": True}, "n must be an int, got True"),
        ({"n": None}, "n must be an int, got None"),
        ({"temperature": "0"}, "temperature must be a number, got '0'"),
        ({"temperature": None}, "temperature must be a number, got None"),
        ({"top_p": [0.5]}, r"top_p must be a number, got \[0.5\]"),
        ({"max_tokens": 5.0}, "max_tokens must be an int or None, got 5.0"),
        ({"seed": 1.0}, "seed must be an int or None, got 1.0"),
        ({"logprobs": True}, "logprobs must be an int or None, got True"),
        ({"stop": [None]}, r"stop\[0\] must be a str, got None"),
        ({"stop": 5}, "stop must be a list, got 5"),
        ({"stop_token_ids": [None]}, r"stop_token_ids\[0\] must be an int, got None"),
        ({"stop_token_ids": "12"}, "stop_token_ids must be a list, got '12'"),
        ({"ignore_eos": 1}, "ignore_eos must be True or False, got 1"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(arguments, message):
    with pytest.raises(TypeError, match=message):
        SamplingParams(**arguments)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("temprature", "temperature"), ("max_token", "max_tokens"), ("top-p", "top_p")],
)
def test_an_unknown_parameter_is_answered_with_the_nearest_known_one(name, nearest):
    with pytest.raises(TypeError, match=f"has no parameter '{name}'; did you mean '{nearest}'"):
        SamplingParams(**{name: 1})


def test_a_name_near_nothing_is_answered_with_the_list():
    with pytest.raises(TypeError, match=r"has no parameter 'zzz'; known: .*temperature"):
        SamplingParams(zzz=1)


@pytest.mark.parametrize(
    "arguments",
    [
        {"best_of": 4},
        {"use_beam_search": True},
        {"length_penalty": 0.9},
        {"early_stopping": True},
        {"logit_bias": {1: 2.0}},
        {"prompt_logprobs": 1},
        {"prompt_logprobs": 0},
        {"structured_outputs": {"json": "{}"}},
        {"guided_decoding": object()},
        {"bad_words": ["x"]},
        {"allowed_token_ids": [1]},
        {"logits_processors": [print]},
        {"truncate_prompt_tokens": 5},
    ],
)
def test_a_classic_field_without_effect_is_refused_by_name(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"{name}=.* is not supported yet"):
        SamplingParams(**arguments)


def test_a_classic_field_at_its_neutral_value_is_accepted():
    SamplingParams(
        best_of=None,
        use_beam_search=False,
        length_penalty=1,
        early_stopping=False,
        logit_bias=None,
        prompt_logprobs=None,
        structured_outputs=None,
        bad_words=[],
    )
    assert SamplingParams(n=3, best_of=3).n == 3


def test_stop_takes_one_string_or_any_sequence():
    assert SamplingParams(stop="END").stop == ["END"]
    assert SamplingParams(stop=("a", "b")).stop == ["a", "b"]
    assert SamplingParams(stop_token_ids={3, 1}).stop_token_ids == [1, 3]


def test_numpy_scalars_are_numbers():
    params = SamplingParams(n=np.int64(2), temperature=np.float32(0.5), seed=np.int32(4))
    assert params.n == 2


def test_a_field_may_be_reassigned_and_is_checked_again():
    params = SamplingParams()
    params.stop = "x"
    params.verify()
    assert params.stop == ["x"]
    params.top_p = 7
    with pytest.raises(ValueError, match="top_p must be in"):
        params.verify()


def test_a_clone_is_equal_and_shares_nothing():
    params = SamplingParams(stop=["a"], seed=3)
    clone = params.clone()
    assert clone == params
    clone.stop.append("b")
    assert params.stop == ["a"]
