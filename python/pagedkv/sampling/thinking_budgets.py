"""``thinking_token_budget``: where it is spent, the marker that ends thinking comes token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from pagedkv.sampling.thinking_section import ThinkingSection

if TYPE_CHECKING:
    import numpy.typing as npt

    from pagedkv.sampling.row_state import RowState
    from pagedkv.sampling.targets import SampleTargets
    from pagedkv.thinking_markers import ThinkingMarkers

_NONE = -1


class ThinkingBudgets:
    """The budgets by row, and the ids that must come next. A row that is free to go on costs a look at an array."""

    def __init__(self, markers: ThinkingMarkers | None, *, max_num_seqs: int) -> None:
        """Forces nothing.

        Args:
            markers: what begins and ends thinking; None where no request has a budget.
            max_num_seqs: rows there can be.
        """
        self._markers = markers
        self._sections: dict[int, tuple[ThinkingSection, int]] = {}
        self._has_budget = np.zeros(max_num_seqs, dtype=np.bool_)
        self._forced = np.full(max_num_seqs, _NONE, dtype=np.int64)

    def fill(self, row: int, state: RowState) -> None:
        """Reads what the row's sequence has so far, if it has a budget."""
        budget = state.params.thinking_token_budget
        self._has_budget[row] = budget is not None
        if budget is None or self._markers is None:
            self._sections.pop(row, None)
            self._forced[row] = _NONE
            return
        section = ThinkingSection(
            self._markers, prompt=state.prompt_token_ids, output=state.output_token_ids
        )
        self._sections[row] = section, budget
        self._look(row)

    def active(self, targets: SampleTargets) -> npt.NDArray[np.bool_]:
        """[S], which samples are forced."""
        is_forced: npt.NDArray[np.bool_] = self._forced[targets.rows] != _NONE
        return is_forced

    def apply(
        self,
        logits: torch.Tensor,
        places: npt.NDArray[np.int64],
        targets: SampleTargets,
        *,
        unedited: torch.Tensor,
    ) -> None:
        """Leaves nothing but the forced id, with the number that the model gave it.

        Args:
            logits: [P, V] float32, edited in place.
            places: [A] rows of ``logits``.
            targets: [A], for whom.
            unedited: [A, V], the same rows before any edit.
        """
        at = torch.from_numpy(places).to(logits.device)
        ids = torch.from_numpy(self._forced[targets.rows]).to(logits.device)
        kept = unedited.gather(1, ids.unsqueeze(1)).squeeze(1)
        logits[at] = -torch.inf
        logits[at, ids] = kept

    def count(self, rows: npt.NDArray[np.int32], token_ids: npt.NDArray[np.int32]) -> None:
        """Reads one token more of each of those of the rows, which are distinct, that have a budget."""
        places = np.flatnonzero(self._has_budget[rows])
        for row, token_id in zip(rows[places].tolist(), token_ids[places].tolist(), strict=True):
            self._sections[row][0].append(token_id)
            self._look(row)

    def _look(self, row: int) -> None:
        section, budget = self._sections[row]
        forced = section.forced(budget)
        self._forced[row] = _NONE if forced is None else forced
