"""Where a model's thinking begins and ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pagedkv.field_dicts import of_fields
from pagedkv.sampling_checks import checked_text
from pagedkv.sampling_lists import checked_ids

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_MARKER_IDS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningConfig:
    """The markers between which a reasoning model thinks; `SamplingParams.thinking_token_budget` needs them.

    Each is a string, which the tokenizer encodes once without the special tokens around a text, or token ids. Ids are for
    tokenizers that encode a string otherwise than the model writes it, and for engines without one.

    Attributes:
        reasoning_start_str: begins thinking, such as "<think>".
        reasoning_end_str: ends it, such as "</think>"; what is generated when the budget is spent.
        reasoning_start_token_ids: ids in place of ``reasoning_start_str``.
        reasoning_end_token_ids: ids in place of ``reasoning_end_str``.

    Raises:
        TypeError: a value of the wrong type.
        ValueError: a marker that is missing, empty, or given twice; or both markers are the same.
    """

    reasoning_start_str: str | None = None
    reasoning_end_str: str | None = None
    reasoning_start_token_ids: tuple[int, ...] | None = None
    reasoning_end_token_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Checks the values."""
        start, end = self._marker("start"), self._marker("end")
        if start == end:
            msg = f"reasoning_config: the marker that begins thinking and the one that ends it must differ, got {start!r}"
            raise ValueError(msg)

    @classmethod
    def of(cls, value: ReasoningConfig | Mapping[str, Any]) -> ReasoningConfig:
        """The same from a dict of the fields.

        Raises:
            UnknownParameterError: a key that is no field.
            TypeError: a value of the wrong type.
            ValueError: as for the class.
        """
        return of_fields(cls, value, name="reasoning_config", others=", a dict or None")

    def _marker(self, side: str) -> str | tuple[int, ...]:
        """One of the markers, as it was given; ids become a tuple."""
        str_name, ids_name = f"reasoning_{side}_str", f"reasoning_{side}_token_ids"
        text, ids = getattr(self, str_name), getattr(self, ids_name)
        if (text is None) == (ids is None):
            found = "got neither" if text is None else "got both"
            msg = f"reasoning_config needs one of {str_name} and {ids_name}, {found}"
            raise ValueError(msg)
        if text is not None:
            return checked_text(str_name, text)
        checked = tuple(checked_ids(ids_name, ids, max_ids=MAX_MARKER_IDS))
        if not checked:
            msg = f"{ids_name} is empty; give at least one id"
            raise ValueError(msg)
        object.__setattr__(self, ids_name, checked)
        return checked
