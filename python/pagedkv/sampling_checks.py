"""Types and ranges of single sampling parameters, and the messages when they are wrong."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MAX_TOKENS_LIMIT = 2**31 - 1


class UnsetNumber(float):
    """A default that nobody chose: a number like any other, and known as such."""

    __slots__ = ()


def is_int(value: object) -> bool:
    """Whether it is an int, of numpy or not, and no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether it is a number, of numpy or not, and no bool."""
    return isinstance(value, Real) and not isinstance(value, bool)


def checked_text(name: str, text: Any) -> str:
    """A text that is not empty and is valid Unicode.

    Raises:
        TypeError: no str.
        ValueError: an empty one, or one with lone surrogates.
    """
    if not isinstance(text, str):
        msg = f"{name} must be a str, got {text!r}"
        raise TypeError(msg)
    if not text:
        msg = f"{name} is empty; give at least one character"
        raise ValueError(msg)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        msg = f"{name} is not valid Unicode: {error.reason} at position {error.start}"
        raise ValueError(msg) from error
    return text


def is_bool(value: object) -> bool:
    """Whether it is True or False."""
    return isinstance(value, bool)


# What a field holds, as messages say it, and the test for it.
TYPES: tuple[tuple[str, Callable[[object], bool], tuple[str, ...]], ...] = (
    ("an int", is_int, ("n", "top_k", "min_tokens", "beam_width")),
    (
        "an int or None",
        lambda value: value is None or is_int(value),
        (
            "best_of",
            "seed",
            "max_tokens",
            "logprobs",
            "prompt_logprobs",
            "prompt_logprob_start",
            "truncate_prompt_tokens",
            "stream_interval",
            "thinking_token_budget",
        ),
    ),
    (
        "a number",
        is_number,
        (
            "presence_penalty",
            "frequency_penalty",
            "repetition_penalty",
            "temperature",
            "top_p",
            "min_p",
            "length_penalty",
        ),
    ),
    (
        "True or False",
        is_bool,
        (
            "ignore_eos",
            "detokenize",
            "skip_special_tokens",
            "spaces_between_special_tokens",
            "include_stop_str_in_output",
            "use_beam_search",
            "flat_logprobs",
        ),
    ),
    (
        "True, False or None",
        lambda value: value is None or is_bool(value),
        ("skip_reading_prefix_cache",),
    ),
    (
        "a dict or None",
        lambda value: value is None or isinstance(value, dict),
        ("extra_args",),
    ),
)


def check_types(values: Mapping[str, object]) -> None:
    """Checks the fields that `TYPES` names.

    Raises:
        TypeError: a value of the wrong type.
    """
    for wanted, accepts, names in TYPES:
        for name in names:
            if name in values:
                require(name, values[name], wanted, accepts)


def require(name: str, value: object, wanted: str, accepts: Callable[[object], bool]) -> None:
    """Checks the type of one value.

    Raises:
        TypeError: it is of another type than ``wanted``.
    """
    if not accepts(value):
        msg = f"{name} must be {wanted}, got {value!r}"
        raise TypeError(msg)


def at_least_one(name: str, value: int | None) -> None:
    """Checks a count that may be left out.

    Raises:
        ValueError: it is 0 or less.
    """
    if value is not None and value < 1:
        msg = f"{name} must be at least 1, got {value}"
        raise ValueError(msg)


def check_max_tokens(max_tokens: int | None) -> None:
    """Checks the most tokens that are generated.

    Raises:
        ValueError: it is out of range.
    """
    at_least_one("max_tokens", max_tokens)
    if max_tokens is not None and max_tokens > MAX_TOKENS_LIMIT:
        msg = (
            f"max_tokens must be at most {MAX_TOKENS_LIMIT}, got {max_tokens}; "
            "use None for the model's context length"
        )
        raise ValueError(msg)


def refuse_out_of_scope(
    owner: str, values: Mapping[str, object], neutral: Mapping[str, Any]
) -> None:
    """Refuses fields of other engines that this one leaves out for good, unless they ask for nothing.

    Args:
        owner: whose fields they are.
        values: the fields.
        neutral: the values that ask for nothing, by field.

    Raises:
        ValueError: a field asks for something.
    """
    for name, accepted in neutral.items():
        if not any(values[name] is entry or values[name] == entry for entry in accepted):
            msg = f"{owner}: {name}={values[name]!r} is out of scope: pagedkv does not do it; leave it at its default"
            raise ValueError(msg)


def check_distribution(*, temperature: float, top_p: float, top_k: int, min_p: float) -> None:
    """Checks what shapes the distribution that is sampled from.

    Raises:
        ValueError: a value out of range.
    """
    if not math.isfinite(temperature) or temperature < 0.0:
        msg = f"temperature must be non-negative, got {temperature}"
        raise ValueError(msg)
    if not 0.0 < top_p <= 1.0:
        msg = f"top_p must be in (0, 1], got {top_p}"
        raise ValueError(msg)
    if top_k < -1:
        msg = f"top_k must be -1 (disable), or at least 1, got {top_k}"
        raise ValueError(msg)
    if not 0.0 <= min_p <= 1.0:
        msg = f"min_p must be in [0, 1], got {min_p}"
        raise ValueError(msg)


def check_penalties(*, presence: float, frequency: float, repetition: float) -> None:
    """Checks the three penalties.

    Raises:
        ValueError: a value out of range.
    """
    for name, value in (("presence_penalty", presence), ("frequency_penalty", frequency)):
        if not -2.0 <= value <= 2.0:
            msg = f"{name} must be in [-2, 2], got {value}"
            raise ValueError(msg)
    if not math.isfinite(repetition) or repetition <= 0.0:
        msg = f"repetition_penalty must be greater than zero, got {repetition}"
        raise ValueError(msg)


def check_thinking(budget: int | None, structure: object) -> None:
    """Checks the most tokens of thinking, and that no grammar says otherwise what comes next.

    Raises:
        ValueError: it is below -1, or there is a grammar.
    """
    if budget is None:
        return
    if budget < 0:
        msg = f"thinking_token_budget must be non-negative, got {budget}; -1 or None means no limit"
        raise ValueError(msg)
    if structure is not None:
        msg = (
            "thinking_token_budget and structured_outputs were both given: where a budget is spent, the end of thinking "
            "would have to come, and the grammar may not allow it; keep one"
        )
        raise ValueError(msg)


def check_seed(seed: int | None) -> None:
    """Checks a request's seed.

    Raises:
        ValueError: it has more than 64 bits.
    """
    if seed is not None and not -(2**63) <= seed < 2**63:
        msg = f"seed must be a signed 64-bit integer, got {seed}"
        raise ValueError(msg)


def check_report(name: str, value: int | None, *, lowest: int) -> None:
    """Checks how much is reported, or from where.

    Raises:
        ValueError: it is below ``lowest``, which is -1 where that means the whole vocabulary.
    """
    if value is not None and value < lowest:
        remedy = "; -1 means the whole vocabulary" if lowest == -1 else ""
        msg = f"{name} must be non-negative, got {value}{remedy}"
        raise ValueError(msg)
