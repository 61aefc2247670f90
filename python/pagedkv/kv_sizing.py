"""How much memory the KV cache gets, and what fits into it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from pagedkv.config import EngineConfig
    from pagedkv.models.geometry import KvGeometry
    from pagedkv.models.loading import LoadedModel

logger = logging.getLogger(__name__)

_GIB = 1 << 30
# A CPU's memory is shared with everything else on the machine: by default at most this much, and this part of what is free.
_CPU_LIMIT_BYTES = 4 * _GIB
_CPU_SHARE_OF_AVAILABLE = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class KvSize:
    """The size of the KV cache.

    Attributes:
        num_blocks: blocks in the pool, the null block among them.
        num_bytes: their memory.
        num_tokens: tokens it holds when sequences of the longest context fill it.
        max_concurrency: sequences of the longest context that fit at once.
    """

    num_blocks: int
    num_bytes: int
    num_tokens: int
    max_concurrency: float


def size_kv_cache(
    loaded: LoadedModel, config: EngineConfig, *, max_num_batched_tokens: int
) -> KvSize:
    """Decides the number of blocks.

    Raises:
        ValueError: not even one sequence of the longest context fits; says which setting to raise and to what.
    """
    geometry, block_size = loaded.geometry, config.block_size
    block_bytes = geometry.bytes_per_block(block_size=block_size, dtype=loaded.dtype)
    per_sequence = _blocks_per_sequence(
        geometry, loaded.max_model_len, block_size=block_size, query_len=max_num_batched_tokens
    )
    memory_bytes = config.kv_cache_memory_bytes
    if memory_bytes is None:
        wanted = (config.max_num_seqs * per_sequence + 1) * block_bytes
        memory_bytes = min(wanted, _default_memory_bytes(loaded, config, max_num_batched_tokens))
    num_blocks = min(memory_bytes // block_bytes, 2**31 - 1)
    if num_blocks - 1 < per_sequence:
        needed = (per_sequence + 1) * block_bytes
        fitting = _longest_context(
            geometry, num_blocks - 1, loaded.max_model_len, block_size, max_num_batched_tokens
        )
        remedy = f", or lower max_model_len to {fitting}" if fitting >= 2 else ""
        msg = (
            f"the KV cache of {memory_bytes:,} bytes cannot hold one sequence of max_model_len="
            f"{loaded.max_model_len} tokens; raise kv_cache_memory_bytes to at least {needed}{remedy}"
        )
        raise ValueError(msg)
    concurrency = (num_blocks - 1) / per_sequence
    is_uniform = len(geometry.groups) == 1
    num_tokens = (
        (num_blocks - 1) * block_size if is_uniform else int(concurrency * loaded.max_model_len)
    )
    return KvSize(
        num_blocks=num_blocks,
        num_bytes=num_blocks * block_bytes,
        num_tokens=num_tokens,
        max_concurrency=concurrency,
    )


def log_kv_size(size: KvSize, loaded: LoadedModel) -> None:
    """Logs the lines that users of other engines search for."""
    label = "GPU KV cache size" if loaded.device.type == "cuda" else "KV cache size"
    logger.info("%s: %s tokens", label, f"{size.num_tokens:,}")
    logger.info(
        "Maximum concurrency for %s tokens per request: %.2fx",
        f"{loaded.max_model_len:,}",
        size.max_concurrency,
    )


def available_memory_bytes() -> int:
    """Memory of this machine that is free, or less where a control group allows less."""
    free = _meminfo_available()
    limit, used = (_cgroup_number(name) for name in ("memory.max", "memory.current"))
    if limit is not None and used is not None:
        free = min(free, max(0, limit - used))
    return free


def _default_memory_bytes(
    loaded: LoadedModel, config: EngineConfig, max_num_batched_tokens: int
) -> int:
    if loaded.device.type != "cuda":
        return min(_CPU_LIMIT_BYTES, int(available_memory_bytes() * _CPU_SHARE_OF_AVAILABLE))
    free, total = torch.cuda.mem_get_info(loaded.device)
    reserved = _activation_bytes(loaded, config, max_num_batched_tokens)
    allowed = int(total * config.gpu_memory_utilization) - (total - free) - reserved
    return max(0, allowed)


def _activation_bytes(loaded: LoadedModel, config: EngineConfig, num_tokens: int) -> int:
    """An upper estimate of what a step takes besides weights and KV cache."""
    model_config = loaded.model.config
    hidden = int(getattr(model_config, "hidden_size", 4096))
    wide = max(int(getattr(model_config, "intermediate_size", 0) or 0), 4 * hidden)
    # Queries to latents and what they mix are far wider than the heads of the model.
    latent = max(
        layer.num_query_heads * (layer.k_dim + layer.v_dim) if layer.is_latent else 0
        for layer in loaded.geometry.layers
    )
    activations = num_tokens * (8 * hidden + 3 * wide + latent) * loaded.dtype.itemsize
    # Logits, their log-probabilities and the sampler's copy, in float32.
    logits = 3 * config.max_num_seqs * loaded.vocab_size * 4
    return activations + logits


def _blocks_per_sequence(
    geometry: KvGeometry, num_tokens: int, *, block_size: int, query_len: int
) -> int:
    return geometry.blocks_for_sequence(num_tokens, block_size=block_size, query_len=query_len)


def _longest_context(
    geometry: KvGeometry, num_blocks: int, limit: int, block_size: int, query_len: int
) -> int:
    """The longest sequence whose blocks fit; 0 if none does."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        needed = _blocks_per_sequence(geometry, middle, block_size=block_size, query_len=query_len)
        low, high = (middle, high) if needed <= num_blocks else (low, middle - 1)
    return low


def _meminfo_available() -> int:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        logger.debug("free memory is unknown; assuming 4 GiB")
    return 4 * _GIB


def _cgroup_number(name: str) -> int | None:
    try:
        return int((Path("/sys/fs/cgroup") / name).read_text(encoding="ascii"))
    except (OSError, ValueError):
        # No such file, or "max".
        return None
