"""Memory of the host that preempted requests move their keys and values to, rather than computing them again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from pagedkv.config import EngineConfig
    from pagedkv.kv_cache import KvCache
    from pagedkv.kv_sizing import KvSize
    from pagedkv.models.loading import LoadedModel

_GIB = 1 << 30
_DEFAULT_GIB_ON_GPU = 4.0

# What decides between moving blocks and computing their tokens again: orders of magnitude, since a choice that is wrong
# by a factor costs time and never a result. Bytes per second of a copy each way, and multiply-adds per second of a model.
_COPY_RATE = {"cpu": 4e9, "cuda": 12e9}
_COMPUTE_RATE = {"cpu": 3e10, "cuda": 5e13}


@dataclass(frozen=True, slots=True, kw_only=True)
class SwapSize:
    """The size of the swap space.

    Attributes:
        num_blocks: blocks of the host; 0 for none.
        cost: what moving a block there and back costs, in tokens computed again.
    """

    num_blocks: int
    cost: float


def size_swap_space(loaded: LoadedModel, config: EngineConfig, kv_size: KvSize) -> SwapSize:
    """Decides how many blocks the host keeps, never more than the pool has, and what it costs to move one."""
    kind = loaded.device.type
    gib = config.swap_space
    if gib is None:
        gib = 0.0 if kind == "cpu" else _DEFAULT_GIB_ON_GPU
    block_bytes = kv_size.num_bytes // kv_size.num_blocks
    num_blocks = min(int(gib * _GIB) // block_bytes, kv_size.num_blocks)
    num_weights = sum(weight.numel() for weight in loaded.model.parameters())
    seconds_per_block = 2 * block_bytes / _COPY_RATE.get(kind, 1e10)
    seconds_per_token = num_weights / _COMPUTE_RATE.get(kind, 1e13)
    return SwapSize(num_blocks=num_blocks, cost=seconds_per_block / max(seconds_per_token, 1e-12))


class SwapSpace:
    """Blocks of the host for every storage of a KV cache."""

    def __init__(self, kv_cache: KvCache, *, num_blocks: int) -> None:
        """Reserves the memory: pinned where the cache is on a GPU, uninitialised everywhere.

        Args:
            kv_cache: whose blocks are moved.
            num_blocks: blocks of the host; 0 reserves nothing.
        """
        self._storages = [*kv_cache.keys, *kv_cache.values]
        self._host = [
            torch.empty(
                num_blocks,
                storage.shape[1],
                dtype=storage.dtype,
                pin_memory=storage.is_cuda and num_blocks > 0,
            )
            for storage in self._storages
        ]

    @property
    def nbytes(self) -> int:
        """Bytes on the host."""
        return sum(storage.nbytes for storage in self._host)

    def move(self, swap_out: npt.NDArray[np.int32], swap_in: npt.NDArray[np.int32]) -> None:
        """Moves whole blocks, out first.

        Args:
            swap_out: [W, 3] int32 (group, block of the pool, block of the host).
            swap_in: [W, 3] int32 (group, block of the host, block of the pool).
        """
        if swap_out.size:
            _copy(self._storages, self._host, swap_out)
        if swap_in.size:
            _copy(self._host, self._storages, swap_in)


def _copy(
    sources: Sequence[torch.Tensor],
    targets: Sequence[torch.Tensor],
    pairs: npt.NDArray[np.int32],
) -> None:
    # A block is one of its group in every storage, so the group does not matter here.
    at = torch.from_numpy(pairs.astype("int64"))
    for source, target in zip(sources, targets, strict=True):
        blocks = source[at[:, 1].to(source.device)]
        target[at[:, 2].to(target.device)] = blocks.to(target.device)
