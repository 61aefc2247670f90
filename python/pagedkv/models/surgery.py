"""Exchanges modules of a loaded model for ones that compute the same in a kernel of ``pagedkv._core``.

Besides being faster on a few rows, a kernel's row does not depend on how many rows there are. torch cuts an operation
into pieces by thread and size, and where a row meets the end of a piece it is rounded otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from pagedkv.attention.interface import LATENT_ATTRIBUTE
from pagedkv.models.activation import KernelActivation, activation_kernel
from pagedkv.models.norm import KernelRmsNorm, norm_kernel
from pagedkv.models.packed_weight import Packed
from pagedkv.models.packing import pack_weights, unpack_weights
from pagedkv.models.rotary import has_rotary_forward, rotary_forward

if TYPE_CHECKING:
    from collections.abc import Callable

    from pagedkv.models.rotary import KernelRotary, Rotation


def use_kernels(model: nn.Module) -> int:
    """Has linear layers, root-mean-square norms, activations and rotary embeddings of ``model`` computed by kernels, in place.

    What no kernel computes stays as it is; names and shapes of parameters stay those that they were.

    Returns:
        How many modules and weights were exchanged.
    """
    return (
        exchange_children(model, activation_kernel)
        + _exchange_norms(model)
        + _exchange_rotations(model)
        + pack_weights(model)
    )


def use_torch(model: nn.Module) -> int:
    """Undoes `use_kernels`; returns how many modules and weights were put back."""
    num_restored = unpack_weights(model)
    for module in model.modules():
        if isinstance(vars(module).get("forward"), KernelRmsNorm) or has_rotary_forward(module):
            del module.forward
            num_restored += 1
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, KernelActivation):
                setattr(parent, name, child.original)
                num_restored += 1
    return num_restored


def multiplies_in_kernels(model: nn.Module) -> bool:
    """Whether no product of ``model`` with its parameters is torch's, as far as its modules show."""
    for module in model.modules():
        matrices = [weight for weight in module.parameters(recurse=False) if weight.ndim > 1]
        in_torch = any(not isinstance(matrix, Packed) for matrix in matrices)
        if in_torch and not isinstance(module, nn.Embedding):
            return False
        # It multiplies with a layer's weight itself.
        if hasattr(module, LATENT_ATTRIBUTE):
            return False
    return True


def exchange_children(model: nn.Module, stand_in: Callable[[nn.Module], nn.Module | None]) -> int:
    """Puts ``stand_in(module)`` in the place of every module for which there is one.

    Returns:
        How many were exchanged.
    """
    num_exchanged = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            replacement = stand_in(child)
            if replacement is not None:
                setattr(parent, name, replacement)
                num_exchanged += 1
    return num_exchanged


def _exchange_rotations(model: nn.Module) -> int:
    kernels: dict[Rotation, KernelRotary | None] = {}
    num_exchanged = 0
    for module in model.modules():
        forward = rotary_forward(module, kernels)
        if forward is not None:
            module.forward = forward
            num_exchanged += 1
    return num_exchanged


def _exchange_norms(model: nn.Module) -> int:
    """Only the forward is exchanged: models look at the weights of their norms."""
    num_exchanged = 0
    for module in model.modules():
        kernel = norm_kernel(module)
        if kernel is not None:
            module.forward = kernel
            num_exchanged += 1
    return num_exchanged
