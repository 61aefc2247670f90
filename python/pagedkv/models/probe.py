"""What a model's attention really does, found out by watching one forward pass.

Configurations name the same thing in many ways, and some models mask in ways that neither their configuration nor their
attention call shows. So geometry and masks are taken from the calls themselves: an observer stands in for attention,
writes down what each layer hands over, and returns every token's own value. With that stand-in no token sees another,
which makes a second use possible (probe/rows): whatever still mixes tokens is state outside of attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from pagedkv.attention.interface import ProbedMask, latent_maps, observe_attention
from pagedkv.errors import UnsupportedModelError
from pagedkv.models.masks import MaskShape, classify_mask

if TYPE_CHECKING:
    from torch import nn

    from pagedkv.attention.base import LayerKind

# Keyword arguments of an attention call that cannot change its result here: the first are training or bookkeeping, the
# last are what the mask probe and the rotated queries already tell.
_HARMLESS_ARGUMENTS = frozenset(
    {
        "dropout",
        "use_cache",
        "cache_position",
        "past_key_values",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "return_dict",
        "is_causal",
        "position_ids",
        "position_embeddings",
        "sliding_window",
        "shared_kv_states",
    }
)
_KNOWN_ARGUMENTS = _HARMLESS_ARGUMENTS | {"scaling", "softcap", "s_aux"}


class NotOnFastPathError(UnsupportedModelError):
    """The attention is nothing that a backend can stand in for; the model's own code may still run on the slow path.

    Attributes:
        reason: What was seen, without the model type.
    """

    def __init__(self, model_type: str, reason: str) -> None:
        """Words the refusal that it is when the slow path is not tried."""
        super().__init__(f"model type {model_type!r} cannot run: {reason}")
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbedLayer:
    """One layer's attention as seen in its call. Fields as in `LayerSpec`, before windows meet a context length.

    Attributes:
        layer_idx: Index that the module carries.
        num_query_heads: H.
        num_kv_heads: Hkv.
        k_dim: Dk.
        v_dim: Dv.
        scale: Factor of the scores.
        softcap: Cap of the scores, if any.
        has_sinks: The layer hands over sinks.
        kind: Mask, ``full`` when masks were not probed.
        window: Width of the mask's window or chunk.
        same_kv_as: An earlier layer whose key and value tensors this layer handed over again.
        is_latent: It hands over latents: its values are the first numbers of its keys.
    """

    layer_idx: int
    num_query_heads: int
    num_kv_heads: int
    k_dim: int
    v_dim: int
    scale: float
    softcap: float | None
    has_sinks: bool
    kind: LayerKind
    window: int | None
    same_kv_as: int | None
    is_latent: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """One watched forward pass over T tokens.

    Attributes:
        layers: What each layer handed over, by index.
        keys: [Hkv, T, Dk] of each layer, by index.
        logits: [T, vocabulary].
    """

    layers: dict[int, ProbedLayer]
    keys: dict[int, torch.Tensor]
    logits: torch.Tensor


@torch.inference_mode()
def probe(
    model: nn.Module,
    *,
    input_ids: torch.Tensor,
    positions: torch.Tensor,
    model_type: str,
    max_model_len: int,
    with_masks: bool,
) -> ProbeResult:
    """Runs ``model``, set to a probe name, once and watches its attention.

    Args:
        model: The model.
        input_ids: [T] int64.
        positions: [T] int64.
        model_type: Named in errors.
        max_model_len: Masks are classified for positions below it.
        with_masks: Require and classify masks; otherwise every layer is taken as ``full``.

    Raises:
        NotOnFastPathError: Attention or masks are nothing that this can watch.
        UnsupportedModelError: A layer's attention is nothing that the KV cache can hold or a backend can compute.
    """
    observer = _Observer(model_type, max_model_len=max_model_len, with_masks=with_masks)
    keep = torch.arange(input_ids.shape[0], device=input_ids.device)
    try:
        with observe_attention(observer):
            output = model(
                input_ids=input_ids[None],
                position_ids=positions[None],
                use_cache=False,
                logits_to_keep=keep,
            )
    except (UnsupportedModelError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        reason = f"it cannot be watched ({type(error).__name__}: {error})"
        raise NotOnFastPathError(model_type, reason) from error
    logits = output.logits
    if logits.shape[:2] != (1, input_ids.shape[0]):
        msg = (
            f"model type {model_type!r} cannot run: asked for the logits of {input_ids.shape[0]} "
            f"positions by index, it returned the shape {list(logits.shape)}"
        )
        raise UnsupportedModelError(msg)
    return ProbeResult(
        layers=dict(sorted(observer.layers.items())), keys=observer.keys, logits=logits[0]
    )


def check_layer_count(
    model_type: str, layers: dict[int, ProbedLayer], num_hidden_layers: int | None
) -> None:
    """Checks that every decoder layer was seen.

    Raises:
        NotOnFastPathError: None was, or some are missing.
    """
    if not layers:
        raise NotOnFastPathError(
            model_type, "none of its layers calls transformers' attention interface"
        )
    expected = range(max(num_hidden_layers or 0, max(layers) + 1))
    missing = [layer_idx for layer_idx in expected if layer_idx not in layers]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        reason = f"layer {missing[0]}{more} never calls transformers' attention interface"
        raise NotOnFastPathError(model_type, reason)


class _Observer:
    """Stands in for attention: notes every call, refuses what cannot be, returns each token's own value."""

    def __init__(self, model_type: str, *, max_model_len: int, with_masks: bool) -> None:
        self.layers: dict[int, ProbedLayer] = {}
        self.keys: dict[int, torch.Tensor] = {}
        # Also keeps the tensors alive, so that none takes the place of an earlier one.
        self._handed_over: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._model_type = model_type
        self._max_model_len = max_model_len
        self._with_masks = with_masks
        self._mask_shapes: dict[int, MaskShape | None] = {}
        self._masks: list[ProbedMask] = []

    def __call__(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        kwargs: dict[str, Any],
    ) -> torch.Tensor:
        layer_idx = getattr(module, "layer_idx", None)
        if not isinstance(layer_idx, int):
            self._refuse(None, f"its attention module has the layer index {layer_idx!r}")
        if layer_idx in self.layers:
            self._leave_fast_path(layer_idx, "runs attention more than once per token")
        self._check_arguments(layer_idx, module, kwargs)
        self._check_shapes(layer_idx, query, key, value)
        shape = self._mask_shape(layer_idx, mask) if self._with_masks else MaskShape("full", None)
        scaling = kwargs.get("scaling")
        sinks = kwargs.get("s_aux")
        if sinks is not None and sinks.numel() != query.shape[1]:
            self._refuse(layer_idx, f"it has {sinks.numel()} sinks for {query.shape[1]} heads")
        softcap = kwargs.get("softcap")
        self.layers[layer_idx] = ProbedLayer(
            layer_idx=layer_idx,
            num_query_heads=query.shape[1],
            num_kv_heads=key.shape[1],
            k_dim=key.shape[3],
            v_dim=value.shape[3],
            scale=float(query.shape[3] ** -0.5 if scaling is None else scaling),
            softcap=None if softcap is None else float(softcap),
            has_sinks=sinks is not None,
            kind=shape.kind,
            window=shape.window,
            same_kv_as=self._source_of(key, value),
            is_latent=latent_maps(module) is not None,
        )
        self.keys[layer_idx] = key[0]
        self._handed_over.setdefault(layer_idx, (key, value))
        heads_per_kv = query.shape[1] // key.shape[1]
        return value.repeat_interleave(heads_per_kv, dim=1).transpose(1, 2).contiguous()

    def _check_arguments(self, layer_idx: int, module: nn.Module, kwargs: dict[str, Any]) -> None:
        if getattr(module, "is_causal", True) is False or kwargs.get("is_causal") is False:
            self._refuse(layer_idx, "its attention is bidirectional")
        for name, argument in kwargs.items():
            if name not in _KNOWN_ARGUMENTS and argument is not None and argument is not False:
                self._refuse(layer_idx, f"its attention takes {name!r}, which no backend computes")

    def _check_shapes(
        self, layer_idx: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> None:
        num_tokens = query.shape[2]
        fits = (
            query.ndim == key.ndim == value.ndim == 4
            and query.shape[0] == key.shape[0] == value.shape[0] == 1
            and key.shape[2] == value.shape[2] == num_tokens
            and key.shape[1] == value.shape[1]
            and query.shape[1] % key.shape[1] == 0
            and query.shape[3] == key.shape[3]
        )
        if not fits:
            shapes = ", ".join(str(list(tensor.shape)) for tensor in (query, key, value))
            self._refuse(layer_idx, f"its query, key and value have the shapes {shapes}")

    def _mask_shape(self, layer_idx: int, mask: torch.Tensor | None) -> MaskShape:
        if not isinstance(mask, ProbedMask):
            self._leave_fast_path(
                layer_idx, "attends under a mask that is not a function of positions"
            )
        if id(mask) not in self._mask_shapes:
            # Held, so that its id stays its own.
            self._masks.append(mask)
            self._mask_shapes[id(mask)] = classify_mask(mask.predicate, self._max_model_len)
        shape = self._mask_shapes[id(mask)]
        if shape is None:
            self._leave_fast_path(
                layer_idx, "has a mask that is neither causal, nor sliding, nor chunked"
            )
        return shape

    def _source_of(self, key: torch.Tensor, value: torch.Tensor) -> int | None:
        for layer_idx, (earlier_key, earlier_value) in self._handed_over.items():
            if earlier_key is key and earlier_value is value:
                return layer_idx
        return None

    def _leave_fast_path(self, layer_idx: int, reason: str) -> NoReturn:
        raise NotOnFastPathError(self._model_type, f"layer {layer_idx} {reason}")

    def _refuse(self, layer_idx: int | None, reason: str) -> NoReturn:
        where = "" if layer_idx is None else f" in layer {layer_idx}"
        msg = f"model type {self._model_type!r} cannot run:{where} {reason}"
        raise UnsupportedModelError(msg)
