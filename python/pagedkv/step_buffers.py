"""The arena of one step: allocated here once, filled by the core, read by the runner without copies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pagedkv import _core
from pagedkv.attention.base import StepInputs

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt


class StepArena:
    """The step arrays as numpy sees them, as the core fills them, and as torch reads them.

    Attributes:
        arrays: the numpy arrays by name; their tails beyond a batch's counts are undefined.
        buffers: the same memory, registered with the core.
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        """Allocates and registers every array.

        Args:
            sizes: ``Scheduler.sizes``.
        """
        self.arrays = _allocate(sizes)
        self.buffers = _core.StepBuffers(**self.arrays)
        self._tensors = {name: torch.from_numpy(array) for name, array in self.arrays.items()}

    def inputs(self, batch: _core.Batch, *, num_tokens_padded: int) -> StepInputs:
        """The batch as tensors: views, valid until the next batch is scheduled."""
        tensors = self._tensors
        num_rows, num_tokens = batch.num_rows, batch.num_tokens
        return StepInputs(
            row_ids=tensors["row_ids"][:num_rows],
            query_start_loc=tensors["query_start_loc"][: num_rows + 1],
            seq_lens=tensors["seq_lens"][:num_rows],
            input_ids=tensors["input_ids"][:num_tokens],
            positions=tensors["positions"][:num_tokens],
            slot_mapping=tensors["slot_mapping"][:, :num_tokens],
            block_tables=tensors["block_tables"],
            logits_indices=tensors["logits_indices"][: batch.num_samples],
            block_copies=tensors["block_copies"][: batch.num_block_copies],
            num_tokens_padded=num_tokens_padded,
        )

    def swaps(self, batch: _core.Batch) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """[W, 3] blocks to move to the host, and [W, 3] blocks to move back after that."""
        return (
            self.arrays["swap_out"][: batch.num_swap_out],
            self.arrays["swap_in"][: batch.num_swap_in],
        )

    def row_fills(self, batch: _core.Batch) -> list[list[int]]:
        """[row, request id, index] of each sequence that got a row since the last batch."""
        fills: list[list[int]] = self.arrays["row_fills"][: batch.num_row_fills].tolist()
        return fills


def _allocate(sizes: Mapping[str, int]) -> dict[str, npt.NDArray[Any]]:
    rows, tokens, groups = sizes["num_rows"], sizes["num_tokens"], sizes["num_groups"]
    int32_shapes: dict[str, tuple[int, ...]] = {
        "row_ids": (rows,),
        "query_start_loc": (rows + 1,),
        "seq_lens": (rows,),
        "input_ids": (tokens,),
        "input_source": (tokens,),
        "positions": (tokens,),
        "block_tables": (groups, rows, sizes["blocks_per_row"]),
        "table_updates": (sizes["num_table_updates"], 4),
        "row_forks": (2 * rows, 2),
        "logits_indices": (rows,),
        "sample_rows": (rows,),
        "sample_index": (rows,),
        "sample_positions": (rows,),
        "num_candidates": (rows,),
        "block_copies": (sizes["num_block_copies"], 3),
        "swap_out": (sizes["num_swap_blocks"], 3),
        "swap_in": (sizes["num_swap_blocks"], 3),
    }
    arrays: dict[str, npt.NDArray[Any]] = {
        name: np.zeros(size, dtype=np.int32) for name, size in int32_shapes.items()
    }
    arrays["slot_mapping"] = np.zeros((groups, tokens), dtype=np.int64)
    arrays["row_fills"] = np.zeros((2 * rows, 3), dtype=np.int64)
    return arrays
