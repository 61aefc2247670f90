"""What is cached of a prompt, for people who wonder why it is not more."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pagedkv._core import Scheduler
    from pagedkv.tokenizer import Tokenizer

_REASONS = {
    "off": "prefix caching is off (enable_prefix_caching=False)",
    "end": "nothing is cached after the blocks before it",
    "differs": "other tokens are cached in its place",
    "evicted": "it was cached, but its slots were given to other content or left the window",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixReport:
    """How much of a prompt is cached, and where it leaves what is cached; ``str()`` of it says it in words.

    Only full blocks are found by their content. Ranges and positions count the prompt's tokens from 0.

    Attributes:
        num_tokens: the prompt's tokens.
        num_cached_tokens: those that a request with this prompt would not compute now, room for the copy of a part of a
            block provided; the last one always runs, for its logits.
        num_cached_blocks: blocks that it would share whole.
        block_size: tokens per block.
        first_missing_block: index of the first block that is not cached; None if the whole prompt is.
        missing_range: where it lies in the prompt.
        missing_token_ids: its tokens.
        missing_text: their text; None without a tokenizer.
        cached_token_ids: a block's tokens, those cached in its place that share the most leading tokens with it; empty if
            none are cached there.
        cached_text: their text; None without a tokenizer.
        first_difference: position of the first token in which the two differ.
        reason: why the block is not cached.
    """

    num_tokens: int
    num_cached_tokens: int
    num_cached_blocks: int
    block_size: int
    first_missing_block: int | None = None
    missing_range: range | None = None
    missing_token_ids: tuple[int, ...] = ()
    missing_text: str | None = None
    cached_token_ids: tuple[int, ...] = ()
    cached_text: str | None = None
    first_difference: int | None = None
    reason: str | None = None

    def __str__(self) -> str:
        """A few lines for people."""
        whole = f"{self.num_cached_blocks * self.block_size} of them in whole blocks"
        lines = [f"{self.num_cached_tokens} of {self.num_tokens} tokens are cached, {whole}"]
        if self.missing_range is None:
            lines.append("the whole prompt is cached; its last token runs in any case")
            return "\n".join(lines)
        first, last = self.missing_range.start, self.missing_range.stop - 1
        lines.append(
            f"block {self.first_missing_block} (tokens {first} to {last}) is missing: {self.reason}"
        )
        if self.first_difference is not None:
            lines.append(f"the first different token is number {self.first_difference}")
        for name, token_ids, text in (
            ("prompt", self.missing_token_ids, self.missing_text),
            ("cached", self.cached_token_ids, self.cached_text),
        ):
            if token_ids:
                lines.append(f"{name}: {list(token_ids) if text is None else repr(text)}")
        return "\n".join(lines)


def explain_prefix(
    scheduler: Scheduler,
    tokenizer: Tokenizer | None,
    token_ids: Sequence[int],
    *,
    cache_salt: str | None,
    block_size: int,
) -> PrefixReport:
    """What the prefix cache has of a prompt; changes nothing.

    Args:
        scheduler: whose cache it is.
        tokenizer: for the texts; None for none.
        token_ids: the prompt.
        cache_salt: the prompt's.
        block_size: of the scheduler.
    """
    found = scheduler.explain_prefix(token_ids, cache_salt=cache_salt)
    report = PrefixReport(
        num_tokens=len(token_ids),
        num_cached_tokens=found.num_cached_tokens,
        num_cached_blocks=found.num_cached_blocks,
        block_size=block_size,
    )
    index, miss = found.missing_block, found.miss
    if index is None or miss is None:
        return report
    start = index * block_size
    missing = tuple(token_ids[start : start + block_size])
    cached = tuple(found.cached_token_ids)
    return replace(
        report,
        first_missing_block=index,
        missing_range=range(start, start + len(missing)),
        missing_token_ids=missing,
        missing_text=_text(tokenizer, missing),
        cached_token_ids=cached,
        cached_text=_text(tokenizer, cached),
        first_difference=start + found.num_equal if miss == "differs" else None,
        reason=_unknown_reason(cache_salt) if miss == "unknown" else _REASONS[miss],
    )


def _unknown_reason(cache_salt: str | None) -> str:
    if cache_salt is None:
        return "nothing is cached without a cache_salt; what is cached under one is not shared"
    return f"nothing is cached under cache_salt {cache_salt!r}; what is cached without it, or under another, is not shared"


def _text(tokenizer: Tokenizer | None, token_ids: tuple[int, ...]) -> str | None:
    if tokenizer is None or not token_ids:
        return None
    return tokenizer.decode(token_ids, skip_special_tokens=False)
