"""What `LLM.beam_search` returns, with the field names of the classic API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pagedkv.logprobs import SampleLogprobs
    from pagedkv.outputs import FinishReason, RequestOutput
    from pagedkv.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamSearchSequence:
    """A beam.

    Attributes:
        tokens: the ids of the prompt, then those that were generated.
        cum_logprob: sum of the log-probabilities of the generated ones.
        score: ``cum_logprob`` / number of generated tokens ** ``length_penalty``.
        text: the text of ``tokens``; None without a tokenizer.
        logprobs: one dict per generated token, None unless asked for.
        finish_reason: "stop", "length", "repetition", "abort" or "error".
        stop_reason: the stop string or stop token id that ended it.
    """

    tokens: list[int]
    cum_logprob: float
    score: float
    text: str | None
    logprobs: SampleLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: int | str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamSearchOutput:
    """The beams of one prompt, best first.

    Attributes:
        sequences: the beams.
        error: what went wrong, if the search failed; None otherwise.
    """

    sequences: list[BeamSearchSequence]
    error: str | None = None


def beam_search_output(
    output: RequestOutput, tokenizer: Tokenizer | None, *, skip_special_tokens: bool
) -> BeamSearchOutput:
    """The beams of a finished request."""
    sequences = []
    for completion in output.outputs:
        tokens = [*output.prompt_token_ids, *completion.token_ids]
        text = None
        if tokenizer is not None:
            text = tokenizer.hf_tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)
        cum_logprob = completion.cumulative_logprob or 0.0
        sequences.append(
            BeamSearchSequence(
                tokens=tokens,
                cum_logprob=cum_logprob,
                # The one beam of a width of 1 is sampled greedily, and comes without a score.
                score=cum_logprob if completion.score is None else completion.score,
                text=text,
                logprobs=completion.logprobs,
                finish_reason=completion.finish_reason,
                stop_reason=completion.stop_reason,
            )
        )
    return BeamSearchOutput(sequences=sequences, error=output.error)
