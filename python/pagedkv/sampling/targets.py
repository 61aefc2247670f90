"""For whom a batch samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from pagedkv.sampling.masks import TokenMasks


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleTargets:
    """For whom a batch samples.

    Attributes:
        rows: [S] int32.
        sample_index: [S] int32, index of the sequence within its request.
        positions: [S] int32, output position, 0 for the first generated token.
        masks: what grammars allow; None where no sample is constrained.
    """

    rows: npt.NDArray[np.int32]
    sample_index: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int32]
    masks: TokenMasks | None = None

    def take(self, samples: slice | npt.NDArray[np.int64]) -> SampleTargets:
        """Some of the samples."""
        return SampleTargets(
            rows=self.rows[samples],
            sample_index=self.sample_index[samples],
            positions=self.positions[samples],
            masks=None if self.masks is None else self.masks.take(samples),
        )
