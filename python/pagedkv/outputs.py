"""What a request returns, with the field names of the classic API."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pagedkv.logprobs import PromptLogprobs, SampleLogprobs

FinishReason = Literal["stop", "length", "repetition", "abort", "error"]


@dataclass(slots=True, kw_only=True)
class RequestMetrics:
    """When things happened to a request, in seconds of ``time.monotonic()``, and how often.

    Attributes:
        arrival_time: the request was added.
        first_scheduled_time: its first token was part of a batch.
        first_token_time: its first output token was sampled.
        finished_time: its last sequence ended.
        num_cached_tokens: prompt tokens whose KV came from the prefix cache.
        num_preemptions: times it gave up its blocks and ran again.
        num_swaps: of those, times that the blocks were moved to the host and back.
        num_tokens_lost: tokens whose computation was lost otherwise.
        num_held_slots: slots of the distinct blocks that its sequences held when the first of them ended; 0 if it
            was aborted before it held any.
        num_used_slots: of those, slots that held tokens.
        num_generated_tokens: over all its sequences.
    """

    arrival_time: float
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    finished_time: float | None = None
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    num_swaps: int = 0
    num_tokens_lost: int = 0
    num_held_slots: int = 0
    num_used_slots: int = 0
    num_generated_tokens: int = 0

    @property
    def time_in_queue(self) -> float | None:
        """Seconds from arrival to the first batch."""
        return _between(self.arrival_time, self.first_scheduled_time)

    @property
    def time_to_first_token(self) -> float | None:
        """Seconds from arrival to the first output token."""
        return _between(self.arrival_time, self.first_token_time)

    @property
    def latency(self) -> float | None:
        """Seconds from arrival to the end."""
        return _between(self.arrival_time, self.finished_time)

    @property
    def tokens_per_second(self) -> float | None:
        """Output tokens of all sequences per second between first token and end."""
        seconds = _between(self.first_token_time, self.finished_time)
        if not seconds or self.num_generated_tokens < 2:
            return None
        return self.num_generated_tokens / seconds


@dataclass(slots=True, kw_only=True)
class CompletionOutput:
    """One continuation of a prompt.

    Attributes:
        index: its place among the request's ``n``.
        text: what was generated, without the stop string unless asked for.
        token_ids: every generated id, the ending one included.
        cumulative_logprob: sum of the chosen tokens' log-probabilities.
        logprobs: one dict per token, None unless ``SamplingParams.logprobs`` was given.
        finish_reason: "stop", "length", "repetition", "abort" or "error"; None while it runs.
        score: of beams, ``cumulative_logprob`` / number of tokens ** ``length_penalty``; None for samples.
        stop_reason: the stop string or stop token id that ended it, "repetition_detected" after a
            repetition; None for the model's own ending id and for every other end.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: SampleLogprobs | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    score: float | None = None

    def finished(self) -> bool:
        """Whether this continuation has ended."""
        return self.finish_reason is not None


@dataclass(slots=True, kw_only=True)
class RequestOutput:
    """A prompt with its continuations, in the order of their index.

    Attributes:
        request_id: the caller's id, or one the engine made.
        prompt: the prompt's text; None where ids were given.
        prompt_token_ids: the prompt's ids.
        outputs: the continuations.
        finished: whether all of them have ended.
        num_cached_tokens: prompt tokens whose KV came from the prefix cache.
        metrics: times and counts.
        error: what went wrong, where ``finish_reason`` is "error".
        prompt_logprobs: one dict per token of the prompt, None for the first; None unless
            ``SamplingParams.prompt_logprobs`` was given, and after the first of several DELTA outputs.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    num_cached_tokens: int
    metrics: RequestMetrics
    error: str | None = None
    prompt_logprobs: PromptLogprobs | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamDelta:
    """What ``LLM.stream`` yields: the tokens that appeared, and their text.

    Joined over a sequence, ``text`` is the finished text and ``token_ids`` the finished ids.

    Attributes:
        index: which of the request's ``n`` continuations grew.
        text: text that no later token can change; may be empty while a character is incomplete
            or a stop string may be starting.
        token_ids: the ids behind it.
        logprobs: one dict per id, None unless ``SamplingParams.logprobs`` was given.
        finish_reason: set on the last delta of a continuation.
        error: what went wrong, where ``finish_reason`` is "error".
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: SampleLogprobs | None = None
    finish_reason: FinishReason | None = None
    error: str | None = None


def _between(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else end - start
