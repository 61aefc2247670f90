"""The readable reference: paged attention in plain torch operations, on any device.

Row by row, it gathers the keys that the row's queries may see, forms all scores, masks them, and takes a float32 softmax:

    o_i = sum_k softmax_k(cap(scale * q_i . k_k) + slope * (k - i), sink) v_k  over the keys k that the mask of query i allows

It is the oracle of the other backends and is meant to be read, not to be fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pagedkv.attention.slots import copy_blocks, gather_slots, write_slots

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pagedkv.attention.base import LayerCache, LayerSpec, StepInputs


class TorchBackend:
    """Paged attention by gathering each row's keys and values; needs no kernels."""

    name = "torch"

    def __init__(
        self, *, layers: Mapping[int, LayerSpec], caches: Mapping[int, LayerCache]
    ) -> None:
        """Keeps the layers and views of their keys and values; allocates nothing."""
        self._layers = layers
        self._caches = caches
        self._step: StepInputs | None = None
        self._rows: list[_Row] = []

    def plan(self, step: StepInputs) -> None:
        """Reads the batch's lengths to the host, once for all layers."""
        starts = step.query_start_loc.tolist()
        self._step = step
        self._rows = [
            _Row(row_id=row_id, start=start, stop=stop, seq_len=seq_len)
            for row_id, start, stop, seq_len in zip(
                step.row_ids.tolist(), starts[:-1], starts[1:], step.seq_lens.tolist(), strict=True
            )
        ]

    def copy_blocks(self, copies: torch.Tensor) -> None:
        """Copies blocks in every layer of a group that stores keys and values."""
        copy_blocks(self._layers, self._caches, copies)

    def write_kv(self, layer: LayerSpec, key: torch.Tensor, value: torch.Tensor) -> None:
        """Scatters keys [Tp, Hkv, Dk] and values [Tp, Hkv, Dv] to the slots of the layer's group."""
        slots = self._planned().slot_mapping[layer.group]
        write_slots(self._caches[layer.layer_idx], slots, key, value)

    def attend(
        self,
        layer: LayerSpec,
        query: torch.Tensor,
        sinks: torch.Tensor | None,
        *,
        alibi_slopes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attention of queries [Tp, H, Dk]; returns [Tp, H, Dv], zero in padding rows."""
        step = self._planned()
        cache = self._caches[layer.layer_idx]
        output = query.new_zeros(query.shape[0], layer.num_query_heads, layer.v_dim)
        for row in self._rows:
            first_key = _first_visible_key(layer, row.first_position)
            positions = torch.arange(first_key, row.seq_len, device=query.device)
            table = step.block_tables[layer.group, row.row_id]
            keys = gather_slots(cache.key, table, positions)
            values = gather_slots(cache.value, table, positions)
            output[row.start : row.stop] = _attend_row(
                layer,
                query[row.start : row.stop],
                keys,
                values,
                query_positions=torch.arange(row.first_position, row.seq_len, device=query.device),
                key_positions=positions,
                sinks=sinks,
                alibi_slopes=alibi_slopes,
            )
        return output

    def _planned(self) -> StepInputs:
        assert self._step is not None, "plan comes first"
        return self._step


class _Row:
    """One scheduled sequence: tokens ``start`` to ``stop`` of the batch, the last ones of its context."""

    __slots__ = ("first_position", "row_id", "seq_len", "start", "stop")

    def __init__(self, *, row_id: int, start: int, stop: int, seq_len: int) -> None:
        self.row_id = row_id
        self.start = start
        self.stop = stop
        self.seq_len = seq_len
        self.first_position = seq_len - (stop - start)


def _first_visible_key(layer: LayerSpec, position: int) -> int:
    """The first key that a query at ``position``, or any later one, can see."""
    if layer.window is None:
        return 0
    if layer.kind == "sliding":
        return max(0, position - layer.window + 1)
    return position // layer.window * layer.window


def _attend_row(
    layer: LayerSpec,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    query_positions: torch.Tensor,
    key_positions: torch.Tensor,
    sinks: torch.Tensor | None,
    alibi_slopes: torch.Tensor | None,
) -> torch.Tensor:
    """Attention of one row's queries [Q, H, Dk] over its visible keys [Hkv, L, Dk] and values [Hkv, L, Dv]."""
    num_queries, num_keys = query.shape[0], keys.shape[1]
    # [Hkv, H / Hkv, Q, Dk]: query heads next to the key head they read.
    grouped = (
        query.float().transpose(0, 1).reshape(layer.num_kv_heads, -1, num_queries, layer.k_dim)
    )
    scores = grouped @ keys.float().transpose(1, 2).unsqueeze(1) * layer.scale
    if layer.softcap is not None:
        scores = layer.softcap * torch.tanh(scores / layer.softcap)
    if alibi_slopes is not None:
        distances = (key_positions[None, :] - query_positions[:, None]).float()
        scores += alibi_slopes.float().view(layer.num_kv_heads, -1, 1, 1) * distances
    scores = scores.masked_fill(~_mask(layer, query_positions, key_positions), -torch.inf)
    if sinks is not None:
        column = sinks.float().view(layer.num_kv_heads, -1, 1, 1).expand(-1, -1, num_queries, 1)
        scores = torch.cat([scores, column], dim=-1)
    weights = torch.softmax(scores, dim=-1)[..., :num_keys]
    output = weights @ values.float().unsqueeze(1)
    return output.reshape(layer.num_query_heads, num_queries, layer.v_dim).transpose(0, 1)


def _mask(
    layer: LayerSpec, query_positions: torch.Tensor, key_positions: torch.Tensor
) -> torch.Tensor:
    """Which of the keys [L] each of the queries [Q] attends: [Q, L] bool."""
    query, key = query_positions[:, None], key_positions[None, :]
    causal = key <= query
    if layer.window is None:
        return causal
    if layer.kind == "sliding":
        return causal & (query - key < layer.window)
    return causal & (query // layer.window == key // layer.window)
