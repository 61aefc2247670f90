"""``bad_words``: token sequences that must not come; the last token of a match is barred."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from pagedkv.sampling.histories import OutputHistories
    from pagedkv.sampling.row_state import RowState
    from pagedkv.sampling.targets import SampleTargets


class BarredEnds:
    """The words of one request, by the token before the last one: a step looks at few of them."""

    def __init__(self, words: Sequence[Sequence[int]]) -> None:
        """Sorts the words, none of which is empty."""
        self._always = sorted({word[0] for word in words if len(word) == 1})
        self._after: dict[int, list[tuple[list[int], int]]] = defaultdict(list)
        for word in words:
            if len(word) > 1:
                self._after[word[-2]].append((list(word[:-1]), word[-1]))

    def barred(self, output: list[int]) -> list[int]:
        """The ids that would complete a word after ``output``."""
        if not output:
            return self._always
        matches = self._after.get(output[-1], ())
        return self._always + [last for start, last in matches if output[-len(start) :] == start]


class BadWords:
    """The barred words by row. A word counts as begun by output tokens alone, not by the prompt."""

    def __init__(
        self, *, histories: OutputHistories, max_num_seqs: int, device: torch.device
    ) -> None:
        """Bars nothing.

        Args:
            histories: Where the rows' outputs are.
            max_num_seqs: Rows there can be.
            device: Where the logits are.
        """
        self._histories = histories
        self._device = device
        self._words: dict[int, BarredEnds] = {}
        self._has_words = np.zeros(max_num_seqs, dtype=np.bool_)

    def fill(self, row: int, state: RowState) -> None:
        """Notes the row's words."""
        self._has_words[row] = bool(state.bad_words)
        if state.bad_words:
            self._words[row] = BarredEnds(state.bad_words)
        else:
            self._words.pop(row, None)

    def active(self, targets: SampleTargets) -> npt.NDArray[np.bool_]:
        """[S], which samples have words."""
        return self._has_words[targets.rows]

    def apply(
        self, logits: torch.Tensor, places: npt.NDArray[np.int64], targets: SampleTargets
    ) -> None:
        """Sets what would complete a word to -inf; see `LogitsEdit.apply`."""
        for place, row in zip(places.tolist(), targets.rows.tolist(), strict=True):
            barred = self._words[row].barred(self._histories.output(row))
            if barred:
                logits[place, torch.tensor(barred, device=self._device)] = -torch.inf
