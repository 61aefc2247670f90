"""Repetition, frequency and presence penalties over counts that exist only for rows that use them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    import numpy.typing as npt

    from pagedkv.sampling.rows import SamplingRows

_NO_SLOT = -1


class PenaltyCounts:
    """How often each token occurred, per row with penalties.

    A row with penalties holds a slot of two arrays over the vocabulary; rows without cost nothing.
    """

    def __init__(self, *, max_num_seqs: int, vocab_size: int, device: torch.device) -> None:
        """Reserves nothing but the map from rows to slots."""
        self._device = device
        self._slot_of_row = np.full(max_num_seqs, _NO_SLOT, dtype=np.int64)
        self._free_slots: list[int] = []
        self._output_counts = torch.zeros(0, vocab_size, dtype=torch.int32, device=device)
        self._is_in_prompt = torch.zeros(0, vocab_size, dtype=torch.bool, device=device)

    def fill(
        self,
        row: int,
        *,
        prompt_token_ids: npt.NDArray[np.int32],
        output_token_ids: npt.NDArray[np.int32],
    ) -> None:
        """Counts the tokens of the sequence that got ``row``; O(vocabulary + tokens)."""
        slot = int(self._slot_of_row[row])
        if slot == _NO_SLOT:
            slot = self._take_slot()
            self._slot_of_row[row] = slot
        output = torch.as_tensor(output_token_ids, dtype=torch.long, device=self._device)
        prompt = torch.as_tensor(prompt_token_ids, dtype=torch.long, device=self._device)
        counts = torch.bincount(output, minlength=self._output_counts.shape[1])
        self._output_counts[slot] = counts.to(torch.int32)
        self._is_in_prompt[slot] = False
        self._is_in_prompt[slot, prompt] = True

    def clear(self, row: int) -> None:
        """Gives the row's slot back; a row without one is fine."""
        slot = int(self._slot_of_row[row])
        if slot != _NO_SLOT:
            self._free_slots.append(slot)
            self._slot_of_row[row] = _NO_SLOT

    def apply(
        self, logits: torch.Tensor, parameters: SamplingRows, rows: npt.NDArray[np.int32]
    ) -> torch.Tensor:
        """The logits with the rows' penalties: repetition first, then frequency, then presence.

        Args:
            logits: [P, V] float32; may be overwritten.
            parameters: The penalties by row.
            rows: [P] rows, each filled here.
        """
        slots = torch.from_numpy(self._slot_of_row[rows]).to(self._device)
        counts = self._output_counts[slots]
        is_in_output = counts > 0

        def column(values: npt.NDArray[np.float32]) -> torch.Tensor:
            return torch.from_numpy(values[rows]).to(self._device).unsqueeze(1)

        repetition = column(parameters.repetition_penalty)
        repeated = torch.where(logits > 0, logits / repetition, logits * repetition)
        logits = torch.where(is_in_output | self._is_in_prompt[slots], repeated, logits)
        logits -= column(parameters.frequency_penalty) * counts
        logits -= column(parameters.presence_penalty) * is_in_output
        return logits

    def count(self, rows: npt.NDArray[np.int32], token_ids: npt.NDArray[np.int32]) -> None:
        """Adds one sampled token to each of the rows, which are distinct and filled here."""
        slots = torch.from_numpy(self._slot_of_row[rows]).to(self._device)
        ids = torch.from_numpy(token_ids.astype(np.int64)).to(self._device)
        self._output_counts[slots, ids] += 1

    def _take_slot(self) -> int:
        if not self._free_slots:
            num_slots = self._output_counts.shape[0]
            # Doubling keeps the copies of a growing pool linear in its final size.
            added = max(1, num_slots)
            self._output_counts = _with_more_rows(self._output_counts, added)
            self._is_in_prompt = _with_more_rows(self._is_in_prompt, added)
            self._free_slots.extend(range(num_slots + added - 1, num_slots - 1, -1))
        return self._free_slots.pop()


def _with_more_rows(array: torch.Tensor, num_added: int) -> torch.Tensor:
    return torch.cat([array, array.new_zeros(num_added, array.shape[1])])
