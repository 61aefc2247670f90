"""What one request asks of the sampler and of the stop conditions."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from pagedkv.errors import not_supported_yet, unknown_parameter

OWNER = "SamplingParams"
GREEDY_TEMPERATURE = 1e-5
"""Temperatures below this pick the most likely token."""

MAX_N = 16_384
MAX_STOP_STRINGS = 64
MAX_STOP_STRING_CHARS = 4_096
MAX_STOP_TOKEN_IDS = 1_024
MAX_TOKENS_LIMIT = 2**31 - 1

# Fields of the classic API that have no effect yet, with the values that ask for nothing.
_NOT_YET: dict[str, tuple[object, ...]] = {
    "allowed_token_ids": (None,),
    "bad_words": (None, []),
    "best_of": (None,),
    "early_stopping": (False,),
    "extra_args": (None,),
    "flat_logprobs": (False,),
    "guided_decoding": (None,),
    "length_penalty": (1.0,),
    "logit_bias": (None, {}),
    "logits_processors": (None, []),
    "logprob_token_ids": (None,),
    "output_kind": (None, 0),
    "prompt_logprob_start": (None, 0),
    "prompt_logprob_token_ids": (None,),
    "prompt_logprobs": (None,),
    "repetition_detection": (None,),
    "skip_clone": (False,),
    "skip_reading_prefix_cache": (None, False),
    "stream_interval": (None, 1),
    "structured_outputs": (None,),
    "thinking_token_budget": (None, -1),
    "truncate_prompt_tokens": (None,),
    "use_beam_search": (False,),
    "watermarking": (None, False),
}


@dataclass(init=False, eq=True)
class SamplingParams:
    """How a request is sampled and when it ends.

    Values are checked here and again when a request takes them, so a field may be reassigned.
    The result of a request depends on its prompt, its parameters and its seed only: the token at
    output position ``p`` of sample ``i`` is the argmax of ``logit / temperature + noise``, where
    the noise is Philox4x32-10 of (seed, i, p, token id). Child ``i`` of ``n`` therefore has its
    own stream under one seed.

    Attributes:
        n: how many continuations to sample; they share the prompt's blocks.
        presence_penalty: subtracted once from the logit of each token already generated.
        frequency_penalty: subtracted per occurrence of each token already generated.
        repetition_penalty: divides (or multiplies, where negative) the logits of tokens of the
            prompt and the output.
        temperature: below 1e-5 the most likely token is taken.
        top_p: keeps the most likely tokens whose probabilities reach this sum.
        top_k: keeps this many most likely tokens; -1 or 0 keeps all.
        min_p: keeps tokens at least this likely relative to the most likely one.
        seed: a signed 64-bit integer; None (or -1) derives one from the engine's seed.
        stop: strings that end a sequence; matched across token borders.
        stop_token_ids: token ids that end a sequence, besides the model's own.
        ignore_eos: treats the model's ending ids as ordinary tokens.
        max_tokens: tokens generated at most; None means up to the model's context length.
        min_tokens: ending and stop ids are masked before this many tokens.
        logprobs: how many of the most likely tokens to report per position, besides the chosen
            one; taken from the model's distribution before penalties and temperature.
        detokenize: False returns ids only.
        skip_special_tokens: leaves special tokens out of the text.
        spaces_between_special_tokens: kept for compatibility; the text is always the tokenizer's.
        include_stop_str_in_output: keeps the stop string that ended a sequence.

    Raises:
        UnknownParameterError: a keyword that does not exist.
        TypeError: a value of the wrong type.
        ValueError: a value out of range, or a classic field that has no effect yet.
    """

    n: int
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int | None
    stop: list[str]
    stop_token_ids: list[int]
    ignore_eos: bool
    max_tokens: int | None
    min_tokens: int
    logprobs: int | None
    detokenize: bool
    skip_special_tokens: bool
    spaces_between_special_tokens: bool
    include_stop_str_in_output: bool

    def __init__(
        self,
        *,
        n: int = 1,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        repetition_penalty: float = 1.0,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = -1,
        min_p: float = 0.0,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        stop_token_ids: Sequence[int] | None = None,
        ignore_eos: bool = False,
        max_tokens: int | None = 16,
        min_tokens: int = 0,
        logprobs: int | None = None,
        detokenize: bool = True,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
        include_stop_str_in_output: bool = False,
        **other: Any,
    ) -> None:
        """Takes and checks the values; see the class for their meaning."""
        self.n = n
        self.presence_penalty = presence_penalty
        self.frequency_penalty = frequency_penalty
        self.repetition_penalty = repetition_penalty
        self.temperature = temperature
        self.top_p = top_p
        self.top_k = top_k
        self.min_p = min_p
        self.seed = seed
        self.stop = _as_list("stop", stop, wrap=str)
        self.stop_token_ids = _as_list("stop_token_ids", stop_token_ids, wrap=None)
        self.ignore_eos = ignore_eos
        self.max_tokens = max_tokens
        self.min_tokens = min_tokens
        self.logprobs = logprobs
        self.detokenize = detokenize
        self.skip_special_tokens = skip_special_tokens
        self.spaces_between_special_tokens = spaces_between_special_tokens
        self.include_stop_str_in_output = include_stop_str_in_output
        self._refuse_other(other)
        self.verify()

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is taken."""
        return self.temperature < GREEDY_TEMPERATURE

    @property
    def has_penalties(self) -> bool:
        """Whether earlier tokens change the logits."""
        return (
            self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
            or self.repetition_penalty != 1.0
        )

    def clone(self) -> SamplingParams:
        """Returns a copy that shares nothing with this one."""
        return copy.deepcopy(self)

    def verify(self) -> None:
        """Checks every field.

        Raises:
            TypeError: a value of the wrong type.
            ValueError: a value out of range.
        """
        self._verify_types()
        self._verify_lengths()
        self._verify_distribution()
        self._verify_stops()

    def _refuse_other(self, other: dict[str, Any]) -> None:
        for name, value in other.items():
            if name not in _NOT_YET:
                known = [*self.__dataclass_fields__, *_NOT_YET]
                raise unknown_parameter(OWNER, name, known)
            is_neutral = any(type(value) is type(v) and value == v for v in _NOT_YET[name])
            if name == "length_penalty":
                is_neutral = value == 1.0
            if name == "best_of":
                # Without beam search, sampling as many as are returned is what n does.
                is_neutral = value is None or (_is_int(value) and value == self.n)
            if not is_neutral:
                raise not_supported_yet(OWNER, name, value)

    def _verify_types(self) -> None:
        for name in ("n", "top_k", "min_tokens"):
            _require(name, getattr(self, name), "an int", _is_int)
        for name in ("seed", "max_tokens", "logprobs"):
            value = getattr(self, name)
            if value is not None:
                _require(name, value, "an int or None", _is_int)
        for name in (
            "presence_penalty",
            "frequency_penalty",
            "repetition_penalty",
            "temperature",
            "top_p",
            "min_p",
        ):
            _require(name, getattr(self, name), "a number", _is_number)
        for name in (
            "ignore_eos",
            "detokenize",
            "skip_special_tokens",
            "spaces_between_special_tokens",
            "include_stop_str_in_output",
        ):
            _require(name, getattr(self, name), "True or False", _is_bool)

    def _verify_lengths(self) -> None:
        if self.n < 1:
            msg = f"n must be at least 1, got {self.n}"
            raise ValueError(msg)
        if self.n > MAX_N:
            msg = f"n must be at most {MAX_N}, got {self.n}"
            raise ValueError(msg)
        if self.n > 1 and self.is_greedy:
            msg = (
                f"n must be 1 when using greedy sampling, got {self.n}; "
                "set a temperature above 0 to sample different continuations"
            )
            raise ValueError(msg)
        if self.max_tokens is not None:
            if self.max_tokens < 1:
                msg = f"max_tokens must be at least 1, got {self.max_tokens}"
                raise ValueError(msg)
            if self.max_tokens > MAX_TOKENS_LIMIT:
                msg = (
                    f"max_tokens must be at most {MAX_TOKENS_LIMIT}, got {self.max_tokens}; "
                    "use None for the model's context length"
                )
                raise ValueError(msg)
        if self.min_tokens < 0:
            msg = f"min_tokens must be greater than or equal to 0, got {self.min_tokens}"
            raise ValueError(msg)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            msg = (
                "min_tokens must be less than or equal to "
                f"max_tokens={self.max_tokens}, got {self.min_tokens}"
            )
            raise ValueError(msg)
        if self.logprobs is not None and self.logprobs < 0:
            msg = f"logprobs must be non-negative, got {self.logprobs}"
            raise ValueError(msg)

    def _verify_distribution(self) -> None:
        if not math.isfinite(self.temperature) or self.temperature < 0.0:
            msg = f"temperature must be non-negative, got {self.temperature}"
            raise ValueError(msg)
        if not 0.0 < self.top_p <= 1.0:
            msg = f"top_p must be in (0, 1], got {self.top_p}"
            raise ValueError(msg)
        if self.top_k < -1:
            msg = f"top_k must be -1 (disable), or at least 1, got {self.top_k}"
            raise ValueError(msg)
        if not 0.0 <= self.min_p <= 1.0:
            msg = f"min_p must be in [0, 1], got {self.min_p}"
            raise ValueError(msg)
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            if not -2.0 <= value <= 2.0:
                msg = f"{name} must be in [-2, 2], got {value}"
                raise ValueError(msg)
        if not math.isfinite(self.repetition_penalty) or self.repetition_penalty <= 0.0:
            msg = f"repetition_penalty must be greater than zero, got {self.repetition_penalty}"
            raise ValueError(msg)
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            msg = f"seed must be a signed 64-bit integer, got {self.seed}"
            raise ValueError(msg)

    def _verify_stops(self) -> None:
        # A reassigned field may hold any of the accepted spellings.
        self.stop = _as_list("stop", self.stop, wrap=str)
        self.stop_token_ids = _as_list("stop_token_ids", self.stop_token_ids, wrap=None)
        if len(self.stop) > MAX_STOP_STRINGS:
            msg = f"stop takes at most {MAX_STOP_STRINGS} strings, got {len(self.stop)}"
            raise ValueError(msg)
        for i, text in enumerate(self.stop):
            _require(f"stop[{i}]", text, "a str", lambda value: isinstance(value, str))
            if not text:
                msg = "stop cannot contain an empty string"
                raise ValueError(msg)
            if len(text) > MAX_STOP_STRING_CHARS:
                msg = f"stop[{i}] has {len(text)} characters, at most {MAX_STOP_STRING_CHARS} work"
                raise ValueError(msg)
        if self.stop and not self.detokenize:
            msg = (
                "stop strings are only supported when detokenize is True. "
                "Set detokenize=True to use stop."
            )
            raise ValueError(msg)
        if len(self.stop_token_ids) > MAX_STOP_TOKEN_IDS:
            msg = (
                f"stop_token_ids takes at most {MAX_STOP_TOKEN_IDS} ids, "
                f"got {len(self.stop_token_ids)}"
            )
            raise ValueError(msg)
        for i, token_id in enumerate(self.stop_token_ids):
            _require(f"stop_token_ids[{i}]", token_id, "an int", _is_int)
            if token_id < 0:
                msg = f"stop_token_ids[{i}] must be non-negative, got {token_id}"
                raise ValueError(msg)


def _as_list(name: str, value: Any, *, wrap: type | None) -> list[Any]:
    if value is None:
        return []
    if wrap is not None and isinstance(value, wrap):
        return [value]
    if isinstance(value, (str, bytes, dict)) or not isinstance(value, Sequence | set | frozenset):
        msg = f"{name} must be a list, got {value!r}"
        raise TypeError(msg)
    return sorted(value) if isinstance(value, set | frozenset) else list(value)


def _is_int(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _require(name: str, value: object, wanted: str, accepts: Any) -> None:
    if not accepts(value):
        msg = f"{name} must be {wanted}, got {value!r}"
        raise TypeError(msg)
