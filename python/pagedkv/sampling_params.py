"""What one request asks of the sampler and of the stop conditions."""

from __future__ import annotations

import copy
import logging
from dataclasses import InitVar, dataclass, field, fields
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pagedkv.beam_checks import check_beam_search, check_best_of, check_without_beams
from pagedkv.errors import unknown_parameter
from pagedkv.repetition_detection import checked_repetition
from pagedkv.sampling_checks import (
    UnsetNumber,
    at_least_one,
    check_distribution,
    check_max_tokens,
    check_penalties,
    check_report,
    check_seed,
    check_thinking,
    check_types,
    refuse_out_of_scope,
)
from pagedkv.sampling_lists import (
    MAX_BAD_WORDS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
    check_masks,
    checked_allowed_ids,
    checked_ids,
    checked_logit_bias,
    checked_named_ids,
    checked_processors,
    checked_strings,
)
from pagedkv.structured_outputs import checked_structure

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

logger = logging.getLogger(__name__)

Strings: TypeAlias = Any
"""Set to a str, a sequence of them or None; read, once checked, as a list."""
TokenIds: TypeAlias = Any
"""Set to a sequence or set of ints, or None; read, once checked, as a list, or None where None differs from an empty one."""

OWNER = "SamplingParams"
GREEDY_TEMPERATURE = 1e-5
"""Temperatures below this pick the most likely token."""
MIN_TEMPERATURE = 1e-2
"""Lower ones that still sample are raised to this: logits divided by less leave the range of float32."""

MAX_N = 16_384

# Fields of other engines that are no part of what this one does, with the values that ask for nothing.
_OUT_OF_SCOPE: dict[str, tuple[object, ...]] = {
    "routed_experts_prompt_start": (0, None),
    "trace_decode_token_ids": (None,),
    "watermarking": (None, False),
}


class RequestOutputKind(IntEnum):
    """Which outputs `LLMEngine.step` returns of a request."""

    CUMULATIVE = 0
    """Everything so far, whenever it grows."""
    DELTA = 1
    """What is new, whenever there is something."""
    FINAL_ONLY = 2
    """Nothing before the end."""


