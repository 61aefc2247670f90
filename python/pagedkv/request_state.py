"""What Python keeps of a live request, and how it becomes an output."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pagedkv.logprobs import prompt_logprobs, sample_logprobs
from pagedkv.outputs import (
    CompletionOutput,
    FinishReason,
    RequestMetrics,
    RequestOutput,
    StreamDelta,
)
from pagedkv.sampling.sampled import NOTHING_LEFT, TopLogprobs
from pagedkv.sampling_params import RequestOutputKind

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pagedkv._core import RequestResult, SequenceResult, TextDecoder
    from pagedkv.logprobs import PromptLogprobs, SampleLogprobs
    from pagedkv.prompt_logprobs import PromptScore
    from pagedkv.sampling.named_tokens import NamedToken
    from pagedkv.sampling_params import SamplingParams

    DecodeToken = Callable[[int], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledLogprob:
    """The reported log-probabilities of one generated token."""

    token_id: int
    logprob: float
    top: TopLogprobs
    named: list[NamedToken]

    @classmethod
    def of_beam(
        cls, token_id: int, logprob: float, rank: int, best: list[tuple[int, float]]
    ) -> SampledLogprob:
        """One from the core, which keeps those of beams."""
        top = TopLogprobs(
            sample=0,
            rank=rank,
            token_ids=[token for token, _ in best],
            logprobs=[likely for _, likely in best],
        )
        return cls(token_id=token_id, logprob=logprob, top=top, named=[])


@dataclass(slots=True, kw_only=True)
class GrownSequence:
    """What has become of a streamed sequence so far.

    Attributes:
        text: its pieces, delivered or not.
        token_ids: its ids, delivered or not.
        finish_reason: how it ended; None while it runs.
        pending: pieces of the text that are to be delivered.
        num_sent: tokens that were delivered.
        num_sent_chars: characters that were delivered.
    """

    text: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    pending: list[str] = field(default_factory=list)
    num_sent: int = 0
    num_sent_chars: int = 0


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
        grown: by sequence, what has become of a streamed request.
        prompt_scores: by position, the reports of the prompt's tokens, where they were asked for.
        prompt_logprobs: the same as they are returned, once there is one of each.
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
    prompt_scores: dict[int, PromptScore] = field(default_factory=dict)
    prompt_logprobs: PromptLogprobs | None = None

    @property
    def is_held(self) -> bool:
        """Whether nothing is delivered before the end: it is not wanted, or not known which sequences are returned."""
        params = self.params
        return (
            params.output_kind is RequestOutputKind.FINAL_ONLY
            or params.num_sequences > params.n
            or params.use_beam_search
        )

    @property
    def unscored_prompt(self) -> list[int] | None:
        """The prompt, while reports of its tokens are missing; else None."""
        if self.params.prompt_logprobs is None or self._is_prompt_scored:
            return None
        return self.prompt_token_ids

    @property
    def _is_prompt_scored(self) -> bool:
        num_reported = len(self.prompt_token_ids) - self.params.first_reported
        return len(self.prompt_scores) >= num_reported

    def note_delta(
        self,
        index: int,
        text: str,
        token_ids: list[int],
        finish_reason: FinishReason | None,
        decode_token: DecodeToken | None,
    ) -> StreamDelta | None:
        """Keeps what a sequence has grown by.

        Returns:
            What is to be delivered; None until there are ``stream_interval`` tokens of it. The first token and the
            end do not wait.
        """
        sequence = self.grown.setdefault(index, GrownSequence())
        sequence.text.append(text)
        sequence.pending.append(text)
        sequence.token_ids += token_ids
        sequence.finish_reason = finish_reason
        start = sequence.num_sent
        num_pending = len(sequence.token_ids) - start
        if start and finish_reason is None and num_pending < (self.params.stream_interval or 1):
            return None
        text = "".join(sequence.pending)
        sequence.pending.clear()
        sequence.num_sent += num_pending
        sequence.num_sent_chars += len(text)
        return StreamDelta(
            index=index,
            text=text,
            token_ids=sequence.token_ids[start:],
            logprobs=self._sample_logprobs(index, slice(start, sequence.num_sent), decode_token),
            finish_reason=finish_reason,
        )

    def last_deltas(self, output: RequestOutput) -> list[StreamDelta]:
        """What the final output has beyond the deltas of a streamed request, one of each sequence that has more.

        That is everything of a held request, and the rest and the error of one that failed.
        """
        deltas = []
        for completion in output.outputs:
            sequence = self.grown.get(completion.index, GrownSequence())
            if sequence.finish_reason is not None:
                continue
            start, logprobs = sequence.num_sent, completion.logprobs
            deltas.append(
                StreamDelta(
                    index=completion.index,
                    text=completion.text[sequence.num_sent_chars :],
                    token_ids=completion.token_ids[start:],
                    logprobs=None if logprobs is None else logprobs[start:],
                    finish_reason=completion.finish_reason,
                    error=output.error,
                )
            )
        return deltas

    def partial_output(
        self, deltas: list[StreamDelta], decode_token: DecodeToken | None
    ) -> RequestOutput:
        """What a streamed request has generated so far, or the deltas alone, as its ``output_kind`` is."""
        if self.params.output_kind is RequestOutputKind.DELTA:
            return self._output(grown_by(deltas), decode_token, is_finished=False, error=None)
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
                    logprobs=self._sample_logprobs(
                        index, slice(len(sequence.token_ids)), decode_token
                    ),
                    finish_reason=sequence.finish_reason,
                )
            )
        return self._output(outputs, decode_token, is_finished=False, error=None)

    def final_output(
        self,
        result: RequestResult,
        decode_token: DecodeToken | None,
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
        for place, sequence in enumerate(self._returned(result)):
            token_ids: list[int] = sequence.token_ids.tolist()
            reason: FinishReason = sequence.finish_reason
            if error is not None and reason == "abort":
                reason = "error"
            outputs.append(
                CompletionOutput(
                    index=place,
                    text=sequence.text,
                    token_ids=token_ids,
                    cumulative_logprob=sequence.cumulative_logprob,
                    logprobs=self._final_logprobs(sequence, token_ids, decode_token),
                    finish_reason=reason,
                    stop_reason=sequence.stop_reason,
                    score=sequence.score,
                )
            )
        metrics = self.metrics
        metrics.num_cached_tokens = result.num_cached_tokens
        metrics.num_preemptions = result.num_preemptions
        metrics.num_swaps = result.num_swaps
        metrics.num_tokens_lost = result.num_tokens_lost
        metrics.num_held_slots = result.num_held_slots
        metrics.num_used_slots = result.num_used_slots
        metrics.num_generated_tokens = sum(sequence.token_ids.size for sequence in result.sequences)
        if error is None and self.decoder is not None and self.decoder.error is not None:
            error = f"the tokenizer failed to decode the output: {self.decoder.error}"
        if error is None and not outputs:
            # A search of which every beam came to a place where nothing may follow.
            error = NOTHING_LEFT
        return self._output(outputs, decode_token, is_finished=True, error=error)

    def _returned(self, result: RequestResult) -> Sequence[SequenceResult]:
        """All sequences by index, or the ``n`` most likely ones of ``best_of``, best first."""
        num_returned = self.params.n
        if len(result.sequences) <= num_returned:
            return result.sequences
        ranked = sorted(
            result.sequences, key=lambda sequence: sequence.cumulative_logprob, reverse=True
        )
        return ranked[:num_returned]

    def _output(
        self,
        outputs: list[CompletionOutput],
        decode_token: DecodeToken | None,
        *,
        is_finished: bool,
        error: str | None,
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
            prompt_logprobs=self._take_prompt_logprobs(decode_token),
        )

    def _take_prompt_logprobs(self, decode_token: DecodeToken | None) -> PromptLogprobs | None:
        """The reports of the prompt, once they are complete; of a request that is read in deltas only once."""
        if self.params.prompt_logprobs is None or not self._is_prompt_scored:
            return None
        if self.prompt_logprobs is None:
            num_tokens = len(self.prompt_token_ids)
            first = min(self.params.first_reported, num_tokens)
            self.prompt_logprobs = prompt_logprobs(
                (self.prompt_scores[position] for position in range(first, num_tokens)),
                decode_token,
                num_missing=first,
                is_flat=self.params.flat_logprobs,
            )
        elif self.params.output_kind is RequestOutputKind.DELTA:
            return None
        return self.prompt_logprobs

    def _sample_logprobs(
        self, index: int, tokens: slice, decode_token: DecodeToken | None
    ) -> SampleLogprobs | None:
        if self.params.logprobs is None:
            return None
        reports = self.logprobs.get(index, [])[tokens]
        return sample_logprobs(reports, decode_token, is_flat=self.params.flat_logprobs)

    def _final_logprobs(
        self, sequence: SequenceResult, token_ids: list[int], decode_token: DecodeToken | None
    ) -> SampleLogprobs | None:
        """Beams bring theirs along; those of samples were kept on the way."""
        if sequence.logprobs is None:
            return self._sample_logprobs(sequence.index, slice(len(token_ids)), decode_token)
        reports = (
            SampledLogprob.of_beam(token_id, *entry)
            for token_id, entry in zip(token_ids, sequence.logprobs, strict=True)
        )
        return sample_logprobs(reports, decode_token, is_flat=self.params.flat_logprobs)


def grown_by(deltas: list[StreamDelta]) -> list[CompletionOutput]:
    """Deltas of one step in the shape of outputs."""
    return [
        CompletionOutput(
            index=delta.index,
            text=delta.text,
            token_ids=delta.token_ids,
            cumulative_logprob=None,
            logprobs=delta.logprobs,
            finish_reason=delta.finish_reason,
        )
        for delta in deltas
    ]
