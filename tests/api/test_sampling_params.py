"""SamplingParams: defaults, messages, what is refused."""

import math
import pickle
import time

import numpy as np
import pytest

from pagedkv import GuidedDecodingParams, SamplingParams, StructuredOutputsParams


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
        ({"logprobs": -2}, "logprobs must be non-negative, got -2"),
        ({"prompt_logprobs": -2}, "prompt_logprobs must be non-negative, got -2"),
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
    ("arguments", "message"),
    [
        ({"trace_decode_token_ids": [1]}, r"trace_decode_token_ids=\[1\] is out of scope"),
        ({"watermarking": True}, "watermarking=True is out of scope"),
        ({"routed_experts_prompt_start": 3}, "routed_experts_prompt_start=3 is out of scope"),
    ],
)
def test_a_field_without_effect_is_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        SamplingParams(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"thinking_token_budget": -1},
        {"repetition_detection": None},
        {"watermarking": None},
        {"routed_experts_prompt_start": 0},
        {"skip_clone": True},
        {"logit_bias": {}},
        {"bad_words": []},
        {"logits_processors": []},
        {"best_of": 1},
        {"length_penalty": 1},
        {"output_kind": None},
    ],
)
def test_a_field_that_asks_for_nothing_is_as_good_as_unset(arguments):
    changed = {"skip_clone", "best_of"}
    params = SamplingParams(**arguments)
    if not changed & set(arguments):
        assert params == SamplingParams()


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


def test_a_clone_of_every_field_can_be_changed_without_changing_the_original():
    params = SamplingParams(
        bad_words=["a"],
        logit_bias={1: 1.0},
        allowed_token_ids=[1, 2],
        logits_processors=[len],
        structured_outputs={"choice": ["a"]},
        extra_args={"a": [1]},
    )
    before = repr(params)
    clone = params.clone()
    clone.bad_words.append("b")
    clone.logit_bias[2] = 1.0
    clone.allowed_token_ids.append(3)
    clone.logits_processors.append(len)
    clone.structured_outputs.choice.append("b")
    clone.extra_args["a"].append(2)
    assert repr(params) == before


def test_parameters_survive_pickling():
    params = SamplingParams(stop="a", use_beam_search=True, n=3, logit_bias={1: 2.0})
    assert pickle.loads(pickle.dumps(params)) == params


def test_an_unset_temperature_is_not_one_of_1():
    assert SamplingParams().temperature == 1.0
    assert SamplingParams(use_beam_search=True, best_of=2).temperature == 0.0
    with pytest.raises(ValueError, match="temperature must be 0 when using beam search"):
        SamplingParams(use_beam_search=True, best_of=2, temperature=1.0)
    params = SamplingParams(best_of=2)
    params.use_beam_search = True
    params.verify()
    assert params.temperature == 0.0


def test_two_spellings_of_nothing_are_one():
    assert SamplingParams(top_k=-1) == SamplingParams(top_k=0) == SamplingParams()
    assert SamplingParams(seed=-1) == SamplingParams()


def test_a_temperature_too_low_to_divide_by_is_raised_and_said(caplog):
    assert SamplingParams(temperature=0.001).temperature == 0.01
    assert "temperature=0.001 is raised to 0.01" in caplog.text
    assert SamplingParams(temperature=1e-6).temperature == 1e-6
    assert SamplingParams(temperature=0.01).temperature == 0.01
    assert len(caplog.records) == 1


def test_none_in_from_optional_is_the_default():
    assert SamplingParams.from_optional(n=2, top_p=None, stop=None) == SamplingParams(n=2)


@pytest.mark.parametrize(
    "arguments",
    [
        {"guided_decoding": {"json": {"type": "object"}}},
        {"guided_decoding": GuidedDecodingParams(json={"type": "object"})},
        {"guided_json": {"type": "object"}},
        {"structured_outputs": {"json": {"type": "object"}, "regex": None}},
    ],
)
def test_every_spelling_of_a_constraint_is_the_same(arguments):
    assert SamplingParams(**arguments) == SamplingParams(
        structured_outputs={"json": {"type": "object"}}
    )


@pytest.mark.parametrize(
    ("kind", "value"),
    [("regex", "a+"), ("choice", ["a"]), ("grammar", 'start: "a"'), ("json_object", True)],
)
def test_every_earlier_kind_of_constraint_is_known(kind, value):
    params = SamplingParams(**{f"guided_{kind}": value})
    assert params.structured_outputs == StructuredOutputsParams(**{kind: value})


