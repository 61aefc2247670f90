"""Arrays of any shape as rows of their last dimension, in the kernels that work on rows."""

import numpy as np
import pytest

from pagedkv import _core

NUMBERS = np.random.default_rng(0).standard_normal((2, 3, 5, 8)).astype(np.float32)


def silu(array):
    output = np.zeros(array.shape, dtype=np.float32)
    _core.silu(array, output, dtype="float32")
    return output


@pytest.mark.parametrize(
    "array",
    [
        NUMBERS,
        NUMBERS[:1],
        NUMBERS[:, :, :1, :],
        NUMBERS[..., 2:7],
        NUMBERS[0, 0, 0],
        NUMBERS[:, :, ::2][:1, :1],
        NUMBERS[:0],
        NUMBERS[..., :0],
    ],
    ids=lambda array: str(array.shape),
)
def test_all_dimensions_but_the_last_are_rows(array):
    num_rows = array.size // max(array.shape[-1], 1)
    expected = silu(np.ascontiguousarray(array).reshape(num_rows, array.shape[-1]))
    assert np.array_equal(silu(array), expected.reshape(array.shape))
    np.testing.assert_allclose(
        expected.reshape(array.shape), array / (1 + np.exp(-array)), rtol=1e-5
    )


@pytest.mark.parametrize("array", [NUMBERS[:, :2], NUMBERS.swapaxes(0, 1), NUMBERS[:, :, ::2]])
def test_rows_in_unequal_steps_are_refused(array):
    with pytest.raises(
        ValueError, match="numbers must have rows in equal steps; make it contiguous"
    ):
        silu(array)


def test_rows_that_are_not_contiguous_and_numbers_that_are_no_rows_are_refused():
    with pytest.raises(ValueError, match="numbers must have stride 1 in its last dimension"):
        silu(NUMBERS.swapaxes(2, 3)[0, 0])
    with pytest.raises(ValueError, match="numbers must have rows, got a number"):
        silu(np.array(1.0, dtype=np.float32))
