"""The slow path: models with attention code of their own, one sequence per forward pass.

Such a model computes its attention itself, biases and masks included, over keys and values that it asks a cache for. It
may run when it keeps everything it remembers in that cache, in a form that the blocks can hold. Both is tried out: one
watched pass tells the geometry, then prompts run in one piece without a cache and again in chunks through scattered
blocks, and both must give the same logits.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NoReturn

import torch
from transformers.cache_utils import DynamicCache

from pagedkv.attention.base import LayerCache
from pagedkv.errors import UnsupportedModelError
from pagedkv.models.probe import ProbedLayer
from pagedkv.models.slow_path_cache import PagedCache, SequenceForward

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

# Tokens of a watched prompt: more than a few blocks; where the configuration names a window, enough to pass it, within
# what runs in moments. A habit that only longer contexts wake is not seen.
_TOKENS = 64
_MOST_TOKENS = 512
_BLOCK_SIZE = 4
_WINDOW_ATTRIBUTES = ("sliding_window", "window_size", "attention_chunk_size")
# Largest difference of a logit, relative to the largest logit of its position: what rounding leaves in deep models.
_TOLERANCES = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@torch.inference_mode()
def probe_slow_path(
    model: PreTrainedModel, *, vocab_size: int, max_model_len: int
) -> tuple[list[ProbedLayer], int]:
    """Finds the KV geometry of a model and verifies that it runs over paged keys and values.

    Args:
        model: In its own eager attention.
        vocab_size: Token ids below it are tried.
        max_model_len: The longest context.

    Returns:
        The layers, and the number of logits per token.

    Raises:
        UnsupportedModelError: The model remembers something outside of the cache, or nothing in it.
    """
    model_type = str(model.config.model_type)
    num_tokens = min(_num_tokens(model), max_model_len)
    generator = torch.Generator().manual_seed(0)
    prompts = [
        torch.randint(vocab_size, (num_tokens,), generator=generator).to(model.device)
        for _ in range(2)
    ]
    forward = SequenceForward(model)
    try:
        layers = _observe(forward, prompts[0], model)
        whole = [
            forward(prompt, cache=None, num_cached=0, keep=_all_of(prompt)) for prompt in prompts
        ]
        chunked = _run_in_chunks(forward, prompts, layers, model.dtype)
    except (UnsupportedModelError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 (whatever a model's own code raises here says that it cannot run)
        _refuse(
            model_type,
            f"it fails with a cache of keys and values alone ({type(error).__name__}: {error})",
        )
    tolerance = _TOLERANCES[model.dtype]
    for expected, found in zip(whole, chunked, strict=True):
        difference = _relative_difference(expected, found)
        if not difference <= tolerance:
            _refuse(
                model_type,
                f"a prompt's logits change by {difference:.2g} of their size when it runs in chunks "
                f"(at most {tolerance:g} is rounding); it keeps state outside of its KV cache, or "
                "looks ahead",
            )
    return layers, whole[0].shape[1]


def _observe(
    forward: SequenceForward, prompt: torch.Tensor, model: PreTrainedModel
) -> list[ProbedLayer]:
    """What each layer puts into a cache in one pass over the prompt [T]."""
    model_type = str(model.config.model_type)
    cache = DynamicCache()
    forward(prompt, cache=cache, num_cached=0, keep=_all_of(prompt)[-1:])
    if not cache.layers:
        _refuse(
            model_type, "none of its layers uses transformers' attention interface or its KV cache"
        )
    declared = getattr(model.config, "num_hidden_layers", None)
    num_layers = max(declared if isinstance(declared, int) else 0, len(cache.layers))
    layers = []
    for layer_idx in range(num_layers):
        layer = cache.layers[layer_idx] if layer_idx < len(cache.layers) else None
        key, value = getattr(layer, "keys", None), getattr(layer, "values", None)
        if not isinstance(key, torch.Tensor) or not isinstance(value, torch.Tensor):
            _refuse(
                model_type,
                f"layer {layer_idx} stores no keys and values; it may keep state that a KV cache "
                "does not hold",
            )
        if not _fits(key, value, num_tokens=prompt.shape[0]):
            shapes = f"{list(key.shape)} and {list(value.shape)}"
            _refuse(model_type, f"layer {layer_idx} stores keys and values of the shapes {shapes}")
        layers.append(_layer(layer_idx, key, value))
    return layers


def _fits(key: torch.Tensor, value: torch.Tensor, *, num_tokens: int) -> bool:
    return (
        key.ndim == value.ndim == 4
        and key.shape[:3] == value.shape[:3]
        and key.shape[0] == 1
        and key.shape[2] == num_tokens
    )


def _layer(layer_idx: int, key: torch.Tensor, value: torch.Tensor) -> ProbedLayer:
    """Its mask, scale and query heads are the model's own business; the blocks hold every key."""
    return ProbedLayer(
        layer_idx=layer_idx,
        num_query_heads=key.shape[1],
        num_kv_heads=key.shape[1],
        k_dim=key.shape[3],
        v_dim=value.shape[3],
        scale=1.0,
        softcap=None,
        has_sinks=False,
        kind="full",
        window=None,
        same_kv_as=None,
    )


