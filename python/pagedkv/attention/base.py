"""What an attention backend is given and what it must do.

Symbols used in shapes, here and in every backend: T tokens of the batch, Tp tokens with padding rows, R rows (scheduled
sequences), S sampled positions, G KV groups, B the most rows there can be, M blocks per row, H query heads, Hkv key and
value heads, Dk and Dv their sizes, C block copies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

LayerKind = Literal["full", "sliding", "chunked"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    """Attention of one decoder layer: its geometry, its mask, and where its keys and values live.

    A query at position q attends the key at position k <= q of its own row iff
    ``full``: always; ``sliding``: ``q - k < window``; ``chunked``: ``q // window == k // window``.

    Attributes:
        layer_idx: Index by which the model names the layer.
        num_query_heads: H; a multiple of ``num_kv_heads``. Query head h reads key head ``h // (H // Hkv)``.
        num_kv_heads: Hkv.
        k_dim: Dk.
        v_dim: Dv; may differ from ``k_dim``.
        scale: Factor of the scores ``q . k``.
        softcap: When set, scores become ``softcap * tanh(score / softcap)`` after scaling, before the mask.
        has_sinks: The model passes one extra logit per query head that takes part in the softmax and has no value.
        kind: Which keys a query attends.
        window: Width of the window or chunk in tokens; None for ``full``.
        group: KV group, the first index of ``block_tables`` and ``slot_mapping``.
        storage: Index of the K and V memory that the layer uses, shared with one layer of every other group.
        alias_of: Layer whose keys and values this one reads; it then writes none itself.
        is_latent: The values are the first ``v_dim`` numbers of the keys and take no memory of their own.
    """

    layer_idx: int
    num_query_heads: int
    num_kv_heads: int
    k_dim: int
    v_dim: int
    scale: float
    softcap: float | None
    has_sinks: bool
    kind: LayerKind
    window: int | None
    group: int
    storage: int
    alias_of: int | None
    is_latent: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInputs:
    """The arrays of one batch as tensors, cut to the counts of the batch.

    On a CPU they are views of the step buffers: valid until the next batch is scheduled.

    Attributes:
        row_ids: [R] int32, stable slot of each scheduled sequence.
        query_start_loc: [R + 1] int32, prefix sums of tokens per row.
        seq_lens: [R] int32, context length after this step.
        input_ids: [T] int32.
        positions: [T] int32.
        slot_mapping: [G, T] int64, ``block * block_size + offset`` where a token's K and V go; -1 writes nothing.
        block_tables: [G, B, M] int32, indexed by row id; 0 stands for blocks that are unused or given back.
        logits_indices: [S] int32, positions in T that are sampled; may repeat.
        block_copies: [C, 3] int32, (group, from, to), done before anything is written.
        num_tokens_padded: Tp >= T, the length of the flattened batch that the model runs.
    """

    row_ids: torch.Tensor
    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    input_ids: torch.Tensor
    positions: torch.Tensor
    slot_mapping: torch.Tensor
    block_tables: torch.Tensor
    logits_indices: torch.Tensor
    block_copies: torch.Tensor
    num_tokens_padded: int

    @property
    def num_rows(self) -> int:
        """R."""
        return self.row_ids.shape[0]

    @property
    def num_tokens(self) -> int:
        """T, without padding."""
        return self.input_ids.shape[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCache:
    """The paged keys and values of one layer.

    Both tensors are strided views: use their strides, never their shapes, to compute addresses. Layers of different
    groups view the same memory, and a block may be followed by bytes that belong to no layer.

    Attributes:
        key: [num_blocks, Hkv, block_size, Dk]: of a slot all numbers side by side, or, in columns, of a number all slots of
            the block.
        value: [num_blocks, Hkv, block_size, Dv]; of a latent layer a view of the keys.
    """

    key: torch.Tensor
    value: torch.Tensor


class AttentionBackend(Protocol):
    """Paged attention over the blocks of a batch.

    A backend is constructed with ``layers`` (a mapping from layer index to LayerSpec) and ``caches`` (from layer index to
    LayerCache; a layer with ``alias_of`` maps to the cache of its source). Calls of one step come in this order:
    ``plan``, ``copy_blocks``, then ``write_kv`` and ``attend`` for layer after layer.
    """

    name: str

    def plan(self, step: StepInputs) -> None:
        """Takes the arrays of the step that the next calls belong to."""

    def copy_blocks(self, copies: torch.Tensor) -> None:
        """Copies whole blocks in every layer of a group.

        Args:
            copies: [C, 3] int32 (group, from, to) on the CPU. No block is both a source and a destination.
        """

    def write_kv(self, layer: LayerSpec, key: torch.Tensor, value: torch.Tensor) -> None:
        """Stores the keys and values of the batch's tokens at ``slot_mapping[layer.group]``.

        Args:
            layer: Layer without ``alias_of``.
            key: [Tp, Hkv, Dk], any strides; rows from T on are padding and are not stored.
            value: [Tp, Hkv, Dv], any strides; not stored for a latent layer.
        """

    def attend(
        self,
        layer: LayerSpec,
        query: torch.Tensor,
        sinks: torch.Tensor | None,
        *,
        alibi_slopes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attention of every query over its row's keys, read through the block tables.

        Query i of row r stands at position ``seq_lens[r] - query_len[r] + i``. Slots that the mask excludes are never
        read into the result, not even with weight zero: they may hold NaN.

        Args:
            layer: The layer whose cache is read.
            query: [Tp, H, Dk], any strides.
            sinks: [H], None unless ``layer.has_sinks``.
            alibi_slopes: [H], factor of (key position - query position), added to the capped scores.

        Returns:
            [Tp, H, Dv] contiguous, in the dtype of ``query``; rows from T on are zero.
        """


class BackendFactory(Protocol):
    """How `create_backend` constructs a backend."""

    def __call__(
        self, *, layers: Mapping[int, LayerSpec], caches: Mapping[int, LayerCache]
    ) -> AttentionBackend:
        """Builds a backend over the given layers and their paged keys and values."""
