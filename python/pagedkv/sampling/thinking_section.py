"""Whether a sequence thinks, how long it has, and how much of a marker it has begun."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from pagedkv.thinking_markers import ThinkingMarkers


class Marker:
    """A run of ids that is looked for in a sequence (Knuth, Morris and Pratt)."""

    def __init__(self, ids: tuple[int, ...]) -> None:
        """Computes how much of the ids is begun anew where a match breaks off."""
        self.ids = ids
        self._shorter = [0]
        for token_id in ids[1:]:
            self._shorter.append(self.matched(self._shorter[-1], token_id))

    def matched(self, num_matched: int, token_id: int) -> int:
        """How many of the first ids the tokens end with after one more; less than all of them ended it before."""
        while num_matched and self.ids[num_matched] != token_id:
            num_matched = self._shorter[num_matched - 1]
        return num_matched + (self.ids[num_matched] == token_id)


class ThinkingSection:
    """Where the tokens of a sequence, read one by one, leave it: a function of prompt and output alone.

    Thinking begins with the start marker and ends with the end marker. Markers do not overlap, and one that begins what has
    begun, or ends what has not, is text like any other.
    """

    def __init__(
        self,
        markers: ThinkingMarkers,
        *,
        prompt: npt.NDArray[np.int32],
        output: npt.NDArray[np.int32],
    ) -> None:
        """Reads the tokens there are; O(tokens), in Python only those that are part of a marker.

        Args:
            markers: what begins and ends thinking.
            prompt: [P] ids.
            output: [N] ids.
        """
        self._start, self._end = Marker(markers.start), Marker(markers.end)
        self._ids = np.array([*markers.start, *markers.end], dtype=np.int32)
        self._is_open = False
        self._num_matched = 0
        self._num_prompt = prompt.size
        self._num_tokens = 0
        self._first = 0
        for tokens in (prompt, output):
            self._read(tokens)

    def append(self, token_id: int) -> None:
        """Reads one token more."""
        marker = self._end if self._is_open else self._start
        self._num_tokens += 1
        self._num_matched = marker.matched(self._num_matched, token_id)
        if self._num_matched == len(marker.ids):
            self._is_open = not self._is_open
            self._num_matched = 0
            self._first = self._num_tokens

    def forced(self, budget: int) -> int | None:
        """The id that must come next where so many output tokens of thinking are spent; None where any may come."""
        if not self._is_open:
            return None
        num_spent = self._num_tokens - max(self._first, self._num_prompt)
        return self._end.ids[self._num_matched] if num_spent >= budget else None

    def _read(self, tokens: npt.NDArray[np.int32]) -> None:
        next_place = 0
        for place in np.flatnonzero(np.isin(tokens, self._ids)).tolist():
            self._skip(place - next_place)
            self.append(int(tokens[place]))
            next_place = place + 1
        self._skip(tokens.size - next_place)

    def _skip(self, num_tokens: int) -> None:
        """Reads tokens that are in no marker."""
        if num_tokens:
            self._num_tokens += num_tokens
            self._num_matched = 0
