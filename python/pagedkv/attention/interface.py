"""The hook into transformers: how a model's attention calls reach a backend, and how a model is watched while probed.

Together with the modules of models/ that import transformers, this file holds every touch point with it that may change
between its versions.

Three names are registered. ``pagedkv`` has an attention function and no mask function: transformers then builds no masks
at all (each ``create_*_mask`` returns None). ``pagedkv_probe`` has both: its attention function hands every call to an
observer, and its mask function returns the mask together with the index predicate that it was built from.
``pagedkv_shapes`` is the same without masks, for models whose tensors have no data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

import torch
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from pagedkv.attention.context import current_step

if TYPE_CHECKING:
    from torch import nn

RUNTIME_NAME = "pagedkv"
PROBE_NAME = "pagedkv_probe"
SHAPE_PROBE_NAME = "pagedkv_shapes"
NAMES = frozenset({RUNTIME_NAME, PROBE_NAME, SHAPE_PROBE_NAME})
# Where an attention module that hands over latents carries its `LatentMaps`.
LATENT_ATTRIBUTE = "pagedkv_latent"

# (batch, head, query position, key position), index tensors that broadcast, -> bool tensor
MaskPredicate = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

# (module, query, key, value, mask, keyword arguments) -> [1, T, H, Dv]
AttentionObserver = Callable[
    ["nn.Module", torch.Tensor, torch.Tensor, torch.Tensor, "torch.Tensor | None", dict[str, Any]],
    torch.Tensor,
]


class LatentMaps(Protocol):
    """What a module that hands over latents does to its queries before attention and to the result behind it."""

    def absorb(self, query: torch.Tensor) -> torch.Tensor:
        """Queries [1, H, T, Dq] of the model as queries [1, H, T, Dk] to its latents."""

    def expand(self, output: torch.Tensor) -> torch.Tensor:
        """Mixed latents [1, T, H, Dv] as the mixed values that the model expects."""


_observer: ContextVar[AttentionObserver | None] = ContextVar("pagedkv_observer", default=None)


class ProbedMask(torch.Tensor):
    """A mask [1, 1, T, T] that remembers its predicate; anything computed from it is a plain tensor."""

    predicate: MaskPredicate

    # The documented way to opt out; its stub has another signature than the method.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # noqa: SLF001


def latent_maps(module: nn.Module) -> LatentMaps | None:
    """The maps of a module that hands over latents; None for any other."""
    maps: LatentMaps | None = getattr(module, LATENT_ATTRIBUTE, None)
    return maps


@contextmanager
def observe_attention(observer: AttentionObserver) -> Iterator[None]:
    """Sends the attention calls of models that run under `PROBE_NAME` to ``observer``, in this thread."""
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


def _paged_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one layer over the flattened batch, in transformers' calling convention.

    Scale, window and soft cap come from the layer's spec, which the probe took from the same call.

    Args:
        module: The attention module; ``layer_idx`` names the layer.
        query: [1, H, Tp, Dk], rotated.
        key: [1, Hkv, Tp, Dk], rotated.
        value: [1, Hkv, Tp, Dv].
        attention_mask: None.
        s_aux: [H] sinks, if the layer has them.

    Returns:
        [1, Tp, H, Dv] and None in place of the attention weights.
    """
    assert attention_mask is None, "masks are never built under the runtime name"
    step = current_step()
    layer_idx = module.layer_idx
    assert isinstance(layer_idx, int), "the probe saw an integer layer index"
    layer = step.layers[layer_idx]
    maps = latent_maps(module)
    if maps is not None:
        query = maps.absorb(query)
    if layer.alias_of is None:
        step.backend.write_kv(layer, key[0].transpose(0, 1), value[0].transpose(0, 1))
    sinks = s_aux if layer.has_sinks else None
    output = step.backend.attend(layer, query[0].transpose(0, 1), sinks).unsqueeze(0)
    return (output if maps is None else maps.expand(output)), None


def _probe_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    observer = _observer.get()
    assert observer is not None, "the probe name is used inside observe_attention only"
    maps = latent_maps(module)
    if maps is not None:
        query = maps.absorb(query)
    output = observer(module, query, key, value, attention_mask, kwargs)
    return (output if maps is None else maps.expand(output)), None


def _probe_mask(
    *,
    q_length: int,
    kv_length: int,
    mask_function: MaskPredicate,
    **_: Any,
) -> ProbedMask:
    zero = torch.zeros((), dtype=torch.long, device="cpu")
    query = torch.arange(q_length, device="cpu")[:, None]
    key = torch.arange(kv_length, device="cpu")[None, :]
    allowed = torch.as_tensor(mask_function(zero, zero, query, key))
    mask = allowed.expand(q_length, kv_length)[None, None].as_subclass(ProbedMask)
    mask.predicate = mask_function
    return mask


AttentionInterface.register(RUNTIME_NAME, _paged_attention)
AttentionInterface.register(PROBE_NAME, _probe_attention)
AttentionInterface.register(SHAPE_PROBE_NAME, _probe_attention)
AttentionMaskInterface.register(PROBE_NAME, _probe_mask)
