"""Paged attention on the CPU by the kernels of ``pagedkv._core``, over torch's own memory.

The kernels see tensors through NumPy arrays that share their memory. Arrays of the caches are made once, arrays of the step
once per step, arrays of a layer's query, key and value at every call. NumPy has no bfloat16, so 16-bit tensors
travel as int16 with the name of their dtype.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

from pagedkv import _core
from pagedkv.arrays import DTYPE_NAMES, new_output, shared_array

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import numpy.typing as npt
    import torch

    from pagedkv.arrays import DTypeName
    from pagedkv.attention.base import LayerCache, LayerSpec, StepInputs


class CpuBackend:
    """Paged attention by CPU kernels whose results do not depend on the batch, the chunks or the threads."""

    name = "cpu"

    def __init__(
        self, *, layers: Mapping[int, LayerSpec], caches: Mapping[int, LayerCache]
    ) -> None:
        """Takes arrays over the keys and values; allocates nothing.

        Raises:
            TypeError: A cache is not float32, bfloat16 or float16, or its keys and values differ in dtype.
            ValueError: A cache is not on the CPU, or ``PAGEDKV_CPU_ISA`` names no instruction set of it.
        """
        if _core.cpu_isa() == "plain":
            warnings.warn(
                "attention runs in its plain form, several times slower: this CPU has neither AVX2 with FMA and F16C "
                "nor NEON, or PAGEDKV_CPU_ISA=plain is set",
                RuntimeWarning,
                stacklevel=2,
            )
        self._layers = layers
        self._caches = {
            index: _cache_arrays(index, cache, is_latent=layers[index].is_latent)
            for index, cache in caches.items()
        }
        self._step: _StepArrays | None = None

    def plan(self, step: StepInputs) -> None:
        """Takes arrays over the step's tensors."""
        self._step = _StepArrays(
            row_ids=step.row_ids.numpy(),
            query_start_loc=step.query_start_loc.numpy(),
            seq_lens=step.seq_lens.numpy(),
            slot_mapping=list(step.slot_mapping.numpy()),
            block_tables=list(step.block_tables.numpy()),
        )

    def copy_blocks(self, copies: torch.Tensor) -> None:
        """Copies blocks in every layer of a group that stores keys and values."""
        if copies.shape[0] == 0:
            return
        array = copies.numpy()
        for group in set(array[:, 0].tolist()):
            pairs = array[array[:, 0] == group, 1:]
            for layer in self._layers.values():
                if layer.group == group and layer.alias_of is None:
                    cache = self._caches[layer.layer_idx]
                    storages = [cache.keys] if layer.is_latent else [cache.keys, cache.values]
                    _core.copy_blocks(storages, pairs=pairs, dtype=cache.dtype)

    def write_kv(self, layer: LayerSpec, key: torch.Tensor, value: torch.Tensor) -> None:
        """Scatters keys [Tp, Hkv, Dk] and values [Tp, Hkv, Dv] to the slots of the layer's group."""
        cache = self._caches[layer.layer_idx]
        if layer.is_latent:
            value = value[..., :0]
        _core.kv_write(
            _array(key, cache.torch_dtype),
            _array(value, cache.torch_dtype),
            keys=cache.keys,
            values=cache.written_values,
            slot_mapping=self._planned().slot_mapping[layer.group],
            dtype=cache.dtype,
        )

    def attend(
        self,
        layer: LayerSpec,
        query: torch.Tensor,
        sinks: torch.Tensor | None,
        *,
        alibi_slopes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attention of queries [Tp, H, Dk]; returns [Tp, H, Dv], zero in padding rows."""
        step = self._planned()
        cache = self._caches[layer.layer_idx]
        shape = (query.shape[0], layer.num_query_heads, layer.v_dim)
        output, output_array = new_output(shape, cache.torch_dtype)
        _core.paged_attention(
            _array(query, cache.torch_dtype),
            output_array,
            keys=cache.keys,
            values=cache.values,
            dtype=cache.dtype,
            row_ids=step.row_ids,
            query_start_loc=step.query_start_loc,
            seq_lens=step.seq_lens,
            block_tables=step.block_tables[layer.group],
            scale=layer.scale,
            mask=layer.kind,
            window=layer.window,
            softcap=layer.softcap,
            sinks=_per_head(sinks),
            alibi_slopes=_per_head(alibi_slopes),
        )
        return output if query.dtype == cache.torch_dtype else output.to(query.dtype)

    def _planned(self) -> _StepArrays:
        assert self._step is not None, "plan comes first"
        return self._step


class _StepArrays(NamedTuple):
    """The step as NumPy arrays, those per KV group as a list."""

    row_ids: npt.NDArray[np.int32]
    query_start_loc: npt.NDArray[np.int32]
    seq_lens: npt.NDArray[np.int32]
    slot_mapping: list[npt.NDArray[np.int64]]
    block_tables: list[npt.NDArray[np.int32]]


class _CacheArrays(NamedTuple):
    """Keys and values of a layer, [num_blocks, Hkv, block_size, D], as the kernels take them.

    ``written_values`` are ``values``, or of a latent layer an array of values without numbers.
    """

    keys: npt.NDArray[Any]
    values: npt.NDArray[Any]
    written_values: npt.NDArray[Any]
    dtype: DTypeName
    torch_dtype: torch.dtype


def _cache_arrays(layer_idx: int, cache: LayerCache, *, is_latent: bool) -> _CacheArrays:
    dtype = cache.key.dtype
    if dtype not in DTYPE_NAMES or cache.value.dtype != dtype:
        msg = (
            f"keys and values of layer {layer_idx} must both be float32, bfloat16 or float16 for "
            f"attention_backend='cpu', got {dtype} and {cache.value.dtype}; "
            "use attention_backend='torch' for others"
        )
        raise TypeError(msg)
    for tensor in (cache.key, cache.value):
        if tensor.device.type != "cpu":
            msg = f"cache of layer {layer_idx} must be on the cpu, got {tensor.device}"
            raise ValueError(msg)
    values = shared_array(cache.value)
    return _CacheArrays(
        keys=shared_array(cache.key),
        values=values,
        written_values=shared_array(cache.key.new_empty(*cache.key.shape[:3], 0))
        if is_latent
        else values,
        dtype=DTYPE_NAMES[dtype],
        torch_dtype=dtype,
    )


def _array(tensor: torch.Tensor, dtype: torch.dtype) -> npt.NDArray[Any]:
    """The tensor as an array of a cache's dtype with contiguous rows: over its own memory where that is so already."""
    if tensor.dtype != dtype:
        tensor = tensor.to(dtype)
    if tensor.stride(-1) != 1:
        tensor = tensor.contiguous()
    return shared_array(tensor)


def _per_head(numbers: torch.Tensor | None) -> npt.NDArray[Any] | None:
    return None if numbers is None else numbers.detach().float().contiguous().numpy()
