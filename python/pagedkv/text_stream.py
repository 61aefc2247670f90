"""Streaming decode for tokenizers whose bytes cannot be tabulated."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_CONTEXT_TOKENS = 16
"""Tokens kept before the text that is decoded: what a decoder may look back at."""

_MAX_WINDOW_TOKENS = 64
"""A text that ends in U+FFFD for longer than this is not an incomplete character."""

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """Decodes tokens as they come by decoding a window of the last ones.

    Works with any ``decode`` in which later tokens change at most the last ``reach`` characters of
    earlier text, besides U+FFFD at its end (an incomplete character). ``tokenizers``' DecodeStream
    does the same, but raises "Invalid prefix" for some invalid bytes, and repeats the prompt where
    that ends within a character (0.23).

    Args:
        decode: token ids to text.
        prompt_token_ids: what the generated tokens follow; the last few are enough.
        reach: characters at the end that later tokens may still change.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        prompt_token_ids: Sequence[int],
        *,
        reach: int,
    ) -> None:
        self._decode = decode
        self._reach = reach
        self._window = list(prompt_token_ids[-_CONTEXT_TOKENS:])
        text = decode(self._window)
        self._num_emitted = len(text)  # characters of decode(window)

    def step(self, token_id: int) -> str:
        """Appends a token; returns the text that became final."""
        self._window.append(token_id)
        text = self._decode(self._window)
        end = len(text)
        if len(self._window) < _MAX_WINDOW_TOKENS:
            end = len(text.rstrip(_REPLACEMENT))
        end = max(end - self._reach, self._num_emitted)
        piece = text[self._num_emitted : end]
        self._num_emitted = end
        if len(self._window) > 2 * _CONTEXT_TOKENS:
            self._shrink(text[end:])
        return piece

    def flush(self) -> str:
        """Returns the rest of the text: nothing follows."""
        return self._decode(self._window)[self._num_emitted :]

    def fork(self) -> TextStream:
        """Returns an independent copy."""
        copy = object.__new__(TextStream)
        copy._decode = self._decode
        copy._reach = self._reach
        copy._window = self._window.copy()
        copy._num_emitted = self._num_emitted
        return copy

    def _shrink(self, held: str) -> None:
        """Drops old tokens, unless that would change the text that is still held back."""
        window = self._window[-_CONTEXT_TOKENS:]
        text = self._decode(window)
        if len(text) > len(held) and text.endswith(held):
            self._window = window
            self._num_emitted = len(text) - len(held)
