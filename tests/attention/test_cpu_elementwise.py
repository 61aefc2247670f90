"""The CPU kernels for activations and sampling noise, against torch and against their readable twin."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from pagedkv import _core
from pagedkv.sampling import philox

ACTIVATIONS = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda numbers: functional.gelu(numbers, approximate="tanh"),
}


def activated(name, numbers):
    dtype = str(numbers.dtype).removeprefix("torch.")
    output = torch.empty_like(numbers)
    arrays = [
        tensor.numpy() if dtype == "float32" else tensor.view(torch.int16).numpy()
        for tensor in (numbers, output)
    ]
    getattr(_core, name)(*arrays, dtype=dtype)
    return output


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_activation_is_that_of_torch_in_f64(name, dtype):
    numbers = torch.linspace(-20, 20, 40_000).reshape(80, 500).to(dtype)
    exact = ACTIVATIONS[name](numbers.double())
    epsilon = torch.finfo(dtype).eps
    # torch's gelu cancels for negative numbers in f64 too, from about -8 on: hence the absolute part.
    torch.testing.assert_close(
        activated(name, numbers).double(),
        exact,
        rtol=4 * epsilon if dtype == torch.float32 else 0.51 * epsilon,
        atol=max(1e-15, torch.finfo(dtype).smallest_normal * epsilon),
    )


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_row_has_the_same_bits_whatever_the_number_of_rows(name):
    numbers = torch.randn(300, 333, generator=torch.Generator().manual_seed(0))
    together = activated(name, numbers)
    for num_rows in (1, 2, 3, 5, 8):
        assert torch.equal(activated(name, numbers[:num_rows]), together[:num_rows])


def noise(seeds, sample_index, positions, vocabulary):
    output = np.full((len(seeds), vocabulary), np.nan, dtype=np.float32)
    _core.gumbel_noise(
        output,
        seeds=np.array(seeds, dtype=np.uint64),
        sample_index=np.array(sample_index, dtype=np.int32),
        positions=np.array(positions, dtype=np.int32),
    )
    return output


def test_noise_is_that_of_the_readable_twin_but_for_a_last_bit():
    addresses = ([0, 1, 2**63 + 5, 2**64 - 1], [0, 3, 1, 2**31 - 1], [0, 1000, 7, 2**31 - 1])
    got = noise(*addresses, 50_000)
    expected = philox.gumbel_noise(
        seeds=np.array(addresses[0], dtype=np.uint64)[:, None],
        sample_index=np.array(addresses[1], dtype=np.int32)[:, None],
        positions=np.array(addresses[2], dtype=np.int32)[:, None],
        token_ids=np.arange(50_000, dtype=np.int32)[None, :],
    )
    np.testing.assert_array_max_ulp(got, expected, maxulp=1)
    assert np.count_nonzero(got != expected) <= 2


def test_noise_arguments_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"positions must be as long as seeds \(2\), got 1"):
        noise([1, 2], [0, 0], [0], 5)
    with pytest.raises(TypeError, match="output must be an array of float32"):
        _core.gumbel_noise(
            np.empty((1, 5)),
            seeds=np.zeros(1, dtype=np.uint64),
            sample_index=np.zeros(1, dtype=np.int32),
            positions=np.zeros(1, dtype=np.int32),
        )


def test_the_number_of_threads_must_be_positive():
    with pytest.raises(ValueError, match="num_threads must be at least 1, got 0"):
        _core.set_num_threads(0)
    assert _core.num_threads() >= 1
