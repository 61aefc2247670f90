"""Which values go with a beam search, and with best_of; the messages of the classic API."""

from __future__ import annotations

import math
from typing import Literal, Protocol

from pagedkv.sampling_checks import is_bool


class BeamFields(Protocol):
    """The fields that are looked at; see `SamplingParams`."""

    n: int
    best_of: int | None
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    use_beam_search: bool
    length_penalty: float
    early_stopping: bool | Literal["never"]

    @property
    def num_sequences(self) -> int:
        """How many continuations are generated."""

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is taken."""


def check_without_beams(params: BeamFields) -> None:
    """Checks that nothing is asked of a beam search that does not take place.

    Raises:
        ValueError: something is.
    """
    if params.early_stopping is not False:
        msg = "early_stopping is not effective and must be False when not using beam search."
        raise ValueError(msg)
    if params.length_penalty != 1.0:
        msg = (
            "length_penalty is not effective and must be the default value of 1.0 "
            "when not using beam search."
        )
        raise ValueError(msg)


def check_beam_search(params: BeamFields) -> None:
    """Checks that a beam search has a width, and that nothing is left to chance.

    Raises:
        ValueError: a value that contradicts it, or one out of range.
    """
    if params.num_sequences == 1:
        msg = "best_of must be greater than 1 when using beam search. Got 1"
        raise ValueError(msg)
    if not params.is_greedy:
        msg = "temperature must be 0 when using beam search."
        raise ValueError(msg)
    if params.top_p != 1.0:
        msg = "top_p must be 1 when using beam search."
        raise ValueError(msg)
    if params.top_k != 0:
        msg = "top_k must be -1 when using beam search."
        raise ValueError(msg)
    if params.min_p != 0.0:
        msg = f"min_p must be 0 when using beam search, got {params.min_p}"
        raise ValueError(msg)
    check_early_stopping(params.early_stopping)
    check_length_penalty(params.length_penalty)


def check_best_of(params: BeamFields) -> None:
    """Checks that there are enough sequences to return, and that they can differ.

    Raises:
        ValueError: ``best_of`` < ``n``, or several sequences of a greedy request.
    """
    if params.num_sequences < params.n:
        msg = (
            "best_of must be greater than or equal to n, "
            f"got n={params.n} and best_of={params.best_of}"
        )
        raise ValueError(msg)
    if params.use_beam_search or not params.is_greedy:
        return
    if params.n > 1:
        msg = (
            f"n must be 1 when using greedy sampling, got {params.n}; "
            "set a temperature above 0 to sample different continuations"
        )
        raise ValueError(msg)
    if params.num_sequences > 1:
        msg = f"best_of must be 1 when using greedy sampling. Got {params.best_of}"
        raise ValueError(msg)


def check_length_penalty(length_penalty: float) -> None:
    """Checks the exponent of a beam's length.

    Raises:
        ValueError: it is not finite.
    """
    if not math.isfinite(length_penalty):
        msg = f"length_penalty must be finite, got {length_penalty}"
        raise ValueError(msg)


def check_early_stopping(early_stopping: object) -> None:
    """Checks when a beam search ends.

    Raises:
        ValueError: it is none of the three values.
    """
    if not is_bool(early_stopping) and early_stopping != "never":
        msg = f"early_stopping must be True, False, or 'never', got {early_stopping}"
        raise ValueError(msg)
