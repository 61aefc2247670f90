"""The token ids between which a model thinks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pagedkv.reasoning_config import ReasoningConfig
    from pagedkv.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinkingMarkers:
    """Where thinking begins and ends.

    Attributes:
        start: ids that begin it; at least one.
        end: ids that end it; at least one, and not those of ``start``.
    """

    start: tuple[int, ...]
    end: tuple[int, ...]


def thinking_markers(
    config: ReasoningConfig, tokenizer: Tokenizer | None, *, vocab_size: int
) -> ThinkingMarkers:
    """The ids of the markers.

    Raises:
        ValueError: a string cannot be encoded, or the model does not have its ids; or both markers have the same.
    """
    ids = [
        _marker_ids(text, token_ids, tokenizer, side=side, vocab_size=vocab_size)
        for side, text, token_ids in (
            ("start", config.reasoning_start_str, config.reasoning_start_token_ids),
            ("end", config.reasoning_end_str, config.reasoning_end_token_ids),
        )
    ]
    if ids[0] == ids[1]:
        msg = (
            "reasoning_config: the marker that begins thinking and the one that ends it have the same token ids, "
            f"{list(ids[0])}; they must differ"
        )
        raise ValueError(msg)
    return ThinkingMarkers(start=ids[0], end=ids[1])


def _marker_ids(
    text: str | None,
    token_ids: tuple[int, ...] | None,
    tokenizer: Tokenizer | None,
    *,
    side: str,
    vocab_size: int,
) -> tuple[int, ...]:
    name = f"reasoning_{side}_token_ids"
    if text is not None:
        if tokenizer is None:
            msg = (
                f"reasoning_{side}_str needs a tokenizer, but the engine has none (skip_tokenizer_init=True); "
                f"give {name}"
            )
            raise ValueError(msg)
        name = f"reasoning_{side}_str={text!r}"
        token_ids = tuple(tokenizer.encode(text, add_special_tokens=False))
        if not token_ids:
            msg = f"{name} has no tokens; give another string, or reasoning_{side}_token_ids"
            raise ValueError(msg)
    token_ids = token_ids or ()
    if max(token_ids) >= vocab_size:
        msg = f"{name} has token id {max(token_ids)}, which is outside the vocabulary (0 to {vocab_size - 1})"
        raise ValueError(msg)
    return token_ids
