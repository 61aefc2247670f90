"""What requests do to their logits, in order, on copies of the rows that ask for it.

A row that asks for nothing costs a look at an array; a row that asks for something costs a copy of its logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from pagedkv.sampling.allowed_tokens import AllowedTokens
from pagedkv.sampling.bad_words import BadWords
from pagedkv.sampling.histories import OutputHistories
from pagedkv.sampling.logit_bias import LogitBias
from pagedkv.sampling.masks import GrammarMasks
from pagedkv.sampling.min_tokens import MinTokens
from pagedkv.sampling.penalties import Penalties
from pagedkv.sampling.thinking_budgets import ThinkingBudgets
from pagedkv.sampling.user_processors import UserProcessors

if TYPE_CHECKING:
    import numpy.typing as npt

    from pagedkv.sampling.row_state import RowState
    from pagedkv.sampling.targets import SampleTargets
    from pagedkv.thinking_markers import ThinkingMarkers


class LogitsEdit(Protocol):
    """One thing that requests may do to their logits, with its state by row."""

    def fill(self, row: int, state: RowState) -> None:
        """Starts anew with what the row's sequence asks for."""

    def active(self, targets: SampleTargets) -> npt.NDArray[np.bool_]:
        """[S], for which of the samples `apply` would do something."""

    def apply(
        self, logits: torch.Tensor, places: npt.NDArray[np.int64], targets: SampleTargets
    ) -> None:
        """Edits some of the rows in place.

        Args:
            logits: [P, V] float32, logits or log-probabilities.
            places: [A] rows of ``logits`` to edit, ascending; at least one.
            targets: [A], for whom.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class EditedRows:
    """The rows of a batch's logits that requests have edited.

    Attributes:
        samples: [P] int64, whose they are, ascending.
        logits: [P, V] float32.
        failures: What went wrong, by sample; such a row's numbers mean nothing.
    """

    samples: npt.NDArray[np.int64]
    logits: torch.Tensor
    failures: dict[int, str]


class LogitsEdits:
    """All edits, in the order in which they act.

    User processors, allowed_token_ids, bad_words, min_tokens, logit_bias, penalties, the masks of grammars; then the ends
    of thinking, which no other edit can bar and nothing but the temperature may follow.
    """

    def __init__(
        self,
        *,
        max_num_seqs: int,
        vocab_size: int,
        device: torch.device,
        thinking: ThinkingMarkers | None,
    ) -> None:
        """Reserves what is kept by row."""
        self._histories = OutputHistories(max_num_seqs=max_num_seqs)
        self._penalties = Penalties(max_num_seqs=max_num_seqs, vocab_size=vocab_size, device=device)
        self._user = UserProcessors(histories=self._histories, max_num_seqs=max_num_seqs)
        self._builtin: tuple[LogitsEdit, ...] = (
            AllowedTokens(max_num_seqs=max_num_seqs, device=device),
            BadWords(histories=self._histories, max_num_seqs=max_num_seqs, device=device),
            MinTokens(max_num_seqs=max_num_seqs, device=device),
            LogitBias(max_num_seqs=max_num_seqs, device=device),
            self._penalties,
            GrammarMasks(),
        )
        self._thinking = ThinkingBudgets(thinking, max_num_seqs=max_num_seqs)
        self._index = np.zeros(max_num_seqs, dtype=np.int32)

    def fill(self, row: int, state: RowState) -> None:
        """Writes what the sequence that got ``row`` asks for."""
        self._index[row] = state.index
        self._histories.fill(row, state)
        self._user.fill(row, state)
        self._thinking.fill(row, state)
        for edit in self._builtin:
            edit.fill(row, state)

    def is_any_active(self, targets: SampleTargets) -> bool:
        """Whether `apply` has rows to edit."""
        by_user, active, is_forced = self._active(targets)
        return any(array.any() for array in (by_user, *active, is_forced))

    def apply(self, logits: torch.Tensor, targets: SampleTargets) -> EditedRows | None:
        """The edited copies of the rows that ask for it; None where no row does.

        Args:
            logits: [S, V] float32, unchanged.
            targets: For whom.
        """
        by_user, active, is_forced = self._active(targets)
        samples = np.flatnonzero(np.logical_or.reduce([by_user, *active, is_forced]))
        if not samples.size:
            return None
        edited = logits[torch.from_numpy(samples).to(logits.device)]
        failures: dict[int, str] = {}
        if by_user.any():
            places = np.flatnonzero(by_user[samples])
            failures = self._user.apply(edited, places, targets.take(samples[places]))
        for edit, is_active in zip(self._builtin, active, strict=True):
            places = np.flatnonzero(is_active[samples])
            if places.size:
                edit.apply(edited, places, targets.take(samples[places]))
        if is_forced.any():
            places = np.flatnonzero(is_forced[samples])
            unedited = logits[torch.from_numpy(samples[places]).to(logits.device)]
            self._thinking.apply(edited, places, targets.take(samples[places]), unedited=unedited)
        return EditedRows(
            samples=samples,
            logits=edited,
            failures={int(samples[place]): error for place, error in failures.items()},
        )

    def _active(
        self, targets: SampleTargets
    ) -> tuple[npt.NDArray[np.bool_], list[npt.NDArray[np.bool_]], npt.NDArray[np.bool_]]:
        """[S] each, which samples user processors edit, each of the built-in edits, and the ends of thinking."""
        active = [edit.active(targets) for edit in self._builtin]
        return self._user.active(targets), active, self._thinking.active(targets)

    def count(self, targets: SampleTargets, token_ids: npt.NDArray[np.int32]) -> None:
        """Notes tokens that batches sampled, for edits that look at them.

        A sample of a sequence that has no row of its own yet is left out: its tokens are counted when it gets one.
        """
        is_own = self._index[targets.rows] == targets.sample_index
        self._penalties.count(targets.rows[is_own], token_ids[is_own])
        self._histories.append(targets.rows[is_own], token_ids[is_own])
        self._thinking.count(targets.rows[is_own], token_ids[is_own])
