"""Rotary position embeddings in one pass instead of ten.

Nearly every model family of transformers has a function ``apply_rotary_pos_emb`` of its own, which the forward of its
attention looks up in its module, and nearly all of them compute the same. Whether one does is found by running it. The
forward of such an attention is exchanged for the same code with another function under that name; the module of
transformers stays as it is.
"""

from __future__ import annotations

from functools import update_wrapper
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

import torch

from pagedkv import _core
from pagedkv.arrays import DTYPE_NAMES, kernel_dtype, new_output, shared_array

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    Rotation = Callable[..., Any]

# The name under which the code of attention modules looks for the function.
_NAME = "apply_rotary_pos_emb"


class KernelRotary:
    """A function ``(q, k, cos, sin, unsqueeze_dim=1)`` computed by the kernel where that gives the same bits.

    Attributes:
        own: The function that it stands for, which any other call goes to.
        dtypes: In which it gives the same bits.
    """

    def __init__(self, own: Rotation, dtypes: frozenset[torch.dtype]) -> None:
        """Stands for ``own``."""
        self.own = own
        self.dtypes = dtypes

    def __call__(self, *arguments: Any, **keywords: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries [1, H, T, D] and keys [1, Hkv, T, D], rotated by cosines and sines [1, T, D] of their positions."""
        if len(arguments) != len(_ARGUMENTS) or keywords or not self._fits(*arguments):
            own: tuple[torch.Tensor, torch.Tensor] = self.own(*arguments, **keywords)
            return own
        query, key, cos, sin = arguments
        cosines, sines = shared_array(cos[0]), shared_array(sin[0])
        return _rotated(query, cosines, sines), _rotated(key, cosines, sines)

    def _fits(
        self, query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> bool:
        dtype = query.dtype
        return (
            dtype in self.dtypes
            and kernel_dtype(query) is not None
            and key.dtype is dtype
            and cos.dtype is dtype
            and sin.dtype is dtype
            and query.shape[0] == key.shape[0] == 1
            and query.shape[2:] == key.shape[2:] == cos.shape[1:] == sin.shape[1:]
            and query.stride(3) == key.stride(3) == cos.stride(2) == sin.stride(2) == 1
        )


_ARGUMENTS = ("q", "k", "cos", "sin")


def rotary_forward(
    module: nn.Module, kernels: dict[Rotation, KernelRotary | None]
) -> MethodType | None:
    """The forward of ``module`` with a kernel in the place of its rotation; None if it has none that a kernel computes.

    Args:
        module: Any module.
        kernels: What was found for functions before, and is now.
    """
    forward = type(module).forward
    if not isinstance(forward, FunctionType) or "forward" in vars(module):
        return None
    own = forward.__globals__.get(_NAME)
    if own is None or _NAME not in forward.__code__.co_names:
        return None
    if own not in kernels:
        kernels[own] = _find_kernel(own)
    kernel = kernels[own]
    if kernel is None:
        return None
    names = {**forward.__globals__, _NAME: kernel}
    copy = FunctionType(
        forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__
    )
    copy.__kwdefaults__ = forward.__kwdefaults__
    return MethodType(update_wrapper(copy, forward), module)


def has_rotary_forward(module: nn.Module) -> bool:
    """Whether the forward of ``module`` is one of `rotary_forward`."""
    forward = vars(module).get("forward")
    return isinstance(forward, MethodType) and isinstance(
        forward.__func__.__globals__.get(_NAME), KernelRotary
    )


def _rotated(heads: torch.Tensor, cosines: Any, sines: Any) -> torch.Tensor:
    rows = heads[0].transpose(0, 1)
    output, output_array = new_output(rows.shape, rows.dtype)
    _core.rotate(shared_array(rows), cosines, sines, output_array, dtype=DTYPE_NAMES[rows.dtype])
    return output.transpose(0, 1).unsqueeze(0)


@torch.inference_mode()
def _find_kernel(own: Rotation) -> KernelRotary | None:
    """The kernel for the dtypes in which it gives the function's results; None if there is none."""
    kernel = KernelRotary(own, frozenset(DTYPE_NAMES))
    dtypes = frozenset(dtype for dtype in DTYPE_NAMES if _is_equal(kernel, dtype))
    return KernelRotary(own, dtypes) if dtypes else None


def _is_equal(kernel: KernelRotary, dtype: torch.dtype) -> bool:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    # No two angles are equal, so that halves that are exchanged show; heads lie as a projection leaves them.
    heads = [random(1, 5, count, 32).transpose(1, 2) for count in (4, 2)]
    tables = [random(1, 5, 32) for _ in range(2)]
    try:
        expected = kernel.own(*heads, *tables)
    except Exception:  # noqa: BLE001 (a function that wants other arguments is none of ours)
        return False
    got = kernel(*heads, *tables)
    return (
        isinstance(expected, tuple)
        and len(expected) == len(got)
        and all(
            isinstance(other, torch.Tensor) and other.dtype == dtype and torch.equal(one, other)
            for one, other in zip(got, expected, strict=True)
        )
    )
