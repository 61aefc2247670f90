"""The choice of tokens in torch, on any device: the readable twin of the CPU kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from pagedkv import _core
from pagedkv.sampling.filters import apply_filters
from pagedkv.sampling.logprobs import top_logprobs
from pagedkv.sampling.sampled import NOTHING_LEFT, SampledTokens

if TYPE_CHECKING:
    from pagedkv.config import LogprobsMode
    from pagedkv.sampling.edits import EditedRows
    from pagedkv.sampling.rows import SamplingRows
    from pagedkv.sampling.targets import SampleTargets


def choose_with_torch(
    logits: torch.Tensor,
    edited: EditedRows | None,
    parameters: SamplingRows,
    targets: SampleTargets,
    *,
    mode: LogprobsMode,
) -> SampledTokens:
    """The most likely token of greedy rows; for the others temperature, filters, argmax of logit + noise.

    Args:
        logits: [S, V] float32, unchanged.
        edited: The rows that are to be chosen from in place of theirs in ``logits``.
        parameters: By row.
        targets: [S], for whom.
        mode: What to report.
    """
    processed = logits.clone()
    if edited is not None:
        processed[torch.from_numpy(edited.samples).to(logits.device)] = edited.logits
    chosen = _choose(processed, parameters, targets)
    basis = logits if mode.startswith("raw") else processed
    reported = basis.log_softmax(dim=1) if mode.endswith("logprobs") else basis
    failures = {}
    if edited is not None:
        is_empty = ~(edited.logits.amax(dim=1) > -torch.inf)
        samples = edited.samples[is_empty.cpu().numpy()]
        failures = dict.fromkeys(samples.tolist(), NOTHING_LEFT)
    num_logprobs = parameters.num_logprobs[targets.rows]
    return SampledTokens(
        token_ids=chosen.to(torch.int32).cpu().numpy(),
        logprobs=reported.gather(1, chosen.unsqueeze(1)).squeeze(1).cpu().numpy(),
        top=top_logprobs(basis, reported, chosen=chosen, num_logprobs=num_logprobs),
        failures=failures,
    )


def _choose(
    processed: torch.Tensor, parameters: SamplingRows, targets: SampleTargets
) -> torch.Tensor:
    """[S] int64; divides and filters the rows that are sampled in place."""
    temperature = parameters.temperature[targets.rows]
    is_sampled = temperature > 0.0
    if not is_sampled.any():
        return processed.argmax(dim=1)
    if is_sampled.all():
        return _draw(processed, parameters, targets)
    chosen = processed.argmax(dim=1)
    sampled = np.flatnonzero(is_sampled)
    at = torch.from_numpy(sampled).to(processed.device)
    part = processed[at]
    chosen[at] = _draw(part, parameters, targets.take(sampled))
    processed[at] = part
    return chosen


def _draw(logits: torch.Tensor, parameters: SamplingRows, targets: SampleTargets) -> torch.Tensor:
    """[K] int64, the argmax of scaled logit + noise over the kept tokens."""
    divisors = torch.from_numpy(parameters.temperature[targets.rows]).to(logits.device)
    scaled = logits.div_(divisors.unsqueeze(1))
    apply_filters(scaled, parameters, targets.rows)
    noise = np.empty(scaled.shape, dtype=np.float32)
    _core.gumbel_noise(
        noise,
        seeds=parameters.seeds[targets.rows],
        sample_index=targets.sample_index,
        positions=targets.positions,
    )
    return (scaled + torch.from_numpy(noise).to(scaled.device)).argmax(dim=1)
