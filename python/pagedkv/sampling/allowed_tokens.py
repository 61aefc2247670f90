"""``allowed_token_ids``: nothing but these may come."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    import numpy.typing as npt

    from pagedkv.sampling.row_state import RowState
    from pagedkv.sampling.targets import SampleTargets


class AllowedTokens:
    """The allowed ids by row."""

    def __init__(self, *, max_num_seqs: int, device: torch.device) -> None:
        """Restricts no row."""
        self._device = device
        self._ids: dict[int, torch.Tensor] = {}
        self._is_restricted = np.zeros(max_num_seqs, dtype=np.bool_)

    def fill(self, row: int, state: RowState) -> None:
        """Notes the row's allowed ids, which are inside the vocabulary."""
        self._is_restricted[row] = bool(state.allowed_token_ids)
        if state.allowed_token_ids:
            ids = torch.tensor(list(state.allowed_token_ids), dtype=torch.long)
            self._ids[row] = ids.to(self._device)
        else:
            self._ids.pop(row, None)

    def active(self, targets: SampleTargets) -> npt.NDArray[np.bool_]:
        """[S], which samples are restricted."""
        return self._is_restricted[targets.rows]

    def apply(
        self, logits: torch.Tensor, places: npt.NDArray[np.int64], targets: SampleTargets
    ) -> None:
        """Sets all others to -inf; see `LogitsEdit.apply`."""
        for place, row in zip(places.tolist(), targets.rows.tolist(), strict=True):
            ids = self._ids[row]
            kept = logits[place, ids]
            logits[place] = -torch.inf
            logits[place, ids] = kept
