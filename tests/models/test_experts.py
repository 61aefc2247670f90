"""Experts whose rows do not depend on who else chose them."""

import pytest
import torch

from models.tiny import tiny_model
from pagedkv.models.experts import padded_experts, use_padded_experts


@pytest.mark.parametrize("model_type", ["mixtral", "qwen2_moe", "phimoe", "gpt_oss", "deepseek_v3"])
def test_padded_experts_equal_those_of_transformers(model_type):
    model = tiny_model(model_type)
    input_ids = torch.arange(2, 25)[None]
    with torch.inference_mode():
        expected = model(input_ids).logits
        is_switched = use_padded_experts(model)
        actual = model(input_ids).logits
    assert is_switched
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_a_row_of_padded_experts_does_not_depend_on_who_else_chose_its_expert():
    experts = tiny_model("mixtral").model.layers[0].mlp.experts
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(23, 64, generator=generator)
    choices = torch.randint(0, 4, (23, 2), generator=generator)
    weights = torch.rand(23, 2, generator=generator)
    with torch.inference_mode():
        together = padded_experts(experts, rows, choices, weights)
        for count in range(1, 23):
            few = padded_experts(experts, rows[:count], choices[:count], weights[:count])
            assert torch.equal(few, together[:count])


def test_a_choice_past_the_last_expert_adds_nothing():
    experts = tiny_model("mixtral").model.layers[0].mlp.experts
    rows, weights = torch.ones(1, 64), torch.ones(1, 2)
    with torch.inference_mode():
        both = padded_experts(experts, rows, torch.tensor([[1, 4]]), weights)
        one = padded_experts(experts, rows, torch.tensor([[1]]), weights[:, :1])
    torch.testing.assert_close(both, one)


def test_a_dense_model_has_no_experts_to_switch():
    assert not use_padded_experts(tiny_model("llama"))
