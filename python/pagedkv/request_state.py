"""What Python keeps of a live request, and how it becomes an output."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pagedkv.outputs import (
    CompletionOutput,
    FinishReason,
    Logprob,
    RequestMetrics,
    RequestOutput,
    SampleLogprobs,
    StreamDelta,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from pagedkv._core import RequestResult, TextDecoder
    from pagedkv.sampling.sampled import TopLogprobs
    from pagedkv.sampling_params import SamplingParams


@dataclass(slots=True)
class StepEvents:
    """What a step has to deliver.

    Attributes:
        deltas: tokens of streamed requests, by request id, in order.
        finished: outputs of requests that ended.
    """

    deltas: list[tuple[str, StreamDelta]] = field(default_factory=list)
    finished: list[RequestOutput] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledLogprob:
    """The reported log-probabilities of one generated token."""

    token_id: int
    logprob: float
    top: TopLogprobs


@dataclass(slots=True, kw_only=True)
class GrownSequence:
    """What a streamed sequence has delivered so far."""

    text: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None


@dataclass(slots=True, kw_only=True)
class RequestState:
    """A request between `add_request` and its last output.

    Attributes:
        request_id: the caller's name.
        core_id: the core's number.
        prompt: the prompt's text, None where ids were given.
        prompt_token_ids: the prompt's ids.
        params: the request's own copy of its parameters.
        seed: the seed in use.
        ending_ids: ids that end its sequences.
        metrics: filled as it runs.
        is_streamed: deltas are wanted.
        decoder: the template of its sequences' texts; None without detokenization.
        logprobs: by sequence, one entry per generated token, where they were asked for.
        grown: by sequence, what a streamed request has delivered.
    """

    request_id: str
    core_id: int
    prompt: str | None
    prompt_token_ids: list[int]
    params: SamplingParams
    seed: int
    ending_ids: list[int]
    metrics: RequestMetrics
    is_streamed: bool
    decoder: TextDecoder | None
    logprobs: dict[int, list[SampledLogprob]] = field(default_factory=dict)
    grown: dict[int, GrownSequence] = field(default_factory=dict)

    def note_delta(self, delta: StreamDelta) -> None:
        """Keeps what a delta adds, for outputs in the middle of a request."""
        sequence = self.grown.setdefault(delta.index, GrownSequence())
        sequence.text.append(delta.text)
        sequence.token_ids += delta.token_ids
        sequence.finish_reason = delta.finish_reason

    def unfinished(self) -> list[int]:
        """Indices of the streamed sequences that have not delivered their end."""
        return [
            index
            for index in range(self.params.n)
            if index not in self.grown or self.grown[index].finish_reason is None
        ]

    def partial_output(self, decode_token: Callable[[int], str] | None) -> RequestOutput:
        """What a streamed request has delivered so far."""
        outputs = []
        for index in range(self.params.n):
            sequence = self.grown.get(index, GrownSequence())
            text = "".join(sequence.text)
            # Joined once, so that the next output does not join the same pieces again.
            sequence.text = [text]
            outputs.append(
                CompletionOutput(
                    index=index,
                    text=text,
                    token_ids=list(sequence.token_ids),
                    cumulative_logprob=None,
                    logprobs=self._sample_logprobs(index, len(sequence.token_ids), decode_token),
                    finish_reason=sequence.finish_reason,
                )
            )
        return self._output(outputs, is_finished=False, error=None)

    def final_output(
        self,
        result: RequestResult,
        decode_token: Callable[[int], str] | None,
        *,
        error: str | None = None,
    ) -> RequestOutput:
        """The output of a request that has ended.

        Args:
            result: what the core has of it.
            decode_token: a token's text, for log-probabilities; None without a tokenizer.
            error: what ended it, where it failed; its unfinished sequences then say "error".
        """
        outputs = []
        for sequence in result.sequences:
            token_ids: list[int] = sequence.token_ids.tolist()
            reason: FinishReason = sequence.finish_reason
            if error is not None and reason == "abort":
                reason = "error"
            outputs.append(
                CompletionOutput(
                    index=sequence.index,
                    text=sequence.text,
                    token_ids=token_ids,
                    cumulative_logprob=sequence.cumulative_logprob,
                    logprobs=self._sample_logprobs(sequence.index, len(token_ids), decode_token),
                    finish_reason=reason,
                    stop_reason=sequence.stop_reason,
                    score=sequence.score,
                )
            )
        metrics = self.metrics
        metrics.num_cached_tokens = result.num_cached_tokens
        metrics.num_preemptions = result.num_preemptions
        metrics.num_generated_tokens = sum(len(output.token_ids) for output in outputs)
        if error is None and self.decoder is not None and self.decoder.error is not None:
            error = f"the tokenizer failed to decode the output: {self.decoder.error}"
        return self._output(outputs, is_finished=True, error=error)

    def _output(
        self, outputs: list[CompletionOutput], *, is_finished: bool, error: str | None
    ) -> RequestOutput:
        return RequestOutput(
            request_id=self.request_id,
            prompt=self.prompt,
            prompt_token_ids=self.prompt_token_ids,
            outputs=outputs,
            finished=is_finished,
            num_cached_tokens=self.metrics.num_cached_tokens,
            metrics=self.metrics,
            error=error,
        )

    def _sample_logprobs(
        self, index: int, num_tokens: int, decode_token: Callable[[int], str] | None
    ) -> SampleLogprobs | None:
        if self.params.logprobs is None:
            return None

        def entry(token_id: int, logprob: float, rank: int) -> Logprob:
            text = None if decode_token is None else decode_token(token_id)
            return Logprob(logprob=logprob, rank=rank, decoded_token=text)

        positions: SampleLogprobs = []
        for sampled in self.logprobs.get(index, [])[:num_tokens]:
            own = {sampled.token_id: entry(sampled.token_id, sampled.logprob, sampled.top.rank)}
            for rank, (token_id, logprob) in enumerate(
                zip(sampled.top.token_ids, sampled.top.logprobs, strict=True), start=1
            ):
                own.setdefault(token_id, entry(token_id, logprob, rank))
            positions.append(own)
        return positions
