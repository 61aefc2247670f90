"""What is exchanged in a model computes the same function, row by row with the same bits, and can be put back."""

import pytest
import torch
from transformers.activations import ACT2FN

from models.tiny import tiny_model
from pagedkv.models.experts import padded_experts, use_padded_experts
from pagedkv.models.surgery import KernelActivation, exchange_activations, restore_activations

NAMES = ["silu", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh"]


def exchanged(name):
    holder = torch.nn.ModuleDict({"act": ACT2FN[name]})
    assert exchange_activations(holder) == 1
    return holder["act"]


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 2e-6), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)],
)
@pytest.mark.parametrize("name", NAMES)
def test_an_exchanged_activation_equals_the_one_it_stands_for(name, dtype, tolerance):
    numbers = (torch.randn(5, 7, 33, generator=torch.Generator().manual_seed(0)) * 4).to(dtype)
    with torch.inference_mode():
        # A transposed view too: activations also see strided halves of one projection.
        for shape in (numbers, numbers.transpose(0, 2), numbers[..., :3]):
            torch.testing.assert_close(
                exchanged(name)(shape), ACT2FN[name](shape), rtol=tolerance, atol=tolerance
            )


@pytest.mark.parametrize("name", NAMES)
def test_a_row_of_an_exchanged_activation_does_not_depend_on_the_row_count(name):
    activation = exchanged(name)
    rows = torch.randn(64, 17, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        together = activation(rows)
        for count in range(1, 64):
            assert torch.equal(activation(rows[:count]), together[:count])


def test_activations_can_be_put_back():
    model = tiny_model("mixtral")
    before = {name: type(module) for name, module in model.named_modules()}
    assert exchange_activations(model) == 4
    assert restore_activations(model) == 4
    assert {name: type(module) for name, module in model.named_modules()} == before


def test_an_exchanged_activation_still_has_a_gradient():
    activation = exchanged("silu")
    assert isinstance(activation, KernelActivation)
    numbers = torch.ones(3, requires_grad=True)
    activation(numbers).sum().backward()
    assert numbers.grad is not None


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
