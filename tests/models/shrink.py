"""Tiny configurations of any causal language model of transformers, made by shrinking its default configuration.

Configurations name the same size in a dozen ways. `SIZES` holds every name with its tiny value; a type takes those that
its default configuration has. What that leaves wrong for a type, `OVERRIDES` says.
"""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig

from models.tiny import MAX_POSITIONS, VOCAB_SIZE

HIDDEN = 64
NUM_LAYERS = 4
NUM_HEADS = 4
HEAD_DIM = 16
# More than two blocks of the sweep, so that a sequence grows inside its window; less than its longest context.
WINDOW, CHUNK = 19, 24

# Taken whether the default configuration has them or not.
_ALWAYS: dict[str, Any] = {
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    # Encoders generate when they are told that they are decoders.
    "is_decoder": True,
}

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "vocab_size_per_layer_input": VOCAB_SIZE,
    "init_std": 0.3,
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embedding_size", "emb_dim"), HIDDEN),
    **dict.fromkeys(("word_embed_proj_dim", "dim_model", "input_size"), HIDDEN),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "dim_ff", "dff"), 96),
    **dict.fromkeys(("intermediate_size_mlp", "d_inner", "mlp_dim"), 96),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), NUM_LAYERS),
    "decoder_layers": NUM_LAYERS,
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), NUM_HEADS),
    "decoder_attention_heads": NUM_HEADS,
    **dict.fromkeys(("num_key_value_heads", "multi_query_group_num", "swa_num_key_value_heads"), 2),
    "swa_num_attention_heads": NUM_HEADS,
    "num_global_key_value_heads": 2,
    **dict.fromkeys(("head_dim", "dim_head", "v_head_dim", "qk_nope_head_dim"), HEAD_DIM),
    **dict.fromkeys(("global_head_dim", "swa_head_dim", "swa_v_head_dim"), HEAD_DIM),
    "query_pre_attn_scalar": HEAD_DIM,
    **dict.fromkeys(("qk_rope_head_dim", "rotary_dim"), 8),
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), MAX_POSITIONS),
    **dict.fromkeys(("max_seq_len", "original_max_position_embeddings"), MAX_POSITIONS),
    **dict.fromkeys(("sliding_window", "window_size", "sliding_window_size"), WINDOW),
    "attention_chunk_size": CHUNK,
    # Experts: four, two of them chosen, in one group.
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk", "num_experts_per_token"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("expert_ffn_hidden_size", "shared_intermediate_size"), 32),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_expert_group"), 1),
    **dict.fromkeys(("first_k_dense_replace", "moe_layer_start_index"), 1),
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 0,
    "type_vocab_size": 2,
}
_LATENT = {"num_key_value_heads": NUM_HEADS, "head_dim": SIZES["qk_rope_head_dim"]}

# Leaves an attribute as the default configuration has it.
DEFAULT = object()

