"""The most likely tokens and the rank of the chosen one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from pagedkv.sampling.sampled import TopLogprobs

if TYPE_CHECKING:
    import numpy.typing as npt


def top_logprobs(
    logits: torch.Tensor,
    reported: torch.Tensor,
    *,
    chosen: torch.Tensor,
    num_logprobs: npt.NDArray[np.int32],
) -> list[TopLogprobs]:
    """The reports of the samples that asked for one.

    Args:
        logits: [S, V] float32, which say what is more likely.
        reported: [S, V] float32, which are reported.
        chosen: [S] int64, the sampled ids.
        num_logprobs: [S]; -1 asks for nothing, 0 for the rank alone.
    """
    reports = []
    # Samples that ask for equally many are taken together, so that ties are broken by the row and its number alone.
    for count in np.unique(num_logprobs[num_logprobs >= 0]):
        samples = np.flatnonzero(num_logprobs == count)
        selected = torch.from_numpy(samples).to(logits.device)
        part = logits[selected]
        own = part.gather(1, chosen[selected].unsqueeze(1))
        ranks = ((part > own).sum(dim=1) + 1).tolist()
        best = part.topk(min(int(count), part.shape[1]), dim=1).indices
        values = reported[selected].gather(1, best).tolist()
        reports += [
            TopLogprobs(sample=int(sample), rank=rank, token_ids=top_ids, logprobs=top_values)
            for sample, rank, top_ids, top_values in zip(
                samples, ranks, best.tolist(), values, strict=True
            )
        ]
    return reports
