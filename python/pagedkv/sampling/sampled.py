"""What a batch sampled."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

NOTHING_LEFT = "no token is left: masks or processors have set every logit to -inf, or one to NaN"


@dataclass(frozen=True, slots=True, kw_only=True)
class TopLogprobs:
    """What one sample reports besides its token.

    Attributes:
        sample: Index of the sample within the batch.
        rank: Rank of the chosen token, 1 for the most likely.
        token_ids: The most likely ids, best first.
        logprobs: Their log-probabilities, or logits if the mode says so.
    """

    sample: int
    rank: int
    token_ids: list[int]
    logprobs: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledTokens:
    """What a batch sampled.

    Attributes:
        token_ids: [S] int32.
        logprobs: [S] float32 of the chosen tokens, or their logits if the mode says so; NaN where the logits held a NaN.
        top: Reports of the samples that asked for log-probabilities.
        failures: What went wrong, by sample; such a sample's token means nothing.
    """

    token_ids: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]
    top: list[TopLogprobs] = field(default_factory=list)
    failures: dict[int, str] = field(default_factory=dict)
