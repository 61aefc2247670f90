"""Reported log-probabilities: a dict per token, or everything in flat lists."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, overload


@dataclass(frozen=True, slots=True, kw_only=True)
class Logprob:
    """One token's log-probability, or its logit; see ``logprobs_mode`` of `EngineConfig`.

    Attributes:
        logprob: natural logarithm of the probability.
        rank: 1 for the most likely token of the vocabulary.
        decoded_token: the token's text, None without a tokenizer.
    """

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass(slots=True)
class FlatLogprobs(Sequence["dict[int, Logprob] | None"]):
    """The same as a list of dicts, in six lists of numbers and strings: few objects for the garbage collector.

    Position ``i`` owns the entries from ``start_indices[i]`` up to ``end_indices[i]`` of the other lists. Indexing and
    iteration make the dicts; a slice is flat again.

    Attributes:
        start_indices: by position.
        end_indices: by position.
        token_ids: by entry.
        logprobs: by entry.
        ranks: by entry.
        decoded_tokens: by entry.
    """

    start_indices: list[int] = field(default_factory=list)
    end_indices: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ranks: list[int | None] = field(default_factory=list)
    decoded_tokens: list[str | None] = field(default_factory=list)

    def append(self, entries: Iterable[tuple[int, Logprob]]) -> None:
        """Adds a position."""
        self.start_indices.append(len(self.token_ids))
        for token_id, entry in entries:
            self.token_ids.append(token_id)
            self.logprobs.append(entry.logprob)
            self.ranks.append(entry.rank)
            self.decoded_tokens.append(entry.decoded_token)
        self.end_indices.append(len(self.token_ids))

    def __len__(self) -> int:
        """Positions."""
        return len(self.start_indices)

    @overload
    def __getitem__(self, index: int) -> dict[int, Logprob] | None: ...
    @overload
    def __getitem__(self, index: slice) -> FlatLogprobs: ...
    def __getitem__(self, index: int | slice) -> dict[int, Logprob] | FlatLogprobs | None:
        """A position as a dict, None where it has no entry; a slice of positions flat again."""
        if isinstance(index, slice):
            part = FlatLogprobs()
            for position in range(len(self))[index]:
                part.append((self[position] or {}).items())
            return part
        entries = range(self.start_indices[index], self.end_indices[index])
        return {
            self.token_ids[i]: Logprob(
                logprob=self.logprobs[i], rank=self.ranks[i], decoded_token=self.decoded_tokens[i]
            )
            for i in entries
        } or None

    def __iter__(self) -> Iterator[dict[int, Logprob] | None]:
        """The positions as dicts."""
        return (self[position] for position in range(len(self)))


SampleLogprobs: TypeAlias = "list[dict[int, Logprob]] | FlatLogprobs"
"""One dict per generated token: the chosen id first, then the most likely ones."""
PromptLogprobs: TypeAlias = "list[dict[int, Logprob] | None] | FlatLogprobs"
"""The same of a prompt's tokens; None of the first, before which there is nothing."""


class MostLikely(Protocol):
    """The most likely tokens at a position, and the rank of the one that stands there."""

    @property
    def rank(self) -> int:
        """1 for the most likely."""

    @property
    def token_ids(self) -> list[int]:
        """Best first."""

    @property
    def logprobs(self) -> list[float]:
        """Theirs."""


class Report(Protocol):
    """What is known of the token at a position."""

    @property
    def token_id(self) -> int:
        """The token."""

    @property
    def logprob(self) -> float:
        """Its own."""

    @property
    def top(self) -> MostLikely:
        """The most likely ones in its place."""

    @property
    def named(self) -> Sequence[tuple[int, float, int]]:
        """Id, log-probability and rank of tokens that the request names."""


def sample_logprobs(
    reports: Iterable[Report], decode_token: Callable[[int], str] | None, *, is_flat: bool
) -> SampleLogprobs:
    """The positions of generated tokens as they are returned."""
    positions = (_entries(report, decode_token) for report in reports)
    if not is_flat:
        return list(positions)
    flat = FlatLogprobs()
    for entries in positions:
        flat.append(entries.items())
    return flat


def prompt_logprobs(
    reports: Iterable[Report],
    decode_token: Callable[[int], str] | None,
    *,
    num_missing: int,
    is_flat: bool,
) -> PromptLogprobs:
    """The positions of a prompt as they are returned: ``num_missing`` without entries, then the reports."""
    positions = (_entries(report, decode_token) for report in reports)
    if not is_flat:
        return [*([None] * num_missing), *positions]
    flat = FlatLogprobs()
    for _ in range(num_missing):
        flat.append(())
    for entries in positions:
        flat.append(entries.items())
    return flat


def _entries(report: Report, decode_token: Callable[[int], str] | None) -> dict[int, Logprob]:
    """A token's own log-probability, those of the most likely ones, those of named ones."""
    own = _logprob(report.token_id, report.logprob, report.top.rank, decode_token)
    found = {report.token_id: own}
    best = zip(report.top.token_ids, report.top.logprobs, strict=True)
    for rank, (token_id, logprob) in enumerate(best, start=1):
        found.setdefault(token_id, _logprob(token_id, logprob, rank, decode_token))
    for token_id, logprob, rank in report.named:
        found.setdefault(token_id, _logprob(token_id, logprob, rank, decode_token))
    return found


def _logprob(
    token_id: int, logprob: float, rank: int, decode_token: Callable[[int], str] | None
) -> Logprob:
    text = None if decode_token is None else decode_token(token_id)
    return Logprob(logprob=logprob, rank=rank, decoded_token=text)
