"""The fields of both generations of the classic API, with the defaults that users rely on."""

import inspect
from pathlib import Path

import pytest

from pagedkv import BeamSearchParams, RequestOutputKind, SamplingParams

DEFAULTS = {
    "n": 1,
    "best_of": None,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "seed": None,
    "use_beam_search": False,
    "length_penalty": 1.0,
    "early_stopping": False,
    "stop": [],
    "stop_token_ids": [],
    "ignore_eos": False,
    "max_tokens": 16,
    "min_tokens": 0,
    "logprobs": None,
    "prompt_logprobs": None,
    "prompt_logprob_token_ids": None,
    "prompt_logprob_start": None,
    "logprob_token_ids": None,
    "flat_logprobs": False,
    "detokenize": True,
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "include_stop_str_in_output": False,
    "output_kind": RequestOutputKind.CUMULATIVE,
    "stream_interval": None,
    "skip_clone": False,
    "structured_outputs": None,
    "guided_decoding": None,
    "logit_bias": None,
    "allowed_token_ids": None,
    "bad_words": [],
    "extra_args": None,
    "skip_reading_prefix_cache": None,
    "thinking_token_budget": None,
    "repetition_detection": None,
    "watermarking": None,
    "routed_experts_prompt_start": 0,
    "trace_decode_token_ids": None,
    "logits_processors": None,
    "truncate_prompt_tokens": None,
}
BEAM_DEFAULTS = {
    "ignore_eos": False,
    "temperature": 0.0,
    "length_penalty": 1.0,
    "early_stopping": False,
    "include_stop_str_in_output": False,
    "structured_outputs": None,
    "skip_special_tokens": True,
    "allowed_token_ids": None,
    "logprobs": None,
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_field_has_its_classic_default(name):
    assert getattr(SamplingParams(), name) == DEFAULTS[name]


def test_there_is_no_field_without_a_line_in_the_table():
    fields = set(vars(SamplingParams()))
    assert fields - {"bad_words_token_ids"} == set(DEFAULTS)


def test_every_field_is_an_argument_that_tools_can_see():
    shown = set(inspect.signature(SamplingParams.__init__).parameters)
    assert set(DEFAULTS) <= shown


def test_a_field_set_to_its_default_is_as_good_as_unset():
    assert SamplingParams(**DEFAULTS) == SamplingParams()


def test_beams_have_their_defaults():
    params = BeamSearchParams(beam_width=4, max_tokens=5)
    assert vars(params) == {"beam_width": 4, "max_tokens": 5, **BEAM_DEFAULTS}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"beam_width": 0}, ValueError, "beam_width must be at least 1, got 0"),
        ({"beam_width": 1.5}, TypeError, "beam_width must be an int, got 1.5"),
        ({"max_tokens": 0}, ValueError, "max_tokens must be at least 1, got 0"),
        ({"temperature": 0.5}, ValueError, "temperature must be 0 when using beam search."),
        ({"early_stopping": 2}, ValueError, "early_stopping must be True, False, or 'never'"),
        ({"length_penalty": float("nan")}, ValueError, "length_penalty must be finite, got nan"),
        ({"allowed_token_ids": []}, ValueError, "allowed_token_ids must hold at least one id"),
        ({"bean_width": 2}, TypeError, "no parameter 'bean_width'; did you mean 'beam_width'"),
    ],
)
def test_a_bad_beam_parameter_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        BeamSearchParams(**{"beam_width": 2, "max_tokens": 5, **arguments})


def test_beams_mean_the_same_in_both_spellings():
    beams = BeamSearchParams(
        beam_width=4, max_tokens=5, length_penalty=0.5, early_stopping="never", ignore_eos=True
    )
    assert beams.sampling_params() == SamplingParams(
        n=4,
        use_beam_search=True,
        max_tokens=5,
        length_penalty=0.5,
        early_stopping="never",
        ignore_eos=True,
    )
    one = BeamSearchParams(beam_width=1, max_tokens=5, length_penalty=0.5).sampling_params()
    assert one == SamplingParams(temperature=0.0, max_tokens=5)


def test_every_field_has_its_place_in_the_documentation():
    text = (Path(__file__).parents[2] / "docs" / "parameters.md").read_text("utf-8")
    assert [name for name in DEFAULTS if f"`{name}`" not in text] == []
