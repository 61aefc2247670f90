"""One token per sample of a batch, as a function of the row's logits, parameters and seed alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from pagedkv import _core
from pagedkv.sampling.filters import apply_filters
from pagedkv.sampling.logprobs import TopLogprobs, top_logprobs
from pagedkv.sampling.penalties import PenaltyCounts
from pagedkv.sampling.rows import SamplingRows

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from pagedkv.sampling_params import SamplingParams

# Logits are worked on in runs of rows of at most this many numbers, which bounds the memory besides the logits.
_MAX_CHUNK_ELEMENTS = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleTargets:
    """For whom a batch samples.

    Attributes:
        rows: [S] int32.
        sample_index: [S] int32, index of the sequence within its request.
        positions: [S] int32, output position, 0 for the first generated token.
    """

    rows: npt.NDArray[np.int32]
    sample_index: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int32]

    def take(self, samples: slice | npt.NDArray[np.int64]) -> SampleTargets:
        """Some of the samples."""
        return SampleTargets(
            rows=self.rows[samples],
            sample_index=self.sample_index[samples],
            positions=self.positions[samples],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledTokens:
    """What a batch sampled.

    Attributes:
        token_ids: [S] int32.
        logprobs: [S] float32, of the chosen tokens before penalties and temperature; NaN where the logits held a NaN.
        top: Reports of the samples that asked for log-probabilities.
    """

    token_ids: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]
    top: list[TopLogprobs] = field(default_factory=list)


class Sampler:
    """Samples batches.

    The order of operations: log-probabilities of the raw logits; penalties; masking of ending ids before ``min_tokens``;
    the most likely token of greedy rows; for the others temperature, min_p, top_k, top_p, then the argmax of
    logit / temperature + keyed Gumbel noise.
    """

    def __init__(self, *, max_num_seqs: int, vocab_size: int, device: torch.device) -> None:
        """Reserves the arrays by row.

        Args:
            max_num_seqs: Rows there can be.
            vocab_size: Columns of the logits.
            device: Where the logits are.
        """
        self._device = device
        self._chunk_rows = max(1, _MAX_CHUNK_ELEMENTS // vocab_size)
        self._parameters = SamplingRows(max_num_seqs=max_num_seqs, vocab_size=vocab_size)
        self._penalties = PenaltyCounts(
            max_num_seqs=max_num_seqs, vocab_size=vocab_size, device=device
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
            prompt_token_ids: The prompt; read where there are penalties.
            output_token_ids: What the sequence generated so far; read where there are penalties.
        """
        self._parameters.fill(row, params, index=index, seed=seed, ending_ids=ending_ids)
        if params.has_penalties:
            self._penalties.fill(
                row, prompt_token_ids=prompt_token_ids, output_token_ids=output_token_ids
            )
        else:
            self._penalties.clear(row)

    @torch.inference_mode()
    def sample(self, logits: torch.Tensor, targets: SampleTargets) -> SampledTokens:
        """Samples every position of a batch. Changes no state: call `count` once the tokens are accepted.

        Args:
            logits: [S, V] float32; overwritten.
            targets: For whom.
        """
        parts = [
            self._sample_chunk(logits[start : start + self._chunk_rows], targets, start)
            for start in range(0, logits.shape[0], self._chunk_rows)
        ]
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return SampledTokens(
                token_ids=np.zeros(0, dtype=np.int32), logprobs=np.zeros(0, dtype=np.float32)
            )
        return SampledTokens(
            token_ids=np.concatenate([part.token_ids for part in parts]),
            logprobs=np.concatenate([part.logprobs for part in parts]),
            top=[report for part in parts for report in part.top],
        )

    def count(self, targets: SampleTargets, token_ids: npt.NDArray[np.int32]) -> None:
        """Adds the sampled tokens to the counts that penalties use.

        A sample of a sequence that has no row of its own yet is left out: its tokens are counted when it gets one.
        """
        parameters = self._parameters
        is_counted = parameters.has_penalties[targets.rows] & (
            parameters.index[targets.rows] == targets.sample_index
        )
        if is_counted.any():
            self._penalties.count(targets.rows[is_counted], token_ids[is_counted])

    def _sample_chunk(
        self, logits: torch.Tensor, all_targets: SampleTargets, start: int
    ) -> SampledTokens:
        targets = all_targets.take(slice(start, start + logits.shape[0]))
        raw_logprobs = logits.log_softmax(dim=1)
        logits = self._apply_penalties(logits, targets.rows)
        self._mask_ending_ids(logits, targets)
        chosen = self._choose(logits, targets)
        num_logprobs = self._parameters.num_logprobs[targets.rows]
        top = []
        if (num_logprobs >= 0).any():
            top = top_logprobs(
                raw_logprobs, chosen=chosen, num_logprobs=num_logprobs, first_sample=start
            )
        return SampledTokens(
            token_ids=chosen.to(torch.int32).cpu().numpy(),
            logprobs=raw_logprobs.gather(1, chosen.unsqueeze(1)).squeeze(1).cpu().numpy(),
            top=top,
        )

    def _apply_penalties(self, logits: torch.Tensor, rows: npt.NDArray[np.int32]) -> torch.Tensor:
        has_penalties = self._parameters.has_penalties[rows]
        if not has_penalties.any():
            return logits
        if has_penalties.all():
            return self._penalties.apply(logits, self._parameters, rows)
        samples = torch.from_numpy(np.flatnonzero(has_penalties)).to(self._device)
        logits[samples] = self._penalties.apply(
            logits[samples], self._parameters, rows[has_penalties]
        )
        return logits

    def _mask_ending_ids(self, logits: torch.Tensor, targets: SampleTargets) -> None:
        is_early = targets.positions < self._parameters.min_tokens[targets.rows]
        if not is_early.any():
            return
        samples = torch.from_numpy(np.flatnonzero(is_early)).to(self._device)
        ending_ids = self._parameters.ending_ids[targets.rows[is_early]].astype(np.int64)
        logits[samples.unsqueeze(1), torch.from_numpy(ending_ids).to(self._device)] = -torch.inf

    def _choose(self, logits: torch.Tensor, targets: SampleTargets) -> torch.Tensor:
        """[S] int64."""
        temperature = self._parameters.temperature[targets.rows]
        is_sampled = temperature > 0.0
        if not is_sampled.any():
            return logits.argmax(dim=1)
        sampled = np.flatnonzero(is_sampled)
        divisors = torch.from_numpy(temperature[sampled]).to(self._device).unsqueeze(1)
        if is_sampled.all():
            return self._draw(logits.div_(divisors), targets)
        chosen = logits.argmax(dim=1)
        selected = torch.from_numpy(sampled).to(self._device)
        chosen[selected] = self._draw(logits[selected].div_(divisors), targets.take(sampled))
        return chosen

    def _draw(self, scaled: torch.Tensor, targets: SampleTargets) -> torch.Tensor:
        """[K] int64, the argmax of scaled logit + noise over the kept tokens."""
        apply_filters(scaled, self._parameters, targets.rows)
        noise = np.empty(scaled.shape, dtype=np.float32)
        _core.gumbel_noise(
            noise,
            seeds=self._parameters.seeds[targets.rows],
            sample_index=targets.sample_index,
            positions=targets.positions,
        )
        scaled += torch.from_numpy(noise).to(self._device)
        return scaled.argmax(dim=1)
