"""What the sampler is told about a sequence that got a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    import numpy.typing as npt

    from pagedkv.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class RowState:
    """A sequence that got a row.

    Attributes:
        params: Parameters of its request.
        index: Index of the sequence within the request.
        ending_ids: Ids that ``min_tokens`` masks, inside the vocabulary.
        prompt_token_ids: The prompt; empty unless `needs_token_ids`.
        output_token_ids: What the sequence generated so far; empty unless `needs_token_ids`.
    """

    params: SamplingParams
    index: int
    ending_ids: Sequence[int]
    prompt_token_ids: npt.NDArray[np.int32]
    output_token_ids: npt.NDArray[np.int32]

    @property
    def logit_bias(self) -> Mapping[int, float]:
        """What to add, by id; empty for nothing."""
        return self.params.logit_bias or {}

    @property
    def allowed_token_ids(self) -> Sequence[int]:
        """The only ids that may come; empty for all."""
        return self.params.allowed_token_ids or ()

    @property
    def bad_words(self) -> Sequence[Sequence[int]]:
        """Token sequences that must not come."""
        return self.params.bad_words_token_ids

    @property
    def processors(self) -> Sequence[Callable[..., Any]]:
        """The request's own functions on its logits."""
        return self.params.logits_processors or ()


def needs_token_ids(params: SamplingParams) -> bool:
    """Whether the sampler reads the tokens of such a request."""
    return bool(
        params.has_penalties
        or params.bad_words_token_ids
        or params.logits_processors
        or params.thinking_token_budget is not None
    )
