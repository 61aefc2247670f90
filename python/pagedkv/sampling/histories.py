"""The output tokens of the rows whose edits look at them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from pagedkv.sampling.row_state import RowState


class OutputHistories:
    """The output token ids by row, for rows with bad words or processors of the user; other rows cost nothing."""

    def __init__(self, *, max_num_seqs: int) -> None:
        """Keeps nothing yet."""
        self._tokens: dict[int, list[int]] = {}
        self._prompts: dict[int, list[int]] = {}
        self._is_kept = np.zeros(max_num_seqs, dtype=np.bool_)

    def fill(self, row: int, state: RowState) -> None:
        """Starts with what the row's sequence generated so far, if somebody will look."""
        self._is_kept[row] = bool(state.bad_words or state.processors)
        if self._is_kept[row]:
            self._tokens[row] = state.output_token_ids.tolist()
            self._prompts[row] = state.prompt_token_ids.tolist()
        else:
            self._tokens.pop(row, None)
            self._prompts.pop(row, None)

    def output(self, row: int) -> list[int]:
        """The row's output ids; not to be changed."""
        return self._tokens[row]

    def prompt(self, row: int) -> list[int]:
        """The row's prompt ids; not to be changed."""
        return self._prompts[row]

    def append(self, rows: npt.NDArray[np.int32], token_ids: npt.NDArray[np.int32]) -> None:
        """Adds a token to each of those of the rows, which are distinct, that are kept."""
        places = np.flatnonzero(self._is_kept[rows])
        for row, token in zip(rows[places].tolist(), token_ids[places].tolist(), strict=True):
            self._tokens[row].append(token)
