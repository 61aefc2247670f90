"""The kernel for linear layers against torch's product with the same weight."""

import pytest
import torch
from torch.nn import functional

from pagedkv.models.linear import linear
from pagedkv.models.packed_weight import PackedWeight

DTYPES = [(torch.float32, 5e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)]


def tensors(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("shape", [(1, 40), (2, 3, 515), (7, 0), (0, 40), (40,)])
@pytest.mark.parametrize("num_outputs", [1, 16, 33])
def test_a_kernel_product_equals_torchs(shape, num_outputs, dtype, tolerance):
    numbers = tensors(*shape, dtype=dtype)
    weight = tensors(num_outputs, shape[-1], dtype=dtype, seed=1)
    for bias in (None, tensors(num_outputs, dtype=dtype, seed=2)):
        with torch.inference_mode():
            actual = linear(numbers, PackedWeight.pack(weight), bias)
            expected = functional.linear(numbers, weight, bias)
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_inputs_with_any_strides_are_read_right():
    """Layers are given the halves of one projection, transposed heads and single columns."""
    numbers, weight = tensors(6, 8, 10), tensors(5, 8, seed=1)
    packed = PackedWeight.pack(weight)
    with torch.inference_mode():
        for view in (numbers.transpose(1, 2), numbers[:, :, :8], numbers[::2, 1:3, 2:], numbers.mT):
            expected = functional.linear(view, weight)
            torch.testing.assert_close(linear(view, packed), expected)


@pytest.mark.parametrize(("dtype", "_"), DTYPES)
def test_a_row_of_a_product_does_not_depend_on_the_row_count(dtype, _):
    rows = tensors(33, 700, dtype=dtype)
    weight = PackedWeight.pack(tensors(65, 700, dtype=dtype, seed=1))
    with torch.inference_mode():
        together = linear(rows, weight)
        for count in range(1, 33):
            assert torch.equal(linear(rows[:count], weight), together[:count])


def test_inputs_that_do_not_fit_get_the_error_of_torch():
    weight = PackedWeight.pack(tensors(5, 8))
    with torch.inference_mode(), pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        linear(tensors(2, 7), weight)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="same dtype"):
        linear(tensors(2, 8, dtype=torch.bfloat16), weight)
