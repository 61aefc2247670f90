"""Activations computed by kernels.

torch cuts an elementwise operation into pieces by thread and finishes each piece with a scalar tail, whose exponential
rounds otherwise than the vector one. Where a row meets a tail depends on how many rows and threads there are. The
kernels compute every element alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from pagedkv import _core
from pagedkv.arrays import as_rows, kernel_dtype, new_output, shared_array

if TYPE_CHECKING:
    from collections.abc import Callable

    # (input, output, dtype=name): [..., columns] of equal shape; 16-bit floats travel as int16.
    Kernel = Callable[..., None]

# Class of an activation module, of torch or transformers, -> kernel that computes the same function.
_KERNEL_NAMES = {
    "SiLU": "silu",
    "SiLUActivation": "silu",
    "GELUActivation": "gelu",
    "GELUTanh": "gelu_tanh",
    "NewGELUActivation": "gelu_tanh",
    "FastGELUActivation": "gelu_tanh",
}


class KernelActivation(nn.Module):
    """An activation computed by a CPU kernel; any other device or dtype runs the module it stands for."""

    def __init__(self, original: nn.Module, kernel: Kernel) -> None:
        """Stands for ``original``."""
        super().__init__()
        self.original = original
        self._kernel = kernel

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The activation of every element; any shape."""
        dtype = kernel_dtype(hidden_states)
        if dtype is None:
            result: torch.Tensor = self.original(hidden_states)
            return result
        if hidden_states.numel() == 0:
            return torch.empty_like(hidden_states)
        output, output_array = new_output(hidden_states.shape, hidden_states.dtype)
        # Rows may be strided, as the halves of one projection are.
        self._kernel(shared_array(as_rows(hidden_states)), output_array, dtype=dtype)
        return output


def activation_kernel(module: nn.Module) -> KernelActivation | None:
    """The kernel that computes ``module``; None if it is no activation or none that a kernel knows."""
    name = _kernel_name(module)
    return None if name is None else KernelActivation(module, getattr(_core, name))


def _kernel_name(module: nn.Module) -> str | None:
    if isinstance(module, nn.GELU):
        return "gelu" if module.approximate == "none" else "gelu_tanh"
    return _KERNEL_NAMES.get(type(module).__name__)
