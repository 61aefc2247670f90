"""The choice of tokens by the kernel for CPUs, which sorts nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pagedkv import _core
from pagedkv.sampling.sampled import NOTHING_LEFT, SampledTokens, TopLogprobs

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

    from pagedkv.config import LogprobsMode
    from pagedkv.sampling.edits import EditedRows
    from pagedkv.sampling.rows import SamplingRows
    from pagedkv.sampling.targets import SampleTargets


def choose_on_cpu(
    logits: torch.Tensor,
    edited: EditedRows | None,
    parameters: SamplingRows,
    targets: SampleTargets,
    *,
    mode: LogprobsMode,
) -> SampledTokens:
    """The most likely token of greedy rows; for the others temperature, filters, argmax of logit + noise.

    Args:
        logits: [S, V] float32 with contiguous rows, unchanged.
        edited: The rows that are to be chosen from in place of theirs in ``logits``.
        parameters: By row.
        targets: [S], for whom.
        mode: What to report.
    """
    num_rows, vocab_size = logits.shape
    rows = targets.rows
    edited_rows = np.full(num_rows, -1, dtype=np.int32)
    if edited is not None:
        edited_rows[edited.samples] = np.arange(edited.samples.size)
    num_top = np.minimum(parameters.num_logprobs[rows], vocab_size)
    width = 1 + max(0, int(num_top.max(initial=0)))
    token_ids = np.empty((num_rows, width), dtype=np.int32)
    numbers = np.empty((num_rows, width), dtype=np.float32)
    ranks = np.empty((num_rows, 1), dtype=np.int32)
    _core.sample_tokens(
        logits.numpy(),
        None if edited is None else edited.logits.numpy(),
        token_ids=token_ids,
        numbers=numbers,
        ranks=ranks,
        edited_rows=edited_rows,
        seeds=parameters.seeds[rows],
        sample_index=targets.sample_index,
        positions=targets.positions,
        temperature=parameters.temperature[rows],
        log_min_p=parameters.log_min_p[rows],
        top_k=parameters.top_k[rows],
        top_p=parameters.top_p[rows],
        num_top=num_top,
        reported=mode,
    )
    chosen = token_ids[:, 0].copy()
    failures = {}
    has_none = chosen == _core.NO_TOKEN
    if has_none.any():
        failures = dict.fromkeys(np.flatnonzero(has_none).tolist(), NOTHING_LEFT)
        chosen[has_none] = 0
    return SampledTokens(
        token_ids=chosen,
        logprobs=numbers[:, 0].copy(),
        top=_reports(num_top, token_ids, numbers, ranks),
        failures=failures,
    )


def _reports(
    num_top: npt.NDArray[np.int32],
    token_ids: npt.NDArray[np.int32],
    numbers: npt.NDArray[np.float32],
    ranks: npt.NDArray[np.int32],
) -> list[TopLogprobs]:
    return [
        TopLogprobs(
            sample=sample,
            rank=int(ranks[sample, 0]),
            token_ids=token_ids[sample, 1 : 1 + num_top[sample]].tolist(),
            logprobs=numbers[sample, 1 : 1 + num_top[sample]].tolist(),
        )
        for sample in np.flatnonzero(num_top >= 0).tolist()
    ]
