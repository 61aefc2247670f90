"""One forward pass of a batch: from the step's arrays to the logits of the sampled positions."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch

from pagedkv.attention.context import StepContext, step_context
from pagedkv.models.head import LanguageModelHead
from pagedkv.models.padding import padded_rows
from pagedkv.models.torch_threads import max_rows_alone, one_torch_thread

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedModel

    from pagedkv.attention.base import AttentionBackend, LayerSpec, StepInputs
    from pagedkv.prompt_logprobs import PromptReader


class ModelRunner:
    """Runs a model, whose attention is ours, over flattened batches."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        layers: Mapping[int, LayerSpec],
        backend: AttentionBackend,
        device: torch.device,
        max_num_batched_tokens: int,
        vocab_size: int,
        row_multiple: int,
    ) -> None:
        """Reserves the padded inputs of the largest batch.

        Args:
            model: A causal language model loaded by `pagedkv.models.load_model`.
            layers: Its attention layers by index.
            backend: The attention backend over the KV cache.
            device: Where the model is.
            max_num_batched_tokens: The most tokens a batch can have.
            vocab_size: Logits beyond it, which some models pad, are left out.
            row_multiple: Of how many rows batches are multiples.
        """
        self._model = model
        self._head = LanguageModelHead(model)
        self._vocab_size = vocab_size
        self._context = StepContext(backend=backend, layers=layers)
        self._row_multiple = row_multiple
        capacity = padded_rows(max_num_batched_tokens, row_multiple)
        self._input_ids = torch.zeros(1, capacity, dtype=torch.long, device=device)
        self._positions = torch.zeros(1, capacity, dtype=torch.long, device=device)
        self._max_rows_alone = max_rows_alone(model) if device.type == "cpu" else 0

    @torch.inference_mode()
    def forward(self, step: StepInputs) -> torch.Tensor:
        """Runs the batch: block copies, keys and values into their slots, logits of the sampled positions.

        Args:
            step: The batch. ``num_tokens_padded`` comes from `pagedkv.models.padded_rows`, with the same multiple.

        Returns:
            [S, vocabulary] float32 on the model's device, valid until the caller drops it.
        """
        backend = self._context.backend
        backend.plan(step)
        if step.block_copies.shape[0]:
            backend.copy_blocks(step.block_copies)
        num_samples = step.logits_indices.shape[0]
        input_ids, positions = self._padded_inputs(step)
        is_small = step.num_tokens_padded <= self._max_rows_alone
        with step_context(self._context), one_torch_thread() if is_small else nullcontext():
            output = self._model(
                input_ids=input_ids,
                position_ids=positions,
                use_cache=False,
                logits_to_keep=self._padded_indices(step.logits_indices, input_ids.device),
            )
        logits: torch.Tensor = output.logits
        return logits[0, :num_samples, : self._vocab_size].float()

    @torch.inference_mode()
    def forward_read(self, step: StepInputs, reader: PromptReader) -> torch.Tensor:
        """The same, and the logits of more positions for a reader, in chunks."""
        with self._head.watch():
            logits = self.forward(step)
        for indices in torch.split(reader.indices, reader.chunk_rows):
            part = self._head.logits(self._padded_indices(indices, logits.device))
            reader.take(part[: indices.shape[0], : self._vocab_size].float())
        self._head.forget()
        return logits

    def _padded_inputs(self, step: StepInputs) -> tuple[torch.Tensor, torch.Tensor]:
        num_tokens, num_padded = step.num_tokens, step.num_tokens_padded
        input_ids = self._input_ids[:, :num_padded]
        positions = self._positions[:, :num_padded]
        input_ids[0, :num_tokens] = step.input_ids
        positions[0, :num_tokens] = step.positions
        input_ids[0, num_tokens:] = 0
        positions[0, num_tokens:] = 0
        return input_ids, positions

    def _padded_indices(self, indices: torch.Tensor, device: torch.device) -> torch.Tensor:
        """The sampled positions [S] as int64, followed by zeros up to a padded row count, at least one row."""
        num_padded = padded_rows(max(indices.shape[0], 1), self._row_multiple)
        padded = torch.zeros(num_padded, dtype=torch.long)
        padded[: indices.shape[0]] = indices
        return padded.to(device)
