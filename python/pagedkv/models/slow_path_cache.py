"""transformers' cache interface over paged keys and values, one sequence at a time.

A model that brings its own attention code reads earlier keys and values from a `transformers.Cache`. This one keeps
them in the blocks of the engine: a layer's ``update`` writes what is new into the slots of the step and returns all that
the sequence has. Which sequence that is, `PagedCache.select` says before each forward pass.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from pagedkv.attention.slots import gather_slots, write_slots

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from pagedkv.attention.base import LayerCache


class PagedCache(Cache):  # type: ignore[misc] # transformers has no types
    """The keys and values of the selected sequence, as transformers' models ask for them."""

    def __init__(self, caches: Mapping[int, LayerCache]) -> None:
        """Keeps the layers' memory; allocates nothing.

        Args:
            caches: Keys and values by layer index, from 0 without a gap; all layers use one block table.
        """
        self._paged = [_PagedLayer(caches[layer_idx]) for layer_idx in range(len(caches))]
        super().__init__(layers=list(self._paged))

    def select(self, *, table: torch.Tensor, slots: torch.Tensor, num_cached: int) -> None:
        """Names the sequence of the next forward pass.

        Args:
            table: [M] int32, its blocks.
            slots: [T] int64, where its new tokens go; -1 where the block holds them already.
            num_cached: Tokens that come before the new ones.
        """
        positions = torch.arange(num_cached + slots.shape[0], device=table.device)
        for layer in self._paged:
            layer.select(table=table, slots=slots, positions=positions)


class _PagedLayer(CacheLayerMixin):  # type: ignore[misc] # transformers has no types
    """One layer's keys and values of the selected sequence."""

    is_sliding = False

    def __init__(self, cache: LayerCache) -> None:
        super().__init__()
        self.is_initialized = True
        self._cache = cache
        self._length = 0
        self._table = self._slots = self._positions = torch.empty(0)

    def select(self, *, table: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor) -> None:
        self._table, self._slots, self._positions = table, slots, positions
        self._length = positions.shape[0] - slots.shape[0]

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores [1, Hkv, T, D] of the new tokens and returns [1, Hkv, L, D] of all tokens.

        Raises:
            RuntimeError: These are not the selected sequence's new tokens.
        """
        del args, kwargs
        num_tokens = self._slots.shape[0]
        if key_states.shape[2] != num_tokens or self._length + num_tokens != len(self._positions):
            msg = (
                f"a layer stores keys of {key_states.shape[2]} tokens after {self._length}, "
                f"but the step has {num_tokens} of {len(self._positions)} tokens"
            )
            raise RuntimeError(msg)
        write_slots(
            self._cache, self._slots, key_states[0].transpose(0, 1), value_states[0].transpose(0, 1)
        )
        self._length += num_tokens
        keys = gather_slots(self._cache.key, self._table, self._positions)
        values = gather_slots(self._cache.value, self._table, self._positions)
        return keys[None].to(key_states.dtype), values[None].to(value_states.dtype)

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """The memory is there from the start."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys that a mask covers, and the position of the first of them."""
        return self._length + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens that the layer holds of the sequence."""
        return self._length

    def get_max_length(self) -> int:
        """No bound of its own."""
        return -1


class SequenceForward:
    """Calls a model for the new tokens of one sequence."""

    def __init__(self, model: nn.Module) -> None:
        """Finds out which arguments the model takes."""
        self._model = model
        self._parameters = inspect.signature(model.forward).parameters

    def __call__(
        self, input_ids: torch.Tensor, *, cache: Cache | None, num_cached: int, keep: torch.Tensor
    ) -> torch.Tensor:
        """Runs the tokens after ``num_cached`` earlier ones.

        Args:
            input_ids: [T] int64 on the model's device.
            cache: Holds the earlier keys and values and takes the new ones; None to run without any.
            num_cached: Number of earlier tokens.
            keep: [S] int64 on the model's device, tokens whose logits are wanted; may repeat.

        Returns:
            Logits [S, vocabulary or more] in the model's dtype.
        """
        num_tokens, device = input_ids.shape[0], input_ids.device
        seq_len = num_cached + num_tokens
        optional = {
            "attention_mask": torch.ones(1, seq_len, dtype=torch.long, device=device),
            "position_ids": torch.arange(num_cached, seq_len, device=device)[None],
            "logits_to_keep": keep,
        }
        output = self._model(
            input_ids=input_ids[None],
            past_key_values=cache,
            use_cache=cache is not None,
            **{name: given for name, given in optional.items() if name in self._parameters},
        )
        logits: torch.Tensor = output.logits[0]
        return logits if "logits_to_keep" in self._parameters else logits[keep]
