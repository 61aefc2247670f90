"""Repetition, frequency and presence penalties over counts that exist only for rows that use them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    import numpy.typing as npt

    from pagedkv.sampling.row_state import RowState
    from pagedkv.sampling.targets import SampleTargets

_NO_SLOT = -1


class Penalties:
    """The penalties by row, and how often each token occurred in rows that have any.

    A row with penalties holds a slot of two arrays over the vocabulary; rows without cost nothing.
    """

    def __init__(self, *, max_num_seqs: int, vocab_size: int, device: torch.device) -> None:
        """Reserves nothing but what is small."""
        self._device = device
        self._presence = np.zeros(max_num_seqs, dtype=np.float32)
        self._frequency = np.zeros(max_num_seqs, dtype=np.float32)
        self._repetition = np.ones(max_num_seqs, dtype=np.float32)
        self._slot_of_row = np.full(max_num_seqs, _NO_SLOT, dtype=np.int64)
        self._free_slots: list[int] = []
        self._output_counts = torch.zeros(0, vocab_size, dtype=torch.int32, device=device)
        self._is_in_prompt = torch.zeros(0, vocab_size, dtype=torch.bool, device=device)

    def fill(self, row: int, state: RowState) -> None:
        """Counts the tokens of the row's sequence if it has penalties; O(vocabulary + tokens) then."""
        params = state.params
        slot = int(self._slot_of_row[row])
        if not params.has_penalties:
            if slot != _NO_SLOT:
                self._free_slots.append(slot)
                self._slot_of_row[row] = _NO_SLOT
            return
        if slot == _NO_SLOT:
            slot = self._take_slot()
            self._slot_of_row[row] = slot
        self._presence[row] = params.presence_penalty
        self._frequency[row] = params.frequency_penalty
        self._repetition[row] = params.repetition_penalty
        output = torch.as_tensor(state.output_token_ids, dtype=torch.long, device=self._device)
        prompt = torch.as_tensor(state.prompt_token_ids, dtype=torch.long, device=self._device)
        counts = torch.bincount(output, minlength=self._output_counts.shape[1])
        self._output_counts[slot] = counts.to(torch.int32)
        self._is_in_prompt[slot] = False
        self._is_in_prompt[slot, prompt] = True

    def active(self, targets: SampleTargets) -> npt.NDArray[np.bool_]:
        """[S], which samples have penalties."""
        has_slot: npt.NDArray[np.bool_] = self._slot_of_row[targets.rows] != _NO_SLOT
        return has_slot

    def apply(
        self, logits: torch.Tensor, places: npt.NDArray[np.int64], targets: SampleTargets
    ) -> None:
        """Repetition first, then frequency, then presence; see `LogitsEdit.apply`."""
        is_all = places.size == logits.shape[0]
        at = torch.from_numpy(places).to(self._device)
        part = logits if is_all else logits[at]
        slots = torch.from_numpy(self._slot_of_row[targets.rows]).to(self._device)
        counts = self._output_counts[slots]
        is_in_output = counts > 0

        def column(values: npt.NDArray[np.float32]) -> torch.Tensor:
            return torch.from_numpy(values[targets.rows]).to(self._device).unsqueeze(1)

        repetition = column(self._repetition)
        repeated = torch.where(part > 0, part / repetition, part * repetition)
        part = torch.where(is_in_output | self._is_in_prompt[slots], repeated, part)
        part -= column(self._frequency) * counts
        part -= column(self._presence) * is_in_output
        if is_all:
            logits.copy_(part)
        else:
            logits[at] = part

    def count(self, rows: npt.NDArray[np.int32], token_ids: npt.NDArray[np.int32]) -> None:
        """Adds one sampled token to each of the rows, which are distinct, that has penalties."""
        slots_of_rows = self._slot_of_row[rows]
        has_slot = slots_of_rows != _NO_SLOT
        if has_slot.any():
            slots = torch.from_numpy(slots_of_rows[has_slot]).to(self._device)
            ids = torch.from_numpy(token_ids[has_slot].astype(np.int64)).to(self._device)
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