@dataclass(kw_only=True)
class SamplingParams:
    """How a request is sampled and when it ends; the fields of both generations of the classic API.

    Values are checked here and again when a request takes them, so a field may be reassigned.
    The result of a request depends on its prompt, its parameters and its seed only: the token at
    output position ``p`` of sample ``i`` is the argmax of ``logit / temperature + noise``, where
    the noise is Philox4x32-10 of (seed, i, p, token id). Child ``i`` of ``n`` therefore has its
    own stream under one seed.

    Attributes:
        n: how many continuations to return; they share the prompt's blocks.
        best_of: how many to sample, of which the ``n`` with the highest cumulative log-probability
            are returned, best first; the width of a beam search. None means ``n``.
        presence_penalty: subtracted once from the logit of each token already generated.
        frequency_penalty: subtracted per occurrence of each token already generated.
        repetition_penalty: divides (or multiplies, where negative) the logits of tokens of the
            prompt and the output.
        temperature: below 1e-5 the most likely token is taken; from there to 0.01 it is 0.01.
            Unset, it is 1, or 0 in a beam search.
        top_p: keeps the most likely tokens whose probabilities reach this sum.
        top_k: keeps this many most likely tokens; 0 or -1 keeps all, and reads as 0.
        min_p: keeps tokens at least this likely relative to the most likely one.
        seed: a signed 64-bit integer; None (or -1) derives one from the engine's seed.
        use_beam_search: keeps the ``best_of`` most likely continuations at each step.
        length_penalty: a beam's score is its cumulative log-probability / number of generated
            tokens (the ending one included) ** this.
        early_stopping: True ends a beam search once ``best_of`` beams have ended; False, when no
            running beam scores better at its present length; "never", when none ever can.
        stop: strings that end a sequence; matched across token borders.
        stop_token_ids: token ids that end a sequence, besides the model's own.
        ignore_eos: treats the model's ending ids as ordinary tokens.
        max_tokens: tokens generated at most; None means up to the model's context length.
        min_tokens: ending and stop ids are masked, and no repetition counts, before this many tokens.
        logprobs: how many of the most likely tokens to report per position, besides the chosen
            one; -1 for the whole vocabulary.
        logprob_token_ids: at most 128 ids whose log-probabilities are reported at each position.
        prompt_logprobs: the same for the tokens of the prompt, which is then computed anew.
        prompt_logprob_token_ids: ids that are reported at each position of the prompt.
        prompt_logprob_start: the first position of the prompt that is reported.
        flat_logprobs: reports both in flat lists, see `FlatLogprobs`.
        detokenize: False returns ids only.
        skip_special_tokens: leaves special tokens out of the text.
        spaces_between_special_tokens: kept for compatibility; the text is always the tokenizer's.
        include_stop_str_in_output: keeps the stop string that ended a sequence.
        output_kind: what `LLMEngine.step` returns of it; `LLM.stream` yields deltas, with FINAL_ONLY
            one of each sequence at the end.
        stream_interval: tokens per streamed output, after the first; None means 1. Where
            ``best_of`` > ``n``, and in a beam search, nothing is streamed before the end.
        logits_processors: functions of (output ids, logits) or (prompt ids, output ids, logits)
            that return the logits [V] to use.
        logit_bias: what is added to the logits of ids, clamped to +-100.
        allowed_token_ids: the only ids that may be generated.
        bad_words: strings whose last token is barred where the ones before it were generated.
        structured_outputs: a StructuredOutputsParams, or a dict with one of json, regex, choice,
            grammar, json_object, structural_tag. ``guided_decoding`` and the ``guided_json``,
            ``guided_regex``, ``guided_choice``, ``guided_grammar`` and ``guided_json_object`` of
            earlier versions mean the same.
        thinking_token_budget: tokens generated at most in each section of thinking, whose end then follows; None (or -1)
            for no limit. Needs ``LLM(reasoning_config=...)``.
        repetition_detection: a RepetitionDetectionParams, or a dict of its fields: ends a sequence that repeats itself.
        truncate_prompt_tokens: keeps this many last tokens of a prompt.
        skip_reading_prefix_cache: computes the whole prompt; None means where ``prompt_logprobs``
            needs it.
        extra_args: values for logits processors of the caller's own; pagedkv does not read them.
        skip_clone: kept for compatibility; a request always has a copy.
        bad_words_token_ids: the ids of ``bad_words``, filled when a request takes the parameters.

    Raises:
        UnknownParameterError: a keyword that does not exist.
        TypeError: a value of the wrong type.
        ValueError: a value out of range or at odds with another, or a field that is out of scope.
    """

    n: int = 1
    best_of: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = UnsetNumber(1.0)
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    use_beam_search: bool = False
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    stop: Strings = None
    stop_token_ids: TokenIds = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    prompt_logprob_token_ids: TokenIds = None
    prompt_logprob_start: int | None = None
    logprob_token_ids: TokenIds = None
    flat_logprobs: bool = False
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    stream_interval: int | None = None
    logits_processors: list[Callable[..., Any]] | None = None
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: TokenIds = None
    bad_words: Strings = None
    structured_outputs: Any = None
    guided_decoding: Any = None
    truncate_prompt_tokens: int | None = None
    skip_reading_prefix_cache: bool | None = None
    extra_args: dict[str, Any] | None = None
    thinking_token_budget: int | None = None
    repetition_detection: Any = None
    trace_decode_token_ids: Any = None
    routed_experts_prompt_start: int | None = 0
    watermarking: Any = None
    skip_clone: bool = False
    guided_json: InitVar[Any] = None
    guided_regex: InitVar[Any] = None
    guided_choice: InitVar[Any] = None
    guided_grammar: InitVar[Any] = None
    guided_json_object: InitVar[Any] = None
    bad_words_token_ids: list[list[int]] = field(default_factory=list, init=False, compare=False)

    if not TYPE_CHECKING:

        def __new__(cls, **given: Any) -> Self:
            """Looks at the names first, so that a wrong one is answered with the nearest right one."""
            for name in given:
                if name not in _PARAMETERS:
                    raise unknown_parameter(OWNER, name, _PARAMETERS)
            return super().__new__(cls)

    def __post_init__(self, *guided: Any) -> None:
        """Takes the earlier spellings and checks the values."""
        spelled = {
            kind: value
            for kind, value in zip(_GUIDED_KINDS, guided, strict=True)
            if value is not None
        }
        if spelled and (self.structured_outputs is not None or self.guided_decoding is not None):
            msg = f"guided_{next(iter(spelled))} and structured_outputs were both given; keep one"
            raise ValueError(msg)
        if spelled:
            self.guided_decoding = spelled
        self.verify()

    @classmethod
    def from_optional(cls, **given: Any) -> SamplingParams:
        """The same with None for whatever is to have its default."""
        return cls(**{name: value for name, value in given.items() if value is not None})

    @property
    def num_sequences(self) -> int:
        """How many continuations are generated: ``best_of``, or ``n`` without it."""
        return self.n if self.best_of is None else self.best_of

    @property
    def reads_prefix_cache(self) -> bool:
        """Whether the prompt's cached blocks may be used; without them every token of it is computed."""
        if self.skip_reading_prefix_cache is None:
            return self.prompt_logprobs is None
        return not self.skip_reading_prefix_cache

    @property
    def first_reported(self) -> int:
        """The first position of the prompt whose token is reported, where ``prompt_logprobs`` is set."""
        return max(1, self.prompt_logprob_start or 0)

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
        """Returns a copy that shares nothing with this one but the functions in ``logits_processors``."""
        clone = copy.copy(self)
        for name in _CONTAINERS:
            setattr(clone, name, copy.copy(getattr(self, name)))
        clone.structured_outputs = copy.deepcopy(self.structured_outputs)
        clone.extra_args = copy.deepcopy(self.extra_args)
        return clone

    def verify(self) -> None:
        """Checks every field, and brings each into its one shape.

        Raises:
            TypeError: a value of the wrong type.
            ValueError: a value out of range or at odds with another.
        """
        check_types(vars(self))
        refuse_out_of_scope(OWNER, vars(self), _OUT_OF_SCOPE)
        self._normalize()
        self._verify_lengths()
        self._verify_distribution()
        if self.use_beam_search:
            check_beam_search(self)
        else:
            check_without_beams(self)
        check_best_of(self)
        check_thinking(self.thinking_token_budget, self.structured_outputs)
        check_masks(self.allowed_token_ids, self.logit_bias)
        if self.stop and not self.detokenize:
            msg = (
                "stop strings are only supported when detokenize is True. "
                "Set detokenize=True to use stop."
            )
            raise ValueError(msg)

    def _normalize(self) -> None:
        # A reassigned field may hold any of the accepted spellings.
        self.stop = checked_strings("stop", self.stop, max_strings=MAX_STOP_STRINGS)
        self.stop_token_ids = checked_ids(
            "stop_token_ids", self.stop_token_ids, max_ids=MAX_STOP_TOKEN_IDS
        )
        self.bad_words = checked_strings("bad_words", self.bad_words, max_strings=MAX_BAD_WORDS)
        for name in ("logprob_token_ids", "prompt_logprob_token_ids"):
            setattr(self, name, checked_named_ids(name, getattr(self, name)))
        self.logit_bias = checked_logit_bias(self.logit_bias)
        self.allowed_token_ids = checked_allowed_ids(self.allowed_token_ids)
        self.logits_processors = checked_processors(self.logits_processors)
        if self.guided_decoding is not None and self.structured_outputs is not None:
            msg = "guided_decoding is the earlier name of structured_outputs, and both were given; keep one"
            raise ValueError(msg)
        if self.guided_decoding is not None:
            self.structured_outputs, self.guided_decoding = self.guided_decoding, None
        self.structured_outputs = checked_structure(self.structured_outputs)
        self.repetition_detection = checked_repetition(self.repetition_detection)
        self.output_kind = _output_kind(self.output_kind)
        if self.top_k == -1:
            self.top_k = 0
        for name in ("seed", "thinking_token_budget"):
            if getattr(self, name) == -1:
                setattr(self, name, None)
        if self.use_beam_search and isinstance(self.temperature, UnsetNumber):
            self.temperature = 0.0
        if GREEDY_TEMPERATURE <= self.temperature < MIN_TEMPERATURE:
            logger.warning(
                "temperature=%s is raised to %s; use 0 for the most likely token",
                self.temperature,
                MIN_TEMPERATURE,
            )
            self.temperature = MIN_TEMPERATURE

    def _verify_lengths(self) -> None:
        for name in ("n", "best_of", "truncate_prompt_tokens", "stream_interval"):
            at_least_one(name, getattr(self, name))
        for name in ("n", "best_of"):
            if (getattr(self, name) or 1) > MAX_N:
                msg = f"{name} must be at most {MAX_N}, got {getattr(self, name)}"
                raise ValueError(msg)
        check_max_tokens(self.max_tokens)
        if self.min_tokens < 0:
            msg = f"min_tokens must be greater than or equal to 0, got {self.min_tokens}"
            raise ValueError(msg)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            msg = (
                "min_tokens must be less than or equal to "
                f"max_tokens={self.max_tokens}, got {self.min_tokens}"
            )
            raise ValueError(msg)
        for name in ("logprobs", "prompt_logprobs", "prompt_logprob_start"):
            lowest = 0 if name == "prompt_logprob_start" else -1
            check_report(name, getattr(self, name), lowest=lowest)

    def _verify_distribution(self) -> None:
        check_distribution(
            temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, min_p=self.min_p
        )
        check_penalties(
            presence=self.presence_penalty,
            frequency=self.frequency_penalty,
            repetition=self.repetition_penalty,
        )
        check_seed(self.seed)


def _output_kind(value: Any) -> RequestOutputKind:
    if value is None:
        return RequestOutputKind.CUMULATIVE
    try:
        return RequestOutputKind(value)
    except ValueError:
        known = ", ".join(f"{kind.name} ({kind.value})" for kind in RequestOutputKind)
        msg = f"output_kind must be one of {known}, got {value!r}"
        raise ValueError(msg) from None


_GUIDED_KINDS = ("json", "regex", "choice", "grammar", "json_object")
_PARAMETERS = frozenset(
    {entry.name for entry in fields(SamplingParams) if entry.init}
    | {f"guided_{kind}" for kind in _GUIDED_KINDS}
)
# Fields that are copied one level deep: what they hold is never changed.
_CONTAINERS = (
    "stop",
    "stop_token_ids",
    "bad_words",
    "logit_bias",
    "allowed_token_ids",
    "logits_processors",
    "repetition_detection",
    "bad_words_token_ids",
)
