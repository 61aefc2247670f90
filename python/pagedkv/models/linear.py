"""Products that read their weight once, however few rows there are.

A decode step multiplies a few rows with every weight of the model. torch's products are made for many: between 2 and 64
rows they take two to three times as long in float32, and longer in the 16-bit formats. And in the kernel of
``pagedkv._core`` a row's bits do not depend on the rows beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn import functional

from pagedkv import _core
from pagedkv.arrays import as_rows, kernel_dtype, new_output, shared_array

if TYPE_CHECKING:
    import torch

    from pagedkv.models.packed_weight import PackedWeight


def linear(
    hidden_states: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """``hidden_states @ weight.T + bias``; what the kernel does not know (a gradient, another dtype) goes to torch.

    Args:
        hidden_states: [..., inputs].
        weight: [outputs, inputs].
        bias: [outputs].

    Returns:
        [..., outputs], contiguous, in the dtype of ``hidden_states``.
    """
    dtype = kernel_dtype(hidden_states) if weight.num_inputs else None
    if (
        dtype is None
        or hidden_states.dtype is not weight.strips.dtype
        or hidden_states.shape[-1] != weight.num_inputs
    ):
        return functional.linear(hidden_states, weight.unpacked(), bias)
    output, output_array = new_output(
        (*hidden_states.shape[:-1], weight.num_outputs), hidden_states.dtype
    )
    _core.linear(
        shared_array(as_rows(hidden_states)),
        weight.array,
        None if bias is None else shared_array(bias),
        output_array,
        dtype=dtype,
    )
    return output
