"""Masks of grammars: which tokens may come next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from pagedkv import _core

if TYPE_CHECKING:
    import numpy.typing as npt

    from pagedkv.sampling.row_state import RowState
    from pagedkv.sampling.targets import SampleTargets


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenMasks:
    """What grammars allow the samples of a batch.

    Attributes:
        words: [S, ceil(V / 32)] uint32; bit b of word w is token 32 w + b. Undefined where nothing constrains.
        is_constrained: [S] bool.
    """

    words: npt.NDArray[np.uint32]
    is_constrained: npt.NDArray[np.bool_]

    def take(self, samples: slice | npt.NDArray[np.int64]) -> TokenMasks:
        """Those of some of the samples."""
        return TokenMasks(words=self.words[samples], is_constrained=self.is_constrained[samples])


class MaskSource:
    """Where the masks of a batch come from."""

    def __init__(self, scheduler: _core.Scheduler, *, vocab_size: int) -> None:
        """Keeps the scheduler, whose sequences know their grammars; allocates nothing."""
        self._scheduler = scheduler
        self._num_words = -(-vocab_size // 32)

    def fill(self, batch: _core.Batch) -> tuple[TokenMasks | None, dict[int, str]]:
        """What grammars allow the samples of the batch in flight.

        Returns:
            The masks, None where nothing constrains; and by sample, why it cannot go on.
        """
        if not batch.num_constrained:
            return None, {}
        masks = TokenMasks(
            words=np.empty((batch.num_samples, self._num_words), dtype=np.uint32),
            is_constrained=np.zeros(batch.num_samples, dtype=np.bool_),
        )
        failures = _core.fill_masks(
            self._scheduler, batch, words=masks.words, is_constrained=masks.is_constrained
        )
        return masks, dict(failures)


class GrammarMasks:
    """Sets the logits of tokens that a grammar excludes to -inf; see `LogitsEdit`. Keeps nothing by row."""

    def fill(self, row: int, state: RowState) -> None:
        """Does nothing: masks come with the targets."""

    def active(self, targets: SampleTargets) -> npt.NDArray[np.bool_]:
        """[S], which samples are constrained."""
        if targets.masks is None:
            return np.zeros(targets.rows.size, dtype=np.bool_)
        return targets.masks.is_constrained

    def apply(
        self, logits: torch.Tensor, places: npt.NDArray[np.int64], targets: SampleTargets
    ) -> None:
        """Edits some of the rows in place; see `LogitsEdit.apply`."""
        if targets.masks is None:
            return
        if logits.device.type == "cpu":
            _core.apply_masks(logits.numpy(), rows=places, masks=targets.masks.words)
        else:
            exclude_with_torch(logits, places, targets.masks.words)


def exclude_with_torch(
    logits: torch.Tensor, places: npt.NDArray[np.int64], words: npt.NDArray[np.uint32]
) -> None:
    """`_core.apply_masks` in torch, on any device: its readable twin."""
    # Little-endian words hold their bits in the order of the ids.
    bits = np.unpackbits(words.astype("<u4").view(np.uint8), axis=1, bitorder="little")
    is_excluded = torch.from_numpy(bits[:, : logits.shape[1]] == 0).to(logits.device)
    at = torch.from_numpy(places).to(logits.device)
    logits[at] = logits[at].masked_fill(is_excluded, -torch.inf)
