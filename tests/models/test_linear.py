"""A kernel linear layer is the layer it was, computed otherwise."""

import pytest
import torch
from torch.nn import functional

from pagedkv.models.linear import KernelLinear, exchange_linears, linear, restore_linears

DTYPES = [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)]


def tensors(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("shape", [(1, 40), (2, 3, 515), (7, 0), (0, 40), (40,)])
def test_a_kernel_product_equals_torchs(shape, dtype, tolerance):
    numbers, weight = tensors(*shape, dtype=dtype), tensors(33, shape[-1], dtype=dtype, seed=1)
    for bias in (None, tensors(33, dtype=dtype, seed=2)):
        with torch.inference_mode():
            actual, expected = (
                linear(numbers, weight, bias),
                functional.linear(numbers, weight, bias),
            )
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_inputs_with_any_strides_are_read_right():
    """Layers are given the halves of one projection, transposed heads and single columns."""
    numbers, weight = tensors(6, 8, 10), tensors(5, 8, seed=1)
    with torch.inference_mode():
        for view in (numbers.transpose(1, 2), numbers[:, :, :8], numbers[::2, 1:3, 2:], numbers.mT):
            expected = functional.linear(view, weight)
            torch.testing.assert_close(linear(view, weight, None), expected)
        transposed = tensors(8, 5, seed=1).T
        expected = functional.linear(numbers[..., :8], transposed)
        torch.testing.assert_close(linear(numbers[..., :8], transposed, None), expected)


@pytest.mark.parametrize(("dtype", "_"), DTYPES)
def test_a_row_of_a_product_does_not_depend_on_the_row_count(dtype, _):
    rows, weight = tensors(33, 700, dtype=dtype), tensors(65, 700, dtype=dtype, seed=1)
    with torch.inference_mode():
        together = linear(rows, weight, None)
        for count in range(1, 33):
            assert torch.equal(linear(rows[:count], weight, None), together[:count])


def test_an_exchanged_layer_keeps_its_names_parameters_and_ties():
    model = torch.nn.Sequential(
        torch.nn.Linear(6, 8), torch.nn.Embedding(4, 6), torch.nn.Linear(6, 4)
    )
    model[2].weight = model[1].weight
    before = {name: parameter.data_ptr() for name, parameter in model.state_dict().items()}
    assert exchange_linears(model) == 2
    assert type(model[0]) is KernelLinear
    assert {name: parameter.data_ptr() for name, parameter in model.state_dict().items()} == before
    assert model[2].weight is model[1].weight
    assert restore_linears(model) == 2
    assert type(model[0]) is torch.nn.Linear


def test_a_layer_of_a_derived_class_keeps_its_own_code():
    class Doubled(torch.nn.Linear):
        def forward(self, *numbers):
            return 2 * super().forward(*numbers)

    model = torch.nn.Sequential(Doubled(3, 3))
    assert exchange_linears(model) == 0


def test_a_weight_that_is_replaced_later_is_the_one_that_counts():
    """Adapters and fusions put other memory into a parameter."""
    model = torch.nn.Sequential(torch.nn.Linear(6, 4, bias=False))
    exchange_linears(model)
    numbers = tensors(2, 6)
    with torch.inference_mode():
        model(numbers)
        model[0].weight.data = tensors(4, 6, seed=3)
        torch.testing.assert_close(model(numbers), functional.linear(numbers, model[0].weight))


def test_gradients_and_other_dtypes_go_to_torch():
    layer = torch.nn.Sequential(torch.nn.Linear(6, 4))
    exchange_linears(layer)
    layer(tensors(2, 6)).sum().backward()
    assert layer[0].weight.grad is not None
    with torch.inference_mode():
        wide = layer.double()(tensors(2, 6).double())
    assert wide.dtype == torch.float64
