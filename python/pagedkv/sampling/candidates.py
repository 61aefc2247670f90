"""The tokens that each sample of a batch asks for: one that is sampled, or the best ones of a beam."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from pagedkv.sampling.sampled import SampledTokens

if TYPE_CHECKING:
    import numpy.typing as npt

    from pagedkv.sampling.sampler import Sampler
    from pagedkv.sampling.targets import SampleTargets


def sample_candidates(
    sampler: Sampler,
    logits: torch.Tensor,
    targets: SampleTargets,
    num_candidates: npt.NDArray[np.int32],
    *,
    width: int,
) -> SampledTokens:
    """Tokens of every sample, in ``width`` columns if that is more than one.

    Args:
        sampler: makes the choices.
        logits: [S, V] float32.
        targets: for whom.
        num_candidates: [S] tokens wanted: 1 for samples that are drawn, more for beams.
        width: C, the most candidates that a sample of the batch wants.

    Returns:
        ``token_ids`` and ``logprobs`` are [S] where C is 1, else [S, C]: the wanted ones first, then 0 and -inf.
    """
    if width == 1:
        return sampler.sample(logits, targets)
    is_beam = num_candidates > 1
    token_ids = np.zeros((logits.shape[0], width), dtype=np.int32)
    logprobs = np.full((logits.shape[0], width), -np.inf, dtype=np.float32)
    drawn, beams = np.flatnonzero(~is_beam), np.flatnonzero(is_beam)
    outcome = SampledTokens(token_ids=token_ids, logprobs=logprobs)
    if drawn.size:
        sampled = sampler.sample(_rows(logits, drawn), targets.take(drawn))
        token_ids[drawn, 0], logprobs[drawn, 0] = sampled.token_ids, sampled.logprobs
        top = [replace(report, sample=int(drawn[report.sample])) for report in sampled.top]
        failures = {int(drawn[sample]): error for sample, error in sampled.failures.items()}
        outcome = replace(outcome, top=top, failures=failures)
    if beams.size:
        count = min(int(num_candidates[beams].max()), logits.shape[1])
        best = sampler.beam_candidates(_rows(logits, beams), targets.take(beams), count)
        token_ids[beams, :count], logprobs[beams, :count] = best.token_ids, best.logprobs
        failures = {int(beams[sample]): error for sample, error in best.failures.items()}
        outcome = replace(outcome, failures=outcome.failures | failures)
    return outcome


def _rows(logits: torch.Tensor, samples: npt.NDArray[np.int64]) -> torch.Tensor:
    if samples.size == logits.shape[0]:
        return logits
    return logits[torch.from_numpy(samples).to(logits.device)]
