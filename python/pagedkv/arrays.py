"""Tensors as the kernels of ``pagedkv._core`` take them: numpy arrays over the same memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

DTypeName: TypeAlias = Literal["float32", "bfloat16", "float16"]
SharedArray: TypeAlias = "npt.NDArray[np.float32] | npt.NDArray[np.int16]"

DTYPE_NAMES: dict[torch.dtype, DTypeName] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


def kernel_dtype(tensor: torch.Tensor) -> DTypeName | None:
    """The format of a tensor that a kernel can read now: on the CPU, no gradient wanted; None for any other."""
    if not tensor.is_cpu or torch.is_grad_enabled():
        return None
    return DTYPE_NAMES.get(tensor.dtype)


def shared_array(tensor: torch.Tensor) -> SharedArray:
    """The tensor as an array over its memory; 16-bit floats travel as int16, since numpy has no bfloat16."""
    # A step makes hundreds of these: nothing is done that is not needed.
    if tensor.requires_grad:
        tensor = tensor.detach()
    carrier = tensor if tensor.dtype is torch.float32 else tensor.view(torch.int16)
    array: SharedArray = carrier.numpy()
    return array


def new_output(shape: Sequence[int], dtype: torch.dtype) -> tuple[torch.Tensor, SharedArray]:
    """A tensor for what a kernel computes, and the array over its memory that the kernel writes."""
    # numpy makes the memory and torch takes it: half the time of the other way round.
    if dtype is torch.float32:
        wide = np.empty(shape, np.float32)
        return torch.from_numpy(wide), wide
    narrow = np.empty(shape, np.int16)
    return torch.from_numpy(narrow).view(dtype), narrow


def as_rows(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as a kernel takes it: in any shape if it is contiguous, else [rows, columns] with contiguous rows.

    Copied only where the strides leave no other way.
    """
    if tensor.is_contiguous():
        return tensor
    rows = tensor.reshape(-1, tensor.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()
