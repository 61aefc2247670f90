"""Log-probabilities under the model, before penalties and temperature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    import numpy.typing as npt


@dataclass(frozen=True, slots=True, kw_only=True)
class TopLogprobs:
    """What one sample reports besides its token.

    Attributes:
        sample: Index of the sample within the batch.
        rank: Rank of the chosen token, 1 for the most likely.
        token_ids: The most likely ids, best first.
        logprobs: Their log-probabilities.
    """

    sample: int
    rank: int
    token_ids: list[int]
    logprobs: list[float]


def top_logprobs(
    logprobs: torch.Tensor,
    *,
    chosen: torch.Tensor,
    num_logprobs: npt.NDArray[np.int32],
    first_sample: int,
) -> list[TopLogprobs]:
    """The reports of the samples that asked for one.

    Args:
        logprobs: [S, V] float32.
        chosen: [S] int64, the sampled ids.
        num_logprobs: [S]; -1 asks for nothing, 0 for the rank alone.
        first_sample: Index of the first of these samples within the batch.
    """
    reports = []
    # Samples that ask for equally many are taken together, so that ties are broken by the row and its number alone.
    for count in np.unique(num_logprobs[num_logprobs >= 0]):
        samples = np.flatnonzero(num_logprobs == count)
        selected = torch.from_numpy(samples).to(logprobs.device)
        part = logprobs[selected]
        own = part.gather(1, chosen[selected].unsqueeze(1))
        ranks = ((part > own).sum(dim=1) + 1).tolist()
        best = part.topk(min(int(count), part.shape[1]), dim=1)
        values, ids = best.values.tolist(), best.indices.tolist()
        reports += [
            TopLogprobs(
                sample=first_sample + int(sample), rank=rank, token_ids=top_ids, logprobs=top_values
            )
            for sample, rank, top_ids, top_values in zip(samples, ranks, ids, values, strict=True)
        ]
    return reports
