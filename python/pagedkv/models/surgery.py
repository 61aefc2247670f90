"""Exchanges activation modules for kernels whose rows do not depend on the row count.

torch cuts an elementwise operation into pieces by thread and finishes each piece with a scalar tail, whose exponential
rounds otherwise than the vector one. Where a row meets a tail depends on how many rows and threads there are. The
kernels of ``pagedkv._core`` compute every element alike.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import numpy.typing as npt

    # (input, output, dtype=name): [rows, columns] of equal shape; 16-bit floats travel as int16.
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
_DTYPE_NAMES = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
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
        dtype = _DTYPE_NAMES.get(hidden_states.dtype)
        if dtype is None or hidden_states.device.type != "cpu" or torch.is_grad_enabled():
            result: torch.Tensor = self.original(hidden_states)
            return result
        if hidden_states.numel() == 0:
            return torch.empty_like(hidden_states)
        # Rows may be strided, as the halves of one projection are.
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        if rows.stride(1) != 1:
            rows = rows.contiguous()
        output = torch.empty(rows.shape, dtype=rows.dtype)
        self._kernel(_shared_array(rows), _shared_array(output), dtype=dtype)
        return output.view(hidden_states.shape)


def exchange_activations(model: nn.Module) -> int:
    """Puts a kernel in the place of every activation module that has one.

    Returns:
        How many were exchanged: zero when the build has no such kernels.
    """
    core = importlib.import_module("pagedkv._core")
    num_exchanged = 0
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            kernel = getattr(core, _kernel_name(child) or "", None)
            if kernel is not None:
                setattr(module, name, KernelActivation(child, kernel))
                num_exchanged += 1
    return num_exchanged


def restore_activations(model: nn.Module) -> int:
    """Undoes `exchange_activations`; returns how many were put back."""
    num_restored = 0
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, KernelActivation):
                setattr(module, name, child.original)
                num_restored += 1
    return num_restored


def _kernel_name(module: nn.Module) -> str | None:
    if isinstance(module, nn.GELU):
        return "gelu" if module.approximate == "none" else "gelu_tanh"
    return _KERNEL_NAMES.get(type(module).__name__)


def _shared_array(tensor: torch.Tensor) -> npt.NDArray[np.float32] | npt.NDArray[np.int16]:
    """The tensor as an array over its memory; NumPy has no bfloat16."""
    detached = tensor.detach()
    carrier = detached if detached.dtype is torch.float32 else detached.view(torch.int16)
    array: npt.NDArray[np.float32] | npt.NDArray[np.int16] = carrier.numpy()
    return array
