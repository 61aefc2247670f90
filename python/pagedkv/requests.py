"""From what a caller passes as prompts to requests that can run, or to an error that names the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from pagedkv.errors import RequestTooLongError, not_supported_yet, unknown_parameter
from pagedkv.sampling_checks import checked_text
from pagedkv.sampling_params import SamplingParams

PromptInput: TypeAlias = "str | Sequence[int] | Mapping[str, Any]"
"""A text, token ids, or a dict with ``prompt`` or ``prompt_token_ids``, and ``cache_salt``."""

MAX_CACHE_SALT_CHARS = 128
PRIORITY_LIMIT = 2**31

_DICT_KEYS = ("prompt", "prompt_token_ids", "cache_salt")
_DICT_KEYS_NOT_YET = ("multi_modal_data", "mm_processor_kwargs", "prompt_embeds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt in one shape: a text to be encoded, or ids, or both.

    Attributes:
        text: the text; None where only ids were given.
        token_ids: the ids; None where the text is still to be encoded.
        cache_salt: cached blocks are shared only under equal salts.
    """

    text: str | None
    token_ids: list[int] | None
    cache_salt: str | None


def normalize_prompts(prompts: Any, prompt_token_ids: Any = None) -> list[Prompt]:
    """The prompts of a call in their order.

    Args:
        prompts: one prompt or a sequence of them; None with ``prompt_token_ids``.
        prompt_token_ids: the classic spelling: ids of one prompt or of several.

    Raises:
        TypeError: something that is no prompt.
        ValueError: an empty prompt, or both arguments at odds.
    """
    if prompt_token_ids is not None:
        given = _as_many(prompt_token_ids)
        if prompts is None:
            return [_normalize(ids, index) for index, ids in enumerate(given)]
        texts = _as_many(prompts)
        if len(texts) != len(given):
            msg = f"prompts has {len(texts)} entries and prompt_token_ids has {len(given)}; give as many of each"
            raise ValueError(msg)
        pairs = [
            {"prompt": text, "prompt_token_ids": ids}
            for text, ids in zip(texts, given, strict=True)
        ]
        return [_normalize(pair, index) for index, pair in enumerate(pairs)]
    if prompts is None:
        msg = "prompts is missing: give a text, token ids, a dict, or a list of them"
        raise TypeError(msg)
    return [_normalize(prompt, index) for index, prompt in enumerate(_as_many(prompts))]


def normalize_params(
    sampling_params: Any, num_prompts: int, *, default: SamplingParams
) -> list[SamplingParams]:
    """One checked set of parameters per prompt; copies, so that the caller may go on to change theirs.

    Args:
        sampling_params: one for all, one per prompt, or None for ``default``.
        num_prompts: how many prompts there are.
        default: of calls that bring none.

    Raises:
        TypeError: something that is no SamplingParams.
        ValueError: another number than that of prompts, or a value out of range.
    """
    if sampling_params is None:
        sampling_params = default
    if isinstance(sampling_params, SamplingParams):
        sampling_params.verify()
        return [sampling_params.clone()] * num_prompts
    if not isinstance(sampling_params, Sequence):
        msg = f"sampling_params must be a SamplingParams or a list of them, got {sampling_params!r}"
        raise TypeError(msg)
    if len(sampling_params) != num_prompts:
        msg = (
            f"sampling_params has {len(sampling_params)} entries for {num_prompts} prompts; "
            "give one for all, or one per prompt"
        )
        raise ValueError(msg)
    for index, params in enumerate(sampling_params):
        if not isinstance(params, SamplingParams):
            msg = f"sampling_params[{index}] must be a SamplingParams, got {params!r}"
            raise TypeError(msg)
        params.verify()
    return [params.clone() for params in sampling_params]


def normalize_priorities(priority: Any, num_prompts: int) -> list[int]:
    """One priority per prompt; 0 without one.

    Raises:
        TypeError: something that is no int.
        ValueError: another number than that of prompts, or a value beyond 32 bits.
    """
    if priority is None:
        return [0] * num_prompts
    given = [priority] * num_prompts if _is_int(priority) else priority
    if not isinstance(given, Sequence) or isinstance(given, str):
        msg = f"priority must be an int or a list of ints, got {priority!r}"
        raise TypeError(msg)
    if len(given) != num_prompts:
        msg = f"priority has {len(given)} entries for {num_prompts} prompts; give one per prompt"
        raise ValueError(msg)
    for index, value in enumerate(given):
        if not _is_int(value):
            msg = f"priority[{index}] must be an int, got {value!r}"
            raise TypeError(msg)
        if not -PRIORITY_LIMIT <= value < PRIORITY_LIMIT:
            msg = f"priority[{index}] must fit 32 bits, got {value}"
            raise ValueError(msg)
    return [int(value) for value in given]


