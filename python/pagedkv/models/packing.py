"""Packs the weights of a model for the kernel, in the places of its parameters."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from pagedkv.arrays import DTYPE_NAMES
from pagedkv.attention.interface import LATENT_ATTRIBUTE
from pagedkv.models.packed_weight import Packed, PackedExperts, PackedWeight
from pagedkv.pages import release_pages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Pack: TypeAlias = Callable[[torch.Tensor], Packed]

_EXPERT_WEIGHTS = ("gate_up_proj", "up_proj", "down_proj")


def pack_weights(model: nn.Module) -> int:
    """Packs the weight of every layer of ``model`` that may be linear and those of its experts, one after the other.

    Whether a layer is linear shows when the model runs, see `unpack_weights`. A weight that stands in several places is
    packed once, for all of them. Left out are weights of a dtype that the kernel does not know, and those of latent
    attention, which reads parts of them.

    Returns:
        How many weights were packed.
    """
    kept = {
        id(parameter)
        for module in model.modules()
        if hasattr(module, LATENT_ATTRIBUTE)
        for parameter in cast("nn.Module", module.kv_b_proj).parameters()
    }
    packs: dict[int, Pack] = {}
    for module in model.modules():
        for parameter, pack in _packable(module):
            if id(parameter) not in kept and parameter.device.type == "cpu":
                packs.setdefault(id(parameter), pack)
    return _replace(model, lambda parameter: packs.get(id(parameter)))


def unpack_weights(model: nn.Module, *, only_if_read: bool = False) -> int:
    """Undoes `pack_weights`: wholly, or for the weights of which functions have been given copies.

    Returns:
        How many weights were unpacked.
    """

    def unpack(parameter: nn.Parameter) -> Callable[[Any], torch.Tensor] | None:
        if not isinstance(parameter, Packed) or (only_if_read and not parameter.num_unpackings):
            return None
        return type(parameter).unpacked

    return _replace(model, unpack)


def _packable(module: nn.Module) -> Iterator[tuple[nn.Parameter, Pack]]:
    """The parameters that may be packed, by the name and shape that they have in a module of this kind."""
    if isinstance(module, nn.Embedding | Conv1D):
        return
    names: tuple[str, ...] = ("weight",)
    pack: Pack = PackedWeight.pack
    num_dims = 2
    if isinstance(getattr(module, "is_transposed", None), bool):
        names, num_dims = _EXPERT_WEIGHTS, 3
        pack = partial(PackedExperts.pack, is_transposed=bool(module.is_transposed))
    for name in names:
        parameter = module._parameters.get(name)  # noqa: SLF001 (a parametrized layer has none of this name)
        if (
            type(parameter) is nn.Parameter
            and parameter.ndim == num_dims
            and parameter.dtype in DTYPE_NAMES
            and parameter.numel()
        ):
            yield parameter, pack


def _replace(
    model: nn.Module, choose: Callable[[nn.Parameter], Callable[[Any], torch.Tensor] | None]
) -> int:
    """Puts another parameter in all the places of each one for which there is a way to make it."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():  # noqa: SLF001 (named_parameters leaves out second places)
            if parameter is not None and choose(parameter) is not None:
                places.setdefault(id(parameter), []).append((module, name))
    for of_parameter in places.values():
        module, name = of_parameter[0]
        old = module.get_parameter(name)
        make = choose(old)
        assert make is not None, "chosen above"
        new = nn.Parameter(make(old), requires_grad=False)
        for module, name in of_parameter:
            module._parameters[name] = new  # noqa: SLF001 (as assigned, without the hooks)
        release_pages(old)
    return len(places)
