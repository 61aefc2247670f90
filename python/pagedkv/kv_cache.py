"""The memory that keys and values live in.

One K and one V tensor per storage, cut into blocks of equal bytes. Layers of different groups view the same storage
with shapes of their own; which of them owns a block at a time is the block pool's business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pagedkv.attention.base import LayerCache
from pagedkv.pages import prefer_large_pages

if TYPE_CHECKING:
    from pagedkv.attention.base import LayerSpec
    from pagedkv.models.geometry import KvGeometry


class KvCache:
    """K and V storages of ``num_blocks`` blocks, and each layer's views of them.

    Attributes:
        keys: One tensor [num_blocks, key_size * block_size] per storage.
        values: One tensor [num_blocks, value_size * block_size] per storage.
        layers: The paged keys and values of every layer, by layer index.
    """

    def __init__(
        self,
        geometry: KvGeometry,
        *,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        keys_in_columns: bool = False,
    ) -> None:
        """Reserves the memory, uninitialised: an operating system hands out pages as blocks are written.

        With ``keys_in_columns`` the same number of all keys of a block lies side by side, except in latent layers, whose
        values are numbers of their keys.

        Raises:
            ValueError: ``num_blocks`` leaves no block besides the null block.
        """
        if num_blocks < 2:
            msg = f"num_blocks must be at least 2 (one of them is the null block), got {num_blocks}"
            raise ValueError(msg)
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.dtype = dtype
        self._keys_in_columns = keys_in_columns

        def allocate(size_per_token: int) -> torch.Tensor:
            size = size_per_token * block_size
            storage = torch.empty(num_blocks, size, dtype=dtype, device=device)
            prefer_large_pages(storage)
            return storage

        self.keys = [allocate(storage.key_size) for storage in geometry.storages]
        self.values = [allocate(storage.value_size) for storage in geometry.storages]
        self.layers = {layer.layer_idx: self._layer_cache(layer) for layer in geometry.layers}

    @property
    def nbytes(self) -> int:
        """Bytes of all storages."""
        return sum(storage.nbytes for storage in [*self.keys, *self.values])

    def _layer_cache(self, layer: LayerSpec) -> LayerCache:
        key = self._view(self.keys[layer.storage], layer.num_kv_heads, layer.k_dim)
        if layer.is_latent:
            return LayerCache(key=key, value=key[..., : layer.v_dim])
        value = self._view(self.values[layer.storage], layer.num_kv_heads, layer.v_dim)
        if self._keys_in_columns:
            key = key.as_strided(key.shape, (*key.stride()[:2], 1, self.block_size))
        return LayerCache(key=key, value=value)

    def _view(self, storage: torch.Tensor, num_kv_heads: int, head_dim: int) -> torch.Tensor:
        """[num_blocks, Hkv, block_size, D]; what a block has beyond that is left out by the stride."""
        return storage.as_strided(
            (self.num_blocks, num_kv_heads, self.block_size, head_dim),
            (storage.stride(0), self.block_size * head_dim, head_dim, 1),
        )
