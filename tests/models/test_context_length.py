"""The context that a model is made for, as its configuration states it in many ways."""

import pytest

from models.tiny import tiny_config
from pagedkv.models.context_length import model_context_length, resolve_max_model_len


def rope(rope_type, **parameters):
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": 1e4} | parameters}


@pytest.mark.parametrize(
    ("model_type", "overrides", "expected"),
    [
        ("llama", {}, 256),
        ("gpt2", {}, 256),
        ("llama", rope("linear", factor=4.0), 1024),
        ("llama", rope("dynamic", factor=2.0), 512),
        ("llama", rope("yarn", factor=4.0, original_max_position_embeddings=256), 1024),
        ("llama", rope("yarn", factor=4.0, original_max_position_embeddings=64), 256),
        # These state the stretched length.
        (
            "llama",
            rope(
                "llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=64,
            ),
            256,
        ),
        (
            "phi3",
            rope(
                "longrope",
                short_factor=[1.0] * 8,
                long_factor=[4.0] * 8,
                original_max_position_embeddings=64,
            ),
            256,
        ),
    ],
)
def test_rotary_scaling_is_part_of_the_context(model_type, overrides, expected):
    assert model_context_length(tiny_config(model_type, **overrides)) == expected


def test_a_model_that_states_no_length_gets_a_default_and_no_limit():
    config = tiny_config("llama")
    config.max_position_embeddings = 0
    assert model_context_length(config) is None
    assert resolve_max_model_len(config, None) == 4096
    assert resolve_max_model_len(config, 100_000) == 100_000
