"""The slow path's forward pass: a batch, sequence after sequence, for models with attention code of their own."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

from pagedkv.attention.slots import copy_blocks
from pagedkv.models.head import LanguageModelHead
from pagedkv.models.slow_path_cache import PagedCache, SequenceForward

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from pagedkv.attention.base import LayerCache, LayerSpec, StepInputs
    from pagedkv.prompt_logprobs import PromptReader


class SequenceRunner:
    """Runs a model one scheduled row at a time over the paged keys and values; the twin of `ModelRunner`."""

    def __init__(
        self,
        model: nn.Module,
        *,
        layers: Mapping[int, LayerSpec],
        caches: Mapping[int, LayerCache],
        device: torch.device,
        vocab_size: int,
    ) -> None:
        """Keeps the parts; allocates nothing.

        Args:
            model: A causal language model that `pagedkv.models.load_model` put on the slow path.
            layers: Its layers by index, all in one KV group.
            caches: Their keys and values by index.
            device: Where the model is.
            vocab_size: Logits beyond it, which some models pad, are left out.
        """
        self._layers = layers
        self._caches = caches
        self._device = device
        self._vocab_size = vocab_size
        self._cache = PagedCache(caches)
        self._head = LanguageModelHead(model)
        self._sequence_forward = SequenceForward(model)

    @torch.inference_mode()
    def forward(self, step: StepInputs) -> torch.Tensor:
        """Runs the batch: block copies, keys and values into their slots, logits of the sampled positions.

        Returns:
            [S, vocabulary] float32 on the model's device, valid until the caller drops it.
        """
        return self._run(step, None)

    @torch.inference_mode()
    def forward_read(self, step: StepInputs, reader: PromptReader) -> torch.Tensor:
        """The same, and the logits of more positions for a reader, in chunks."""
        return self._run(step, reader)

    def _run(self, step: StepInputs, reader: PromptReader | None) -> torch.Tensor:
        copy_blocks(self._layers, self._caches, step.block_copies)
        logits = torch.empty(
            step.logits_indices.shape[0], self._vocab_size, dtype=torch.float32, device=self._device
        )
        input_ids = step.input_ids.to(self._device, torch.long)
        starts = step.query_start_loc.tolist()
        row_ids, seq_lens = step.row_ids.tolist(), step.seq_lens.tolist()
        for row_id, start, stop, seq_len in zip(
            row_ids, starts[:-1], starts[1:], seq_lens, strict=True
        ):
            num_cached = seq_len - (stop - start)
            self._cache.select(
                table=step.block_tables[0, row_id],
                slots=step.slot_mapping[0, start:stop],
                num_cached=num_cached,
            )
            indices = step.logits_indices
            samples = ((indices >= start) & (indices < stop)).nonzero().squeeze(1)
            # A chunk that is not sampled still runs to its end; the logits of one token are the least to ask for.
            keep = (indices[samples] - start).long() if len(samples) else torch.zeros(1).long()
            read = torch.zeros(0, dtype=torch.long)
            if reader is not None:
                inside = (reader.indices >= start) & (reader.indices < stop)
                read = reader.indices[inside] - start
            with self._head.watch() if len(read) else contextlib.nullcontext():
                row_logits = self._sequence_forward(
                    input_ids[start:stop],
                    cache=self._cache,
                    num_cached=num_cached,
                    keep=keep.to(self._device),
                )
            if reader is not None and len(read):
                for part in torch.split(read, reader.chunk_rows):
                    part_logits = self._head.logits(part.to(self._device))
                    reader.take(part_logits[:, : self._vocab_size].float())
                self._head.forget()
            logits[samples.to(self._device)] = row_logits[
                : len(samples), : self._vocab_size
            ].float()
        return logits
