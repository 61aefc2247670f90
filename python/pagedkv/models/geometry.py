"""KV geometry: which layers share a block table, which share memory, and how many bytes a block has.

Layers with the same mask form one kind; latent layers are kinds of their own. Each kind is cut into KV groups of L layers, the last one padded, and the i-th
layer of every group uses storage i. A block therefore has the same bytes in every group, and one pool serves all groups:

    gemma3, 26 layers, 22 sliding and 4 full; L = 4
                storage 0   storage 1   storage 2   storage 3
    group 0     layer 0     layer 1     layer 2     layer 3        sliding
    ...
    group 5     layer 24    layer 25    -           -              sliding, padded
    group 6     layer 5     layer 11    layer 17    layer 23       full

A uniform model has one group and as many storages as layers.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pagedkv.attention.base import LayerKind, LayerSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import torch

    from pagedkv.models.probe import ProbedLayer

# What a padded layer costs when its group keeps the whole context rather than a window: a long context is several
# windows, so a layer added to a full group wastes far more memory.
_FULL_LAYER_WEIGHT = 8
# Relative cost of one more block table per sequence.
_GROUP_COST = 0.02


@dataclass(frozen=True, slots=True)
class KvGroup:
    """Layers that share one block table.

    Attributes:
        kind: Their mask.
        window: Its width in tokens, None for ``full``.
        is_latent: They cache latents: keys whose first numbers are the values.
    """

    kind: LayerKind
    window: int | None
    is_latent: bool = False


@dataclass(frozen=True, slots=True)
class StorageShape:
    """Numbers that one token takes in a storage: the most that any of its layers needs.

    Attributes:
        key_size: Hkv * Dk.
        value_size: Hkv * Dv; nothing for a latent layer, whose values are a part of its keys.
    """

    key_size: int
    value_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KvGeometry:
    """The layers of a model with their groups and storages.

    Attributes:
        layers: In the order of their index.
        groups: KV groups; ``LayerSpec.group`` indexes them.
        storages: K and V memories; ``LayerSpec.storage`` indexes them.
    """

    layers: tuple[LayerSpec, ...]
    groups: tuple[KvGroup, ...]
    storages: tuple[StorageShape, ...]

    @property
    def scheduler_groups(self) -> list[tuple[str, int]]:
        """The groups as the scheduler takes them: (kind, window), window 0 for full attention."""
        return [(group.kind, group.window or 0) for group in self.groups]

    def bytes_per_block(self, *, block_size: int, dtype: torch.dtype) -> int:
        """Bytes of one block over all storages, keys and values."""
        per_token = sum(storage.key_size + storage.value_size for storage in self.storages)
        return per_token * block_size * dtype.itemsize

    def num_blocks_for(self, memory_bytes: int, *, block_size: int, dtype: torch.dtype) -> int:
        """How many blocks, the null block among them, fit into ``memory_bytes``."""
        return memory_bytes // self.bytes_per_block(block_size=block_size, dtype=dtype)

    def blocks_for_sequence(self, num_tokens: int, *, block_size: int, query_len: int) -> int:
        """The most blocks that one sequence of ``num_tokens`` holds at a time, over all groups.

        Args:
            num_tokens: Its length at the end.
            block_size: Tokens per block.
            query_len: The most tokens of it that run in one step; a window group needs blocks for these
                besides its window.
        """
        total = 0
        for group in self.groups:
            held = num_tokens
            if group.window is not None:
                # One block more than the tokens fill, since a window may begin anywhere in its first block.
                held = min(num_tokens, group.window + query_len + block_size - 1)
            total += -(-held // block_size)
        return total


def plan_geometry(probed: Sequence[ProbedLayer], *, max_model_len: int) -> KvGeometry:
    """Assigns groups and storages to probed layers.

    Args:
        probed: In the order of their index.
        max_model_len: The longest context. A window that is not shorter is no window.
    """
    masks = {layer.layer_idx: _effective_mask(layer, max_model_len) for layer in probed}
    aliases = {
        layer.layer_idx: layer.same_kv_as
        for layer in probed
        if layer.same_kv_as is not None and masks[layer.same_kv_as] == masks[layer.layer_idx]
    }
    kinds: dict[KvGroup, list[ProbedLayer]] = defaultdict(list)
    for layer in probed:
        if layer.layer_idx not in aliases:
            kinds[masks[layer.layer_idx]].append(layer)

    group_size = _choose_group_size([(kind, len(members)) for kind, members in kinds.items()])
    groups: list[KvGroup] = []
    places: dict[int, tuple[int, int]] = {}
    storage_members: dict[int, list[ProbedLayer]] = defaultdict(list)
    for kind, members in kinds.items():
        for start in range(0, len(members), group_size):
            for storage, layer in enumerate(members[start : start + group_size]):
                places[layer.layer_idx] = (len(groups), storage)
                storage_members[storage].append(layer)
            groups.append(kind)

    layers = []
    for layer in probed:
        alias_of = aliases.get(layer.layer_idx)
        group, storage = places[layer.layer_idx if alias_of is None else alias_of]
        layers.append(
            _layer_spec(layer, groups[group], group=group, storage=storage, alias_of=alias_of)
        )
    return KvGeometry(
        layers=tuple(layers),
        groups=tuple(groups),
        storages=tuple(_storage_shape(storage_members[i]) for i in range(len(storage_members))),
    )


def _effective_mask(layer: ProbedLayer, max_model_len: int) -> KvGroup:
    if layer.window is None or layer.window >= max_model_len:
        return KvGroup("full", None, layer.is_latent)
    return KvGroup(layer.kind, layer.window, layer.is_latent)


def _layer_spec(
    layer: ProbedLayer, mask: KvGroup, *, group: int, storage: int, alias_of: int | None
) -> LayerSpec:
    return LayerSpec(
        layer_idx=layer.layer_idx,
        num_query_heads=layer.num_query_heads,
        num_kv_heads=layer.num_kv_heads,
        k_dim=layer.k_dim,
        v_dim=layer.v_dim,
        scale=layer.scale,
        softcap=layer.softcap,
        has_sinks=layer.has_sinks,
        kind=mask.kind,
        window=mask.window,
        group=group,
        storage=storage,
        alias_of=alias_of,
        is_latent=layer.is_latent,
    )


def _choose_group_size(kinds: Sequence[tuple[KvGroup, int]]) -> int:
    """Layers per group: little padding, above all in full groups, and few groups."""

    def cost(size: int) -> float:
        num_groups, padded_layers = 0, 0
        for kind, count in kinds:
            groups_of_kind = -(-count // size)
            num_groups += groups_of_kind
            weight = _FULL_LAYER_WEIGHT if kind.window is None else 1
            padded_layers += weight * groups_of_kind * size
        return padded_layers * (1 + _GROUP_COST * num_groups)

    # Of equal costs the largest size, which gives the fewest groups.
    return min(range(max(count for _, count in kinds), 0, -1), key=cost)


def _storage_shape(layers: Iterable[ProbedLayer]) -> StorageShape:
    members = list(layers)
    return StorageShape(
        key_size=max(layer.num_kv_heads * layer.k_dim for layer in members),
        value_size=max(
            0 if layer.is_latent else layer.num_kv_heads * layer.v_dim for layer in members
        ),
    )
