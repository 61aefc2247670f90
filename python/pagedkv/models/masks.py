"""Which mask an index predicate describes.

Transformers builds a mask from a pure function of (batch, head, query position, key position). Evaluated at chosen
positions it shows its kind and width without a mask ever being built, however wide the window is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from pagedkv.attention.base import LayerKind
    from pagedkv.attention.interface import MaskPredicate

# Beyond this many positions a mask is not looked at. Longer contexts exist, wider windows do not.
_MAX_POSITIONS = 1 << 20
_DENSE_POSITIONS = 48


@dataclass(frozen=True, slots=True)
class MaskShape:
    """Which keys a query attends, as in `LayerSpec`.

    Attributes:
        kind: Kind of mask.
        window: Its width, None for ``full``.
    """

    kind: LayerKind
    window: int | None

    def allows(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """Whether each query position may attend each key position; the arguments broadcast."""
        causal = key <= query
        if self.window is None:
            return causal
        if self.kind == "sliding":
            return causal & (query - key < self.window)
        return causal & (query // self.window == key // self.window)


def classify_mask(predicate: MaskPredicate, max_positions: int) -> MaskShape | None:
    """Finds the mask that equals ``predicate`` at positions below ``max_positions``.

    The last query's row names the only candidates; each is then compared with the predicate over all pairs of a set of
    positions: the first ones, the last ones, and those around every border that a candidate has.

    Returns:
        The mask, or None when it is none that the backends compute.
    """
    num_positions = min(max_positions, _MAX_POSITIONS)
    last = num_positions - 1
    first_key = _first_allowed_key(predicate, query=last, num_keys=num_positions)
    if first_key is None:
        return None
    candidates = [MaskShape("full", None)]
    if first_key > 0:
        # A sliding window ends at the last query; a chunk began at its first key, and the chunk before it, which is
        # whole, tells the width.
        candidates = [MaskShape("sliding", last - first_key + 1)]
        chunk_start = _first_allowed_key(predicate, query=first_key - 1, num_keys=first_key)
        if chunk_start is not None:
            candidates.append(MaskShape("chunked", first_key - chunk_start))
    for shape in candidates:
        if _equals(predicate, shape, num_positions):
            return shape
    return None


def _first_allowed_key(predicate: MaskPredicate, *, query: int, num_keys: int) -> int | None:
    allowed = _evaluate(predicate, torch.tensor([[query]]), torch.arange(num_keys)[None, :])
    keys = torch.nonzero(allowed[0])
    return int(keys[0, 0]) if keys.shape[0] else None


def _equals(predicate: MaskPredicate, shape: MaskShape, num_positions: int) -> bool:
    """Compares at all pairs of the first, the last, and the border positions."""
    border = shape.window or 0
    near = [
        multiple * border + offset for multiple in (1, 2, 3) for offset in (-2, -1, 0, 1, 2)
    ] + [num_positions // 2 + offset for offset in (-border, 1 - border, 0, 1)]
    chosen = {
        *range(_DENSE_POSITIONS),
        *near,
        *(position + border for position in near),
        *range(num_positions - _DENSE_POSITIONS, num_positions),
    }
    positions = torch.tensor(sorted(p for p in chosen if 0 <= p < num_positions))
    query, key = positions[:, None], positions[None, :]
    return torch.equal(_evaluate(predicate, query, key), shape.allows(query, key))


def _evaluate(predicate: MaskPredicate, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    zero = torch.zeros((), dtype=torch.long)
    allowed = torch.as_tensor(predicate(zero, zero, query, key))
    return allowed.expand(query.shape[0], key.shape[1]).bool().cpu()
