"""When an output that repeats itself ends."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from pagedkv.field_dicts import of_fields
from pagedkv.sampling_checks import is_int, require

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_WINDOW = 1 << 16
"""Tokens that are looked at for each new one, at most."""


@dataclass(kw_only=True)
class RepetitionDetectionParams:
    """Which repetition ends a sequence: one pattern of tokens again and again, as its last tokens.

    Only generated tokens count. Such a sequence has the ``finish_reason`` "repetition" and the ``stop_reason``
    "repetition_detected". Values are checked here and again when a request takes them, so a field may be reassigned.

    Attributes:
        max_pattern_size: tokens of the longest pattern that is looked for; 0 looks for none.
        min_pattern_size: tokens of the shortest one; 0 means 1.
        min_count: copies that end a sequence; at least 2 where ``max_pattern_size`` is above 0.

    Raises:
        TypeError: a value that is no int.
        ValueError: a value out of range; ``max_pattern_size`` x ``min_count`` is at most 65536.
    """

    max_pattern_size: int = 0
    min_pattern_size: int = 0
    min_count: int = 0

    def __post_init__(self) -> None:
        """Checks the values."""
        self.verify()

    @classmethod
    def of(cls, value: RepetitionDetectionParams | Mapping[str, Any]) -> RepetitionDetectionParams:
        """The same from a dict of the fields.

        Raises:
            UnknownParameterError: a key that is no field.
            TypeError: a value of the wrong type.
            ValueError: as for the class.
        """
        return of_fields(cls, value, name="repetition_detection")

    def verify(self) -> None:
        """Checks every field.

        Raises:
            TypeError: a value that is no int.
            ValueError: a value out of range, or one at odds with another.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            require(field.name, value, "an int", is_int)
            if value < 0:
                msg = f"{field.name} must be non-negative, got {value}"
                raise ValueError(msg)
        if self.min_pattern_size > self.max_pattern_size:
            msg = (
                f"min_pattern_size must be at most max_pattern_size ({self.max_pattern_size}), "
                f"got {self.min_pattern_size}; set both to 0 to look for no repetition"
            )
            raise ValueError(msg)
        if not self.max_pattern_size:
            return
        if self.min_count < 2:
            msg = (
                f"min_count must be at least 2 with max_pattern_size={self.max_pattern_size}, "
                f"got {self.min_count}: one copy repeats nothing"
            )
            raise ValueError(msg)
        if self.max_pattern_size * self.min_count > MAX_WINDOW:
            msg = (
                f"max_pattern_size x min_count must be at most {MAX_WINDOW}, got "
                f"{self.max_pattern_size} x {self.min_count}; lower one of them"
            )
            raise ValueError(msg)

    def limits(self) -> tuple[int, int, int] | None:
        """Shortest pattern, longest pattern and copies, as the core takes them; None to look for nothing."""
        if not self.max_pattern_size:
            return None
        shortest = max(1, self.min_pattern_size)
        return int(shortest), int(self.max_pattern_size), int(self.min_count)


def checked_repetition(
    value: RepetitionDetectionParams | Mapping[str, Any] | None,
) -> RepetitionDetectionParams | None:
    """What a field ``repetition_detection`` holds, checked; None to look for nothing.

    Raises:
        TypeError, ValueError: as for `RepetitionDetectionParams.of`.
    """
    if value is None:
        return None
    params = RepetitionDetectionParams.of(value)
    params.verify()
    return params
