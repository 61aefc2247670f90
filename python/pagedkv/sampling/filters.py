"""Which tokens a row may sample: min_p, then top_k, then top_p.

A filter keeps every token at or above a value, ties included, so that the result does not depend on how a sort breaks
them. Every sum runs in an order fixed by the row alone: a row's bits do not depend on the other rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    import numpy.typing as npt

    from pagedkv.sampling.rows import SamplingRows

# The nucleus is looked for among this many tokens first; a sort of the whole vocabulary is the exception.
_NUCLEUS_FIRST_LOOK = 1024


def apply_filters(
    scaled: torch.Tensor, parameters: SamplingRows, rows: npt.NDArray[np.int32]
) -> None:
    """Sets what the filters drop to -inf, in place.

    Args:
        scaled: [K, V] float32 contiguous, logits divided by the temperature.
        parameters: The filters by row.
        rows: [K] rows.
    """
    log_min_p, top_k, top_p = (
        parameters.log_min_p[rows],
        parameters.top_k[rows],
        parameters.top_p[rows],
    )
    if np.isfinite(log_min_p).any():
        # p >= min_p * p_max, taken to logarithms.
        distance = torch.from_numpy(log_min_p).to(scaled.device).unsqueeze(1)
        _drop_below(scaled, scaled.amax(dim=1, keepdim=True) + distance)
    with_top_k = np.flatnonzero(top_k)
    if with_top_k.size:
        part, is_all = _select(scaled, with_top_k)
        _drop_below(part, _kth_largest(part, top_k[with_top_k]))
        _put_back(scaled, with_top_k, part, is_all=is_all)
    with_top_p = np.flatnonzero(top_p < 1.0)
    if with_top_p.size:
        part, is_all = _select(scaled, with_top_p)
        _keep_nucleus(part, top_p[with_top_p])
        _put_back(scaled, with_top_p, part, is_all=is_all)


def _drop_below(scaled: torch.Tensor, thresholds: torch.Tensor) -> None:
    scaled.masked_fill_(scaled < thresholds, -torch.inf)


def _select(scaled: torch.Tensor, selected: npt.NDArray[np.int64]) -> tuple[torch.Tensor, bool]:
    """The selected rows: the tensor itself where these are all, a copy otherwise."""
    is_all = selected.size == scaled.shape[0]
    if is_all:
        return scaled, True
    return scaled[torch.from_numpy(selected).to(scaled.device)], False


def _put_back(
    scaled: torch.Tensor, selected: npt.NDArray[np.int64], part: torch.Tensor, *, is_all: bool
) -> None:
    if not is_all:
        scaled[torch.from_numpy(selected).to(scaled.device)] = part


def _kth_largest(scaled: torch.Tensor, top_k: npt.NDArray[np.int32]) -> torch.Tensor:
    """[K, 1], each row's ``top_k``-th largest value."""
    largest = scaled.topk(int(top_k.max()), dim=1).values
    place = torch.from_numpy(top_k.astype(np.int64) - 1).to(scaled.device).unsqueeze(1)
    return largest.gather(1, place)


def _keep_nucleus(scaled: torch.Tensor, top_p: npt.NDArray[np.float32]) -> None:
    """Keeps each row's most likely tokens up to the first whose running sum reaches ``top_p`` of the whole."""
    largest = scaled.amax(dim=1, keepdim=True)
    # Running sums in f64 run through a row in its own order, whatever the other rows and the threads.
    whole = (scaled - largest).exp().double().cumsum(dim=1)[:, -1]
    wanted = torch.from_numpy(top_p.astype(np.float64)).to(scaled.device) * whole
    first_look = min(_NUCLEUS_FIRST_LOOK, scaled.shape[1])
    thresholds, is_reached = _nucleus_threshold(scaled, wanted, num_looked_at=first_look)
    if not bool(is_reached.all()) and first_look < scaled.shape[1]:
        left = (~is_reached).nonzero().squeeze(1)
        thresholds[left], _ = _nucleus_threshold(
            scaled[left], wanted[left], num_looked_at=scaled.shape[1]
        )
    _drop_below(scaled, thresholds.unsqueeze(1))


def _nucleus_threshold(
    scaled: torch.Tensor, wanted: torch.Tensor, *, num_looked_at: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """[K] scaled logit of the last kept token and [K] whether the sum was reached."""
    largest = scaled.topk(num_looked_at, dim=1).values
    sums = (largest - largest[:, :1]).exp().double().cumsum(dim=1)
    is_enough = sums >= wanted.unsqueeze(1)
    is_reached = is_enough[:, -1]
    last = torch.where(is_reached, is_enough.int().argmax(dim=1), num_looked_at - 1)
    return largest.gather(1, last.unsqueeze(1)).squeeze(1), is_reached