def check_token_ids(token_ids: Sequence[Any], *, vocab_size: int, where: str) -> None:
    """Checks that ids are ints inside the vocabulary; O(n), without a Python loop for plain lists.

    Raises:
        TypeError: an entry is no int.
        ValueError: an id is out of range, or there are none.
    """
    if not token_ids:
        msg = f"{where} is empty; give at least one token"
        raise ValueError(msg)
    if set(map(type, token_ids)) != {int}:
        for position, token_id in enumerate(token_ids):
            if not _is_int(token_id):
                msg = f"{where} must hold ints, got {token_id!r} at position {position}"
                raise TypeError(msg)
    low, high = min(token_ids), max(token_ids)
    if low < 0 or high >= vocab_size:
        bad = low if low < 0 else high
        msg = (
            f"{where} holds token id {bad} at position {list(token_ids).index(bad)}, which is outside "
            f"the vocabulary (0 to {vocab_size - 1})"
        )
        raise ValueError(msg)


def check_prompt_length(num_tokens: int, *, max_model_len: int, where: str) -> None:
    """Checks that a prompt leaves room for a token.

    Raises:
        RequestTooLongError: it does not; the message is the one that users of other engines search for.
    """
    if num_tokens >= max_model_len:
        msg = (
            f"{where}: This model's maximum context length is {max_model_len} tokens, but the prompt "
            f"has {num_tokens} and at least one token is to be generated; shorten the prompt or "
            "raise max_model_len"
        )
        raise RequestTooLongError(msg)


def _as_many(prompts: Any) -> Sequence[Any]:
    """A list of prompts, of one where ``prompts`` is a single prompt."""
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if isinstance(prompts, np.ndarray):
        prompts = prompts.tolist()
    if not isinstance(prompts, Sequence) or isinstance(prompts, bytes):
        msg = f"prompts must be a text, token ids, a dict, or a list of them, got {type(prompts).__name__}"
        raise TypeError(msg)
    # A flat list of numbers is one prompt; bools are let through here and refused with their position.
    if prompts and isinstance(prompts[0], int | np.integer):
        return [prompts]
    return prompts


def _normalize(prompt: Any, index: int) -> Prompt:
    where = f"prompts[{index}]"
    if isinstance(prompt, str):
        return Prompt(text=checked_text(where, prompt), token_ids=None, cache_salt=None)
    if isinstance(prompt, Mapping):
        return _normalize_mapping(prompt, where)
    return Prompt(text=None, token_ids=_as_ids(prompt, where), cache_salt=None)


def _normalize_mapping(prompt: Mapping[str, Any], where: str) -> Prompt:
    for key in prompt:
        if key in _DICT_KEYS_NOT_YET:
            if prompt[key] is not None:
                raise not_supported_yet(where, key, prompt[key])
        elif key not in _DICT_KEYS:
            raise unknown_parameter(where, str(key), _DICT_KEYS)
    text, ids = prompt.get("prompt"), prompt.get("prompt_token_ids")
    if text is None and ids is None:
        msg = f"{where} must have 'prompt' or 'prompt_token_ids', got keys {sorted(prompt)}"
        raise ValueError(msg)
    if text is not None and not isinstance(text, str):
        msg = f"{where}['prompt'] must be a str, got {text!r}"
        raise TypeError(msg)
    salt = prompt.get("cache_salt")
    if salt is not None and not isinstance(salt, str):
        msg = f"{where}['cache_salt'] must be a str, got {salt!r}"
        raise TypeError(msg)
    if salt is not None and not 0 < len(salt) <= MAX_CACHE_SALT_CHARS:
        msg = f"{where}['cache_salt'] must have 1 to {MAX_CACHE_SALT_CHARS} characters, got {len(salt)}"
        raise ValueError(msg)
    if ids is not None:
        return Prompt(text=text, token_ids=_as_ids(ids, where), cache_salt=salt)
    return Prompt(text=checked_text(where, text), token_ids=None, cache_salt=salt)


def _as_ids(ids: Any, where: str) -> list[int]:
    if hasattr(ids, "tolist"):
        ids = ids.tolist()
    if isinstance(ids, str | bytes | Mapping) or not isinstance(ids, Sequence):
        msg = f"{where} must be a text, token ids or a dict, got {type(ids).__name__}"
        raise TypeError(msg)
    return list(ids)


def _is_int(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