def _run_in_chunks(
    forward: SequenceForward,
    prompts: Sequence[torch.Tensor],
    layers: Sequence[ProbedLayer],
    dtype: torch.dtype,
) -> list[torch.Tensor]:
    """Logits [T, vocabulary] of each prompt, which take turns; unused slots hold NaN."""
    num_tokens, device = prompts[0].shape[0], prompts[0].device
    blocks_each = -(-num_tokens // _BLOCK_SIZE)
    num_blocks = len(prompts) * blocks_each + 1
    generator = torch.Generator().manual_seed(1)
    tables = (
        torch.randperm(num_blocks, generator=generator)[: len(prompts) * blocks_each]
        .view(len(prompts), blocks_each)
        .to(device)
    )

    def poisoned(num_heads: int, head_dim: int) -> torch.Tensor:
        shape = (num_blocks, num_heads, _BLOCK_SIZE, head_dim)
        return torch.full(shape, torch.nan, dtype=dtype, device=device)

    cache = PagedCache(
        {
            layer.layer_idx: LayerCache(
                key=poisoned(layer.num_kv_heads, layer.k_dim),
                value=poisoned(layer.num_kv_heads, layer.v_dim),
            )
            for layer in layers
        }
    )
    logits: list[list[torch.Tensor]] = [[] for _ in prompts]
    for start, stop in _chunks(num_tokens):
        positions = torch.arange(start, stop, device=device)
        for prompt, table, parts in zip(prompts, tables, logits, strict=True):
            slots = table[positions // _BLOCK_SIZE] * _BLOCK_SIZE + positions % _BLOCK_SIZE
            cache.select(table=table, slots=slots, num_cached=start)
            part = prompt[start:stop]
            parts.append(forward(part, cache=cache, num_cached=start, keep=_all_of(part)))
    return [torch.cat(parts) for parts in logits]


def _chunks(num_tokens: int) -> list[tuple[int, int]]:
    """Two pieces, then one by one like decoded tokens, the last four at most."""
    last = max(num_tokens - 4, num_tokens * 5 // 6)
    cuts = sorted({0, num_tokens // 2, *range(last, num_tokens + 1)})
    return list(pairwise(cuts))


def _num_tokens(model: PreTrainedModel) -> int:
    windows = [getattr(model.config, name, None) for name in _WINDOW_ATTRIBUTES]
    widest = max((window for window in windows if isinstance(window, int)), default=0)
    return min(_TOKENS + widest, _MOST_TOKENS)


def _all_of(tokens: torch.Tensor) -> torch.Tensor:
    return torch.arange(tokens.shape[0], device=tokens.device)


def _relative_difference(expected: torch.Tensor, found: torch.Tensor) -> float:
    """NaN where either holds one."""
    expected, found = expected.float(), found.float()
    scale = expected.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    return float(((expected - found).abs().amax(dim=1) / scale).max())


def _refuse(model_type: str, reason: str) -> NoReturn:
    msg = f"model type {model_type!r} cannot run: {reason}"
    raise UnsupportedModelError(msg)
