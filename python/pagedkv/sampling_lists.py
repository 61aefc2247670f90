"""Sampling parameters that hold many values, each brought into its one shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pagedkv.sampling_checks import is_int, is_number, require

MAX_STOP_STRINGS = 64
MAX_STOP_STRING_CHARS = 4_096
MAX_STOP_TOKEN_IDS = 1_024
MAX_BAD_WORDS = 1_024
MAX_TOKEN_IDS = 1 << 20
MAX_LOGIT_BIAS_ENTRIES = 300_000
MAX_NAMED_IDS = 128
LOGIT_BIAS_LIMIT = 100.0


def as_list(name: str, value: Any, *, wrap: type | None) -> list[Any]:
    """A list of what was given as one value of type ``wrap``, a sequence, a set (sorted) or None (empty).

    Raises:
        TypeError: something else.
    """
    if value is None:
        return []
    if wrap is not None and isinstance(value, wrap):
        return [value]
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (str, bytes, dict)) or not isinstance(value, Sequence | set | frozenset):
        msg = f"{name} must be a list, got {value!r}"
        raise TypeError(msg)
    return sorted(value) if isinstance(value, set | frozenset) else list(value)


def checked_strings(name: str, value: Any, *, max_strings: int) -> list[str]:
    """A list of strings, none of them empty.

    Raises:
        TypeError: an entry is no string.
        ValueError: an empty string, one that is too long, or too many of them.
    """
    texts = as_list(name, value, wrap=str)
    if len(texts) > max_strings:
        msg = f"{name} takes at most {max_strings} strings, got {len(texts)}"
        raise ValueError(msg)
    for i, text in enumerate(texts):
        require(f"{name}[{i}]", text, "a str", lambda entry: isinstance(entry, str))
        if not text:
            msg = f"{name} cannot contain an empty string"
            raise ValueError(msg)
        if len(text) > MAX_STOP_STRING_CHARS:
            msg = f"{name}[{i}] has {len(text)} characters, at most {MAX_STOP_STRING_CHARS} work"
            raise ValueError(msg)
    return texts


def checked_ids(name: str, value: Any, *, max_ids: int) -> list[int]:
    """A list of token ids; whether they are in the vocabulary is seen when a request takes them.

    Raises:
        TypeError: an entry is no int.
        ValueError: a negative id, or too many of them.
    """
    token_ids = as_list(name, value, wrap=None)
    if len(token_ids) > max_ids:
        msg = f"{name} takes at most {max_ids} ids, got {len(token_ids)}"
        raise ValueError(msg)
    # Plain ints, of which there may be very many, are looked at without a loop.
    if set(map(type, token_ids)) == {int} and min(token_ids) >= 0:
        return token_ids
    for i, token_id in enumerate(token_ids):
        require(f"{name}[{i}]", token_id, "an int", is_int)
        if token_id < 0:
            msg = f"{name}[{i}] must be non-negative, got {token_id}"
            raise ValueError(msg)
    return [int(token_id) for token_id in token_ids]


def checked_allowed_ids(value: Any) -> list[int] | None:
    """The only ids that may be generated, ascending and each once; None for all.

    Raises:
        TypeError: no list of ints.
        ValueError: an empty list, a negative id, or too many of them.
    """
    if value is None:
        return None
    token_ids = checked_ids("allowed_token_ids", value, max_ids=MAX_TOKEN_IDS)
    if not token_ids:
        msg = "allowed_token_ids must hold at least one id, got an empty list; use None to allow every token"
        raise ValueError(msg)
    return sorted(set(token_ids))


def checked_named_ids(name: str, value: Any) -> list[int] | None:
    """The ids that are reported whatever is sampled, each once; None for none.

    Raises:
        TypeError: no list of ints.
        ValueError: a negative id, or too many of them.
    """
    token_ids = checked_ids(name, value, max_ids=MAX_NAMED_IDS)
    return list(dict.fromkeys(token_ids)) or None


def checked_logit_bias(value: Any) -> dict[int, float] | None:
    """What is added to the logits of some ids, clamped to +-100; None for nothing.

    Ids may be strings of digits, as they are in JSON.

    Raises:
        TypeError: no dict of numbers by id.
        ValueError: an id that is none, a NaN, or too many entries.
    """
    if not value and (value is None or isinstance(value, Mapping)):
        return None
    if not isinstance(value, Mapping):
        msg = f"logit_bias must be a dict of numbers by token id, got {value!r}"
        raise TypeError(msg)
    if len(value) > MAX_LOGIT_BIAS_ENTRIES:
        msg = f"logit_bias takes at most {MAX_LOGIT_BIAS_ENTRIES} entries, got {len(value)}"
        raise ValueError(msg)
    is_plain = set(map(type, value)) == {int} and set(map(type, value.values())) <= {int, float}
    if not is_plain:
        value = {_bias_id(key): _bias(key, bias) for key, bias in value.items()}
    if min(value) < 0:
        msg = f"logit_bias holds token id {min(value)}, ids are non-negative"
        raise ValueError(msg)
    if any(bias != bias for bias in value.values()):  # noqa: PLR0124 - a NaN alone differs from itself
        msg = "logit_bias must hold numbers, got nan"
        raise ValueError(msg)
    limit = LOGIT_BIAS_LIMIT
    return {key: float(min(limit, max(-limit, bias))) for key, bias in value.items()}


def check_masks(allowed: list[int] | None, logit_bias: dict[int, float] | None) -> None:
    """Checks that not every allowed token is biased away.

    Raises:
        ValueError: each of them is.
    """
    bias = logit_bias or {}
    if allowed and all(bias.get(token_id) == -LOGIT_BIAS_LIMIT for token_id in allowed):
        msg = (
            "allowed_token_ids leaves no token to generate: logit_bias is "
            f"-{LOGIT_BIAS_LIMIT:g} for each of them"
        )
        raise ValueError(msg)


def _bias_id(key: Any) -> int:
    if isinstance(key, str) and key.isdecimal():
        return int(key)
    if is_int(key):
        return int(key)
    msg = f"logit_bias must have token ids as keys, got {key!r}"
    raise TypeError(msg)


def _bias(key: Any, bias: Any) -> float:
    if is_number(bias):
        return float(bias)
    msg = f"logit_bias[{key!r}] must be a number, got {bias!r}"
    raise TypeError(msg)


def checked_processors(value: Any) -> list[Callable[..., Any]] | None:
    """A request's own functions on logits; None without one.

    Raises:
        TypeError: an entry cannot be called.
    """
    processors = as_list("logits_processors", value, wrap=None)
    for i, processor in enumerate(processors):
        require(f"logits_processors[{i}]", processor, "a callable", callable)
    return processors or None