_STACK = {
    "hidden_size": HIDDEN,
    "intermediate_size": 96,
    "num_attention_heads": NUM_HEADS,
    "initializer_range": 0.3,
}
# What the default configuration leaves open, or what the sizes above make inconsistent.
OVERRIDES: dict[str, dict[str, Any]] = {
    # Windows that checkpoints have and default configurations do not.
    **{
        name: {"sliding_window": WINDOW}
        for name in ("mistral", "mixtral", "phi3", "phimoe", "starcoder2")
    },
    **{
        name: {
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        }
        for name in ("qwen2", "qwen2_moe", "qwen3")
    },
    "gemma3n_text": {"num_kv_shared_layers": 2},
    **{
        name: {"head_dim": HEAD_DIM} for name in ("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral")
    },
    "blt": {
        "encoder_config": _STACK | {"num_hidden_layers": 1, "hidden_size_global": HIDDEN},
        "decoder_config": _STACK | {"num_hidden_layers": 2, "hidden_size_global": HIDDEN},
        "global_config": _STACK | {"num_hidden_layers": 2},
        "patcher_config": _STACK | {"num_hidden_layers": 1},
        "encoder_hash_byte_group_vocab": 100,
    },
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
        "ffn_config": {
            "hidden_size": HIDDEN,
            "ffn_hidden_size": 64,
            "moe_num_experts": 4,
            "moe_top_k": 2,
        },
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
    },
    "gemma4_assistant": {
        "text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
    },
    "git": {"vision_config": _STACK | {"num_hidden_layers": 1, "image_size": 32}},
    "gpt_neo": {"num_layers": NUM_LAYERS, "attention_types": [[["global", "local"], 2]]},
    # The form of its checkpoints that keeps keys and values alone.
    "granitemoehybrid": {"layer_types": ["full_attention"] * NUM_LAYERS},
    # Its layers run many times over: wide weights would make rounding grow.
    "hrm_text": {"initializer_range": 0.1, "num_hidden_layers": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["full_attention", "conv"] * 2},
    "mamba2": {"num_heads": 8},
    # Its window, which its mask ignores, is as long as its context, as in its default configuration.
    "moshi": {"sliding_window": MAX_POSITIONS},
    "nemotron": {"head_dim": HEAD_DIM, "num_key_value_heads": 2},
    "phi4_multimodal": {
        "vision_config": _STACK | {"num_hidden_layers": 3},
        "audio_config": {
            "hidden_size": HIDDEN,
            "intermediate_size": 96,
            "num_blocks": 1,
            "num_attention_heads": NUM_HEADS,
            "ext_pw_out_channel": HIDDEN,
            "depthwise_separable_out_channel": HIDDEN,
            "nemo_conv_channels": HIDDEN,
        },
    },
    "prophetnet": {"num_hidden_layers": DEFAULT},
    "reformer": {
        "axial_pos_embds_dim": [32, 32],
        "axial_pos_shape": [16, 16],
        "attn_layers": ["local", "lsh"] * 2,
    },
    "roc_bert": {
        "pronunciation_vocab_size": VOCAB_SIZE,
        "shape_vocab_size": VOCAB_SIZE,
        "pronunciation_embed_dim": 16,
        "shape_embed_dim": 16,
    },
    "xlnet": {"max_position_embeddings": DEFAULT},
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
}


def shrunk_config(model_type: str, **overrides: Any) -> PretrainedConfig:
    """The tiny configuration of a type; ``overrides`` win."""
    config_class = CONFIG_MAPPING[model_type]
    base = _base_config(model_type)
    values = _ALWAYS | {name: size for name, size in SIZES.items() if _takes(base, name)}
    if _takes(base, "qk_rope_head_dim"):
        values |= _LATENT
    for name in ("layer_types", "mlp_layer_types"):
        if per_layer := _value_of(base, name):
            # As many as there are layers, every kind among them.
            kinds = list(dict.fromkeys(per_layer))
            values[name] = (kinds * NUM_LAYERS)[:NUM_LAYERS]
    values |= OVERRIDES.get(model_type, {}) | overrides
    return config_class(
        **{
            name: value
            for name, value in values.items()
            if value is not DEFAULT and _is_settable(config_class, name)
        }
    )


def _base_config(model_type: str) -> PretrainedConfig:
    try:
        return CONFIG_MAPPING[model_type]()
    except Exception:  # noqa: BLE001 (some defaults contradict each other, each with an error of its own)
        return CONFIG_MAPPING[model_type](**OVERRIDES.get(model_type, {}))


def _value_of(config: PretrainedConfig, name: str) -> Any:
    try:
        return getattr(config, name, None)
    except Exception:  # noqa: BLE001 (an attribute that differs by layer raises an error of its own)
        return "per layer"


def _takes(config: PretrainedConfig, name: str) -> bool:
    """Whether the default configuration has a value under ``name``; None means the model does without."""
    return _value_of(config, name) is not None


def _is_settable(config_class: type, name: str) -> bool:
    attribute = getattr(config_class, config_class.attribute_map.get(name, name), None)
    return not (isinstance(attribute, property) and attribute.fset is None)
