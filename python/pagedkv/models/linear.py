"""Linear layers that read their weight once, however few rows there are.

A decode step multiplies a few rows with every weight of the model. torch's products are made for many: between 2 and 64
rows they take one and a half to three times as long in float32, and longer in the 16-bit formats. And in the kernel of
``pagedkv._core`` a row's bits do not depend on the rows beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import nn
from torch.nn import functional

from pagedkv import _core
from pagedkv.arrays import as_rows, kernel_dtype, shared_array

if TYPE_CHECKING:
    from collections.abc import Callable

# (hidden states, weight, bias) -> product
Product: TypeAlias = "Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]"


def linear(
    hidden_states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """``hidden_states @ weight.T + bias``; any device, dtype or gradient that the kernel does not know goes to torch.

    Args:
        hidden_states: [..., inputs].
        weight: [outputs, inputs].
        bias: [outputs].

    Returns:
        [..., outputs], contiguous, in the dtype of ``hidden_states``.
    """
    dtype = kernel_dtype(hidden_states) if hidden_states.numel() else None
    if dtype is None or weight.dtype != hidden_states.dtype or weight.stride(1) != 1:
        return functional.linear(hidden_states, weight, bias)
    rows = as_rows(hidden_states)
    output = torch.empty((rows.shape[0], weight.shape[0]), dtype=rows.dtype)
    _core.linear(
        shared_array(rows),
        shared_array(weight),
        None if bias is None else shared_array(bias),
        shared_array(output),
        dtype=dtype,
    )
    return output.view(*hidden_states.shape[:-1], weight.shape[0])


class KernelLinear(nn.Linear):
    """A linear layer computed by `linear`; weight, bias and names are those of the layer it was."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 (torch's name)
        """See `linear`."""
        return linear(input, self.weight, self.bias)


def product_of(layer: nn.Linear) -> Product:
    """The function that computes the product of a plain linear layer."""
    return linear if isinstance(layer, KernelLinear) else functional.linear


def exchange_linears(model: nn.Module) -> int:
    """Has every plain linear layer of ``model`` computed by the kernel, in place.

    Layers of a derived class keep their own code.

    Returns:
        How many were exchanged.
    """
    return _recast(model, nn.Linear, KernelLinear)


def restore_linears(model: nn.Module) -> int:
    """Undoes `exchange_linears`; returns how many were put back."""
    return _recast(model, KernelLinear, nn.Linear)


def _recast(model: nn.Module, old: type[nn.Module], new: type[nn.Module]) -> int:
    # The same object with other code: whoever holds the layer, or shares its weight, sees no difference.
    found = [module for module in model.modules() if type(module) is old]
    for module in found:
        module.__class__ = new
    return len(found)
