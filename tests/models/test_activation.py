"""A kernel activation computes the function of the one it stands for, row by row with the same bits."""

import pytest
import torch
from transformers.activations import ACT2FN

from pagedkv.models.activation import KernelActivation, activation_kernel

NAMES = ["silu", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh"]


def exchanged(name):
    kernel = activation_kernel(ACT2FN[name])
    assert isinstance(kernel, KernelActivation)
    return kernel


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


def test_an_exchanged_activation_still_has_a_gradient():
    activation = exchanged("silu")
    numbers = torch.ones(3, requires_grad=True)
    activation(numbers).sum().backward()
    assert numbers.grad is not None
