"""One token per sample of a batch, as a function of the row's logits, parameters and seed alone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from pagedkv.sampling.beams import BeamCandidates, beam_candidates
from pagedkv.sampling.cpu_choice import choose_on_cpu
from pagedkv.sampling.edits import LogitsEdits
from pagedkv.sampling.row_state import RowState
from pagedkv.sampling.rows import SamplingRows
from pagedkv.sampling.sampled import SampledTokens
from pagedkv.sampling.torch_choice import choose_with_torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from pagedkv.config import LogprobsMode
    from pagedkv.sampling.targets import SampleTargets
    from pagedkv.sampling_params import SamplingParams
    from pagedkv.thinking_markers import ThinkingMarkers

# Logits are worked on in runs of rows of at most this many numbers, which bounds the memory besides the logits.
_MAX_CHUNK_ELEMENTS = 1 << 24


class Sampler:
    """Samples batches.

    The order of operations: the edits that requests ask for (see `LogitsEdits`); the most likely token of greedy rows; for
    the others temperature, min_p, top_k, top_p, then the argmax of logit / temperature + keyed Gumbel noise.

    Attributes:
        edits: What requests do to their logits, by row.
    """

    def __init__(
        self,
        *,
        max_num_seqs: int,
        vocab_size: int,
        device: torch.device,
        logprobs_mode: LogprobsMode = "raw_logprobs",
        thinking: ThinkingMarkers | None = None,
    ) -> None:
        """Reserves the arrays by row.

        Args:
            max_num_seqs: Rows there can be.
            vocab_size: Columns of the logits.
            device: Where the logits are.
            logprobs_mode: What is reported.
            thinking: What begins and ends thinking; None where no request has a budget of it.
        """
        self._choose = choose_on_cpu if device.type == "cpu" else choose_with_torch
        self._logprobs_mode: LogprobsMode = logprobs_mode
        self._chunk_rows = max(1, _MAX_CHUNK_ELEMENTS // vocab_size)
        self._parameters = SamplingRows(max_num_seqs=max_num_seqs, vocab_size=vocab_size)
        self.edits = LogitsEdits(
            max_num_seqs=max_num_seqs, vocab_size=vocab_size, device=device, thinking=thinking
        )

    def fill_row(
        self,
        row: int,
        params: SamplingParams,
        *,
        index: int,
        seed: int,
        ending_ids: Sequence[int],
        prompt_token_ids: npt.NDArray[np.int32],
        output_token_ids: npt.NDArray[np.int32],
    ) -> None:
        """Writes the state of the sequence that got ``row``.

        Args:
            row: Row to write.
            params: Parameters of its request.
            index: Index of the sequence within the request.
            seed: 64-bit seed of the request.
            ending_ids: Ids that ``min_tokens`` masks, inside the vocabulary.
            prompt_token_ids: The prompt; read where `needs_token_ids` says so.
            output_token_ids: What the sequence generated so far; read where `needs_token_ids` says so.
        """
        self._parameters.fill(row, params, seed=seed)
        self.edits.fill(
            row,
            RowState(
                params=params,
                index=index,
                ending_ids=ending_ids,
                prompt_token_ids=prompt_token_ids,
                output_token_ids=output_token_ids,
            ),
        )

    @torch.inference_mode()
    def sample(self, logits: torch.Tensor, targets: SampleTargets) -> SampledTokens:
        """Samples every position of a batch. Changes no state: call `count` once the tokens are accepted.

        Args:
            logits: [S, V] float32.
            targets: For whom.
        """
        chunks = self._chunks(logits.shape[0])
        parts = [self._sample_chunk(logits[chunk], targets.take(chunk)) for chunk in chunks]
        if len(parts) == 1:
            return parts[0]
        return SampledTokens(
            token_ids=np.concatenate([part.token_ids for part in parts]),
            logprobs=np.concatenate([part.logprobs for part in parts]),
            top=[
                replace(report, sample=chunk.start + report.sample)
                for chunk, part in zip(chunks, parts, strict=True)
                for report in part.top
            ],
            failures=_joined_failures(chunks, parts),
        )

    @torch.inference_mode()
    def beam_candidates(
        self, logits: torch.Tensor, targets: SampleTargets, num_candidates: int
    ) -> BeamCandidates:
        """The best continuations of beams, with all edits; see `pagedkv.sampling.beams.beam_candidates`."""
        chunks = self._chunks(logits.shape[0])
        parts = [
            beam_candidates(
                logits[chunk], targets.take(chunk), self.edits, num_candidates=num_candidates
            )
            for chunk in chunks
        ]
        return BeamCandidates(
            token_ids=np.concatenate([part.token_ids for part in parts]),
            logprobs=np.concatenate([part.logprobs for part in parts]),
            failures=_joined_failures(chunks, parts),
        )

    def count(self, targets: SampleTargets, token_ids: npt.NDArray[np.int32]) -> None:
        """Notes sampled tokens, for edits that look at them; see `LogitsEdits.count`."""
        self.edits.count(targets, token_ids)

    def _chunks(self, num_rows: int) -> list[slice]:
        """Runs of the rows; one empty run where there are none."""
        starts = range(0, max(num_rows, 1), self._chunk_rows)
        return [slice(start, start + self._chunk_rows) for start in starts]

    def _sample_chunk(self, logits: torch.Tensor, targets: SampleTargets) -> SampledTokens:
        edited = self.edits.apply(logits, targets)
        sampled = self._choose(logits, edited, self._parameters, targets, mode=self._logprobs_mode)
        if edited is None or not edited.failures:
            return sampled
        return replace(sampled, failures=sampled.failures | edited.failures)


def _joined_failures(
    chunks: Sequence[slice], parts: Sequence[SampledTokens | BeamCandidates]
) -> dict[int, str]:
    return {
        chunk.start + sample: error
        for chunk, part in zip(chunks, parts, strict=True)
        for sample, error in part.failures.items()
    }
