"""Slots of paged keys and values with torch operations, on any device: written, read and copied by index."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from pagedkv.attention.base import LayerCache, LayerSpec


def write_slots(
    cache: LayerCache, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> None:
    """Stores keys and values of tokens; those whose slot is negative are left out.

    Args:
        cache: The layer's keys and values.
        slots: [T] int64, ``block * block_size + offset``.
        key: [T or more, Hkv, Dk], any strides.
        value: [T or more, Hkv, Dv], any strides.
    """
    block_size = cache.key.shape[2]
    tokens = (slots >= 0).nonzero().squeeze(1)
    blocks, offsets = slots[tokens] // block_size, slots[tokens] % block_size
    cache.key[blocks, :, offsets] = key[tokens].to(cache.key.dtype)
    cache.value[blocks, :, offsets] = value[tokens].to(cache.value.dtype)


def gather_slots(cache: torch.Tensor, table: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """What one row stored for some of its positions.

    Args:
        cache: [num_blocks, Hkv, block_size, D].
        table: [M] int32, the row's blocks.
        positions: [L] int64.

    Returns:
        [Hkv, L, D] contiguous.
    """
    block_size = cache.shape[2]
    blocks = table[positions // block_size].long()
    return cache.transpose(0, 1)[:, blocks, positions % block_size]


def copy_blocks(
    layers: Mapping[int, LayerSpec], caches: Mapping[int, LayerCache], copies: torch.Tensor
) -> None:
    """Copies whole blocks in every layer of a group that stores keys and values.

    Args:
        layers: The layers by index.
        caches: Their keys and values by index.
        copies: [C, 3] int32 (group, from, to).
    """
    for group, source, target in copies.tolist():
        for layer in layers.values():
            if layer.group == group and layer.alias_of is None:
                cache = caches[layer.layer_idx]
                cache.key[target] = cache.key[source]
                cache.value[target] = cache.value[source]
