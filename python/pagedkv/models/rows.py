"""Are the rows of a flattened batch independent of each other?

The engine runs many sequences as one sequence of rows, and only attention knows which rows belong together. So outside
of attention no row may see another: not through a convolution, a recurrence or a capacity limit, not by taking its
place in the batch for its position, not through rotary frequencies chosen for the longest row. All of that is tested by
running the probe's tokens a second time in another order beside a token far away.
"""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING

import torch

from pagedkv.errors import UnsupportedModelError
from pagedkv.models.padding import ROW_MULTIPLE

if TYPE_CHECKING:
    from collections.abc import Callable

    from pagedkv.models.probe import ProbeResult

    # (input ids [T], positions [T]) -> result
    Probe = Callable[[torch.Tensor, torch.Tensor], ProbeResult]

# Rows that the second run repeats; a few may differ by rounding, when an expert is chosen by a hair.
_MAX_DIFFERING_FRACTION = 0.25
_RELATIVE_TOLERANCE = 0.05
# Row counts of which one at least has other bits, if any has: together, all rows of a probe.
_ODD_COUNTS = (1, 3, 5, 7)


def check_rows_independent(
    run: Probe,
    first: ProbeResult,
    *,
    input_ids: torch.Tensor,
    positions: torch.Tensor,
    model_type: str,
    max_model_len: int,
) -> None:
    """Runs the tokens in reverse order, the first one moved to the last position there is, and compares.

    Args:
        run: Runs the probe.
        first: The result of ``input_ids`` at ``positions``.
        input_ids: [T].
        positions: [T].
        model_type: Named in errors.
        max_model_len: The longest context.

    Raises:
        UnsupportedModelError: Keys or logits of a token changed.
    """
    order = torch.arange(input_ids.shape[0] - 1, -1, -1, device=input_ids.device)
    moved = positions.clone()
    moved[0] = max_model_len - 1
    second = run(input_ids[order], moved[order])
    for layer_idx, keys in first.keys.items():
        # The last row of the second run is the moved token: left out on both sides.
        before = keys[:, order].transpose(0, 1)[:-1]
        after = second.keys[layer_idx].transpose(0, 1)[:-1]
        if _mostly_differ(before, after):
            msg = (
                f"model type {model_type!r} cannot run: the keys of layer {layer_idx} depend on the "
                "other tokens of the batch or on their order; the model keeps state outside of "
                "attention or ignores position_ids"
            )
            raise UnsupportedModelError(msg)
    if _mostly_differ(first.logits[order][:-1], second.logits[:-1]):
        msg = (
            f"model type {model_type!r} cannot run: a token's logits depend on the other tokens of "
            "the batch; the last layers keep state outside of attention"
        )
        raise UnsupportedModelError(msg)


def find_row_multiple(
    run: Probe,
    first: ProbeResult,
    *,
    input_ids: torch.Tensor,
    positions: torch.Tensor,
    smallest: int,
) -> int | None:
    """Of how many rows a batch is to be a multiple, so that a row has the same bits in each; None if that does not help.

    Args:
        run: Runs the probe.
        first: The result of ``input_ids`` at ``positions``.
        input_ids: [T].
        positions: [T].
        smallest: The least multiple to try.
    """
    for multiple in (1, ROW_MULTIPLE, 2 * ROW_MULTIPLE):
        if multiple >= smallest and has_row_multiple(
            multiple, run, first, input_ids=input_ids, positions=positions
        ):
            return multiple
    return None


def has_row_multiple(
    multiple: int,
    run: Probe,
    first: ProbeResult,
    *,
    input_ids: torch.Tensor,
    positions: torch.Tensor,
) -> bool:
    """Whether every row has the bits of ``first`` in a part of the batch, too, of ``multiple`` rows; of few odd ones for 1.

    Not products alone depend on the count: torch computes a function of the last numbers of a tensor, those that fill no
    vector, otherwise than that of the ones before.
    """
    start = 0
    for count in _ODD_COUNTS if multiple == 1 else repeat(multiple):
        part = slice(start, start + count)
        if part.stop > input_ids.shape[0]:
            break
        alone = run(input_ids[part], positions[part])
        same_keys = all(
            torch.equal(alone.keys[layer_idx], keys[:, part])
            for layer_idx, keys in first.keys.items()
        )
        if not same_keys or not torch.equal(alone.logits, first.logits[part]):
            return False
        start = part.stop
    # A probe shorter than a part shows nothing.
    return start > 0


def results_agree(before: ProbeResult, after: ProbeResult, *, in_bits: bool) -> bool:
    """Whether two runs of the same rows agree: in every bit, or as far as `check_rows_independent` asks for."""
    pairs = [(before.logits, after.logits)] + [
        (keys.transpose(0, 1), after.keys[layer_idx].transpose(0, 1))
        for layer_idx, keys in before.keys.items()
    ]
    if in_bits:
        return all(torch.equal(*pair) for pair in pairs)
    return not any(_mostly_differ(*pair) for pair in pairs)


def _mostly_differ(before: torch.Tensor, after: torch.Tensor) -> bool:
    before, after = before.flatten(1).float(), after.flatten(1).float()
    scale = before.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    differs = (before - after).abs().amax(dim=1) > _RELATIVE_TOLERANCE * scale
    return bool(differs.float().mean() > _MAX_DIFFERING_FRACTION)
