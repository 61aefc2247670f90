"""Models that cannot run, told by their configuration: cheap, early and with a name for the reason.

This list is for good messages. What it does not know is caught by the probes, which look at what a model does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from pagedkv.errors import UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_LAYER_TYPES = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
# Feed-forward kinds, which some configurations list under the same name.
_OTHER_LAYER_TYPES = frozenset({"sparse", "dense"})

# Attributes of configurations whose layers keep state beside keys and values, when no list of layer types tells which
# do. Names, not model types: remote code and models to come use them too.
_STATE_ATTRIBUTES = {
    "linear_num_key_heads": "linear-attention layers keep a recurrent state",
    "mamba_d_state": "state-space layers keep a recurrent state",
    "mamba_num_heads": "state-space layers keep a recurrent state",
    "ssm_state_size": "state-space layers keep a recurrent state",
    "conv_L_cache": "convolution layers keep the last inputs",
}
_STATE_MODEL_TYPES = {
    "mamba": "state-space layers keep a recurrent state",
    "mamba2": "state-space layers keep a recurrent state",
    "falcon_mamba": "state-space layers keep a recurrent state",
    "rwkv": "recurrent layers keep a state",
    "recurrent_gemma": "recurrent layers keep a state",
    "xlstm": "recurrent layers keep a state",
}
_LAYER_TYPE_REASONS = {
    "linear_attention": "keeps a recurrent state",
    "hybrid": "keeps a recurrent state",
    "hybrid_sliding": "keeps a recurrent state",
    "conv": "is a convolution that keeps the last inputs",
    "indexed_attention": "chooses its keys through a sparse indexer",
    "compressed_sparse_attention": "attends to compressed keys that a sparse indexer chooses",
    "heavily_compressed_attention": "attends to compressed keys",
}


class KeepsStateError(UnsupportedModelError):
    """Layers keep something beside keys and values, or need more than these to choose among them."""


def check_config(config: PretrainedConfig, *, has_code: bool) -> None:
    """Refuses configurations of models that cannot run.

    Args:
        config: The model's configuration.
        has_code: The model brings Python code that the caller has agreed to run.

    Raises:
        KeepsStateError: A layer keeps more than keys and values.
        UnsupportedModelError: Another reason. Both name the model type, the layer where there is one, and the reason.
    """
    model_type = str(config.model_type)
    if config.is_encoder_decoder:
        _refuse(model_type, "it is an encoder-decoder; only decoders generate over one KV cache")
    if config.get_text_config(decoder=True) is not config:
        _refuse(
            model_type,
            "it is a multimodal model; load a text-only checkpoint of its family, if there is one",
        )
    _check_layer_types(config, model_type)
    _check_state(config, model_type)
    if not has_code and model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        _refuse(model_type, "transformers has no causal language model of this type")
    # (Some multimodal families say "vision" here: their text attends causally, which the mask probe verifies.)
    if getattr(config, "use_bidirectional_attention", None) is True:
        _refuse(model_type, "its attention is bidirectional (use_bidirectional_attention)")
    if getattr(config, "is_causal", True) is False:
        _refuse(model_type, "its attention is bidirectional (is_causal is false)")
    if getattr(config, "quantization_config", None) is not None:
        method = _quantization_method(config.quantization_config)
        _refuse(
            model_type,
            f"its weights are quantized ({method}), which this version does not load; "
            "use the unquantized checkpoint",
        )


def _check_state(config: PretrainedConfig, model_type: str) -> None:
    if model_type in _STATE_MODEL_TYPES:
        _refuse_state(
            model_type, f"its {_STATE_MODEL_TYPES[model_type]}, which a KV cache does not hold"
        )
    if getattr(config, "index_topk", None) is not None:
        _refuse_state(model_type, "a sparse indexer (index_topk) chooses the keys of every query")
    if getattr(config, "layer_types", None):
        return
    for attribute, reason in _STATE_ATTRIBUTES.items():
        if getattr(config, attribute, None) is not None:
            _refuse_state(model_type, f"its {reason} ({attribute}), which a KV cache does not hold")


def _check_layer_types(config: PretrainedConfig, model_type: str) -> None:
    for layer_idx, layer_type in enumerate(getattr(config, "layer_types", None) or ()):
        if layer_type not in _LAYER_TYPES | _OTHER_LAYER_TYPES:
            reason = _LAYER_TYPE_REASONS.get(layer_type, "is not plain attention")
            _refuse_state(model_type, f"layer {layer_idx} ({layer_type!r}) {reason}")


def _quantization_method(quantization_config: Any) -> str:
    if isinstance(quantization_config, dict):
        return str(quantization_config.get("quant_method", "unknown method"))
    return str(getattr(quantization_config, "quant_method", "unknown method"))


def _refuse(model_type: str, reason: str) -> NoReturn:
    msg = f"model type {model_type!r} cannot run: {reason}"
    raise UnsupportedModelError(msg)


def _refuse_state(model_type: str, reason: str) -> NoReturn:
    msg = f"model type {model_type!r} cannot run: {reason}"
    raise KeepsStateError(msg)
