"""``logit_bias``: numbers added to the logits of some tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    import numpy.typing as npt

    from pagedkv.sampling.row_state import RowState
    from pagedkv.sampling.targets import SampleTargets


class LogitBias:
    """Ids and what to add to them, by row."""

    def __init__(self, *, max_num_seqs: int, device: torch.device) -> None:
        """Biases no row."""
        self._device = device
        self._terms: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._is_biased = np.zeros(max_num_seqs, dtype=np.bool_)

    def fill(self, row: int, state: RowState) -> None:
        """Notes the row's biases, whose ids are inside the vocabulary."""
        bias = state.logit_bias
        self._is_biased[row] = bool(bias)
        if bias:
            ids = torch.tensor(list(bias), dtype=torch.long)
            numbers = torch.tensor(list(bias.values()), dtype=torch.float32)
            self._terms[row] = ids.to(self._device), numbers.to(self._device)
        else:
            self._terms.pop(row, None)

    def active(self, targets: SampleTargets) -> npt.NDArray[np.bool_]:
        """[S], which samples have biases."""
        return self._is_biased[targets.rows]

    def apply(
        self, logits: torch.Tensor, places: npt.NDArray[np.int64], targets: SampleTargets
    ) -> None:
        """Adds them; see `LogitsEdit.apply`."""
        for place, row in zip(places.tolist(), targets.rows.tolist(), strict=True):
            ids, numbers = self._terms[row]
            logits[place, ids] += numbers