def test_a_constraint_that_was_reassigned_is_checked_again():
    params = SamplingParams(structured_outputs=StructuredOutputsParams(regex="a"))
    params.structured_outputs.regex = ""
    with pytest.raises(ValueError, match="regex is empty"):
        params.verify()
    params.structured_outputs = {"choice": ["a"]}
    params.verify()
    assert params.structured_outputs == StructuredOutputsParams(choice=["a"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"structured_outputs": {}},
            "StructuredOutputsParams takes exactly one of json, .*, got none",
        ),
        (
            {"structured_outputs": {"json": "{}", "regex": "a"}},
            "StructuredOutputsParams takes exactly one of .*, got json, regex",
        ),
        ({"guided_json": "{}", "guided_regex": "a"}, "takes exactly one of .*, got json, regex"),
        ({"guided_json": "{}", "structured_outputs": {"json": "{}"}}, "both given; keep one"),
        (
            {"guided_decoding": {"json": "{}"}, "structured_outputs": {"json": "{}"}},
            "both were given; keep one",
        ),
    ],
)
def test_a_constraint_is_one_thing(arguments, message):
    with pytest.raises(ValueError, match=message):
        SamplingParams(**arguments)


def test_biases_are_clamped_and_ids_may_be_digits():
    params = SamplingParams(logit_bias={"5": 200, np.int64(6): -1e9, 7: np.float32(0.5)})
    assert params.logit_bias == {5: 100.0, 6: -100.0, 7: 0.5}
    assert {type(key) for key in params.logit_bias} == {int}
    assert {type(bias) for bias in params.logit_bias.values()} == {float}


def test_as_many_biases_as_a_vocabulary_has_tokens_are_checked_at_once():
    """300,000 entries: a loop that called a function for each would take a second and more."""
    bias = dict.fromkeys(range(300_000), 1.0)
    params = SamplingParams(logit_bias=bias)
    started = time.process_time()
    params.verify()
    params.clone()
    assert time.process_time() - started < 1.0
    assert params.logit_bias == bias
    with pytest.raises(ValueError, match="logit_bias takes at most 300000 entries, got 300001"):
        SamplingParams(logit_bias=dict.fromkeys(range(300_001), 1.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"logit_bias": {-1: 1.0}}, "logit_bias holds token id -1, ids are non-negative"),
        ({"logit_bias": {1: math.nan}}, "logit_bias must hold numbers, got nan"),
        ({"allowed_token_ids": []}, "allowed_token_ids must hold at least one id"),
        ({"allowed_token_ids": [3, -1]}, r"allowed_token_ids\[1\] must be non-negative, got -1"),
        (
            {"allowed_token_ids": [3, 4], "logit_bias": {3: -100, 4: -1000}},
            "allowed_token_ids leaves no token to generate: logit_bias is -100 for each",
        ),
        ({"bad_words": ["a", ""]}, "bad_words cannot contain an empty string"),
        ({"bad_words": ["a"] * 1025}, "bad_words takes at most 1024 strings, got 1025"),
        ({"bad_words": "x" * 5000}, r"bad_words\[0\] has 5000 characters, at most 4096 work"),
        ({"stop": "x" * (1 << 20)}, r"stop\[0\] has 1048576 characters"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens must be at least 1, got 0"),
        ({"stream_interval": 0}, "stream_interval must be at least 1, got 0"),
        ({"output_kind": 3}, r"output_kind must be one of CUMULATIVE \(0\), DELTA \(1\), FINAL"),
        ({"best_of": 0}, "best_of must be at least 1, got 0"),
        ({"best_of": 20_000}, "best_of must be at most 16384, got 20000"),
        (
            {"use_beam_search": True, "best_of": 2, "length_penalty": math.inf},
            "length_penalty must be finite, got inf",
        ),
        ({"use_beam_search": True, "best_of": 2, "min_p": 0.1}, "min_p must be 0 when using beam"),
    ],
)
def test_what_cannot_be_served_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        SamplingParams(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"best_of": 1.5}, "best_of must be an int or None, got 1.5"),
        ({"use_beam_search": 1}, "use_beam_search must be True or False, got 1"),
        ({"length_penalty": "1"}, "length_penalty must be a number, got '1'"),
        ({"logit_bias": [1]}, r"logit_bias must be a dict of numbers by token id, got \[1\]"),
        ({"logit_bias": {"a": 1}}, "logit_bias must have token ids as keys, got 'a'"),
        ({"logit_bias": {True: 1}}, "logit_bias must have token ids as keys, got True"),
        ({"logit_bias": {1: "a"}}, r"logit_bias\[1\] must be a number, got 'a'"),
        ({"allowed_token_ids": ["a"]}, r"allowed_token_ids\[0\] must be an int, got 'a'"),
        ({"allowed_token_ids": 5}, "allowed_token_ids must be a list, got 5"),
        ({"bad_words": [5]}, r"bad_words\[0\] must be a str, got 5"),
        ({"logits_processors": [5]}, r"logits_processors\[0\] must be a callable, got 5"),
        ({"logits_processors": len}, "logits_processors must be a list, got"),
        ({"structured_outputs": "json"}, "structured_outputs must be a StructuredOutputsParams"),
        ({"extra_args": [1]}, r"extra_args must be a dict or None, got \[1\]"),
        ({"skip_reading_prefix_cache": 1}, "must be True, False or None, got 1"),
    ],
)
def test_a_later_value_of_the_wrong_type_is_named(arguments, message):
    with pytest.raises(TypeError, match=message):
        SamplingParams(**arguments)
