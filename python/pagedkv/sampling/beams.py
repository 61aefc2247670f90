"""The best continuations of beams, by log-probability under the model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from pagedkv import _core
from pagedkv.sampling.sampled import NOTHING_LEFT

if TYPE_CHECKING:
    import numpy.typing as npt

    from pagedkv.sampling.edits import LogitsEdits
    from pagedkv.sampling.targets import SampleTargets


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamCandidates:
    """The best next tokens of each row.

    Attributes:
        token_ids: [S, C] int32, best first, of equals the lower id first.
        logprobs: [S, C] float32, -inf where edits of the logits left nothing.
        failures: What went wrong, by sample; such a row's numbers mean nothing.
    """

    token_ids: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]
    failures: dict[int, str] = field(default_factory=dict)


def beam_candidates(
    logits: torch.Tensor, targets: SampleTargets, edits: LogitsEdits, *, num_candidates: int
) -> BeamCandidates:
    """The best continuations.

    Edits act on log-probabilities, which are not normalised again afterwards, as in ``generate`` of Hugging Face.

    Args:
        logits: [S, V] float32.
        targets: For whom; each row holds the tokens of its beam.
        edits: What the rows' requests ask for.
        num_candidates: C, at most V.
    """
    token_ids, values = _best(logits, num_candidates, as_logprobs=True)
    failures = {
        int(sample): "the model's logits are not a number (NaN)"
        for sample in np.flatnonzero(np.isnan(values[:, 0]))
    }
    if edits.is_any_active(targets):
        edited = edits.apply(logits.log_softmax(dim=1), targets)
        assert edited is not None, "an edit is active"
        # Numbers are compared, and what is not a number compares with none.
        is_nan = edited.logits.isnan().any(dim=1)
        best = _best(
            edited.logits.masked_fill(is_nan.unsqueeze(1), -torch.inf),
            num_candidates,
            as_logprobs=False,
        )
        token_ids[edited.samples], values[edited.samples] = best
        spoiled = edited.samples[is_nan.cpu().numpy()].tolist()
        failures = dict.fromkeys(spoiled, NOTHING_LEFT) | edited.failures | failures
    return BeamCandidates(token_ids=token_ids, logprobs=values, failures=failures)


def _best(
    numbers: torch.Tensor, count: int, *, as_logprobs: bool
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Where the largest numbers of each row are, and the numbers [S, count], of equals the first ones.

    With ``as_logprobs`` the numbers are logits and what is returned their log-probabilities, NaN in rows that have none.
    """
    if numbers.device.type != "cpu":
        if as_logprobs:
            numbers = numbers.log_softmax(dim=1)
        best, ids = numbers.sort(dim=1, descending=True, stable=True)
        return ids[:, :count].to(torch.int32).cpu().numpy(), best[:, :count].cpu().numpy()
    token_ids = np.empty((numbers.shape[0], count), dtype=np.int32)
    values = np.empty((numbers.shape[0], count), dtype=np.float32)
    _core.best_tokens(numbers.numpy(), as_logprobs=as_logprobs, token_ids=token_ids, values=values)
    return token_ids, values
