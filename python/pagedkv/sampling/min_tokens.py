"""``min_tokens``: no ending before so many tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    import numpy.typing as npt

    from pagedkv.sampling.row_state import RowState
    from pagedkv.sampling.targets import SampleTargets


class MinTokens:
    """The least number of tokens and the ids that would end too early, by row."""

    def __init__(self, *, max_num_seqs: int, device: torch.device) -> None:
        """Lets every row end."""
        self._device = device
        self._min_tokens = np.zeros(max_num_seqs, dtype=np.int32)
        # [B, W], each row's ids padded with its first.
        self._ending_ids = np.zeros((max_num_seqs, 1), dtype=np.int64)

    def fill(self, row: int, state: RowState) -> None:
        """Notes the row's ending ids."""
        ids = state.ending_ids
        self._min_tokens[row] = state.params.min_tokens if ids else 0
        if not self._min_tokens[row]:
            return
        missing = len(ids) - self._ending_ids.shape[1]
        if missing > 0:
            self._ending_ids = np.pad(self._ending_ids, ((0, 0), (0, missing)), mode="edge")
        self._ending_ids[row] = ids[0]
        self._ending_ids[row, : len(ids)] = ids

    def active(self, targets: SampleTargets) -> npt.NDArray[np.bool_]:
        """[S], for which samples it is too early."""
        return targets.positions < self._min_tokens[targets.rows]

    def apply(
        self, logits: torch.Tensor, places: npt.NDArray[np.int64], targets: SampleTargets
    ) -> None:
        """Sets ending ids to -inf; see `LogitsEdit.apply`."""
        at = torch.from_numpy(places).to(self._device).unsqueeze(1)
        ids = torch.from_numpy(self._ending_ids[targets.rows]).to(self._device)
        logits[at, ids] = -torch.inf
