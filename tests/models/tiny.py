"""Tiny random models of many architectures, built from configurations: no download, milliseconds each.

Four layers, hidden size 64, four query and two key heads, a vocabulary of 199, windows of 7 and chunks of 8 tokens, so
that short prompts pass them. Weights are drawn wide (`initializer_range`), so that logits differ clearly and greedy
choices do not hang on rounding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

VOCAB_SIZE = 199
WINDOW = 7
CHUNK = 8
MAX_POSITIONS = 256

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
_DECODER: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_POSITIONS,
}
_HEAD_DIM = {"head_dim": 16}
_SLIDING = {"sliding_window": WINDOW}
_ALTERNATING = {
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
_EXPERTS = {"num_experts_per_tok": 2, "num_local_experts": 4}
_QWEN_EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [1],
}
_GPT = {"n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": MAX_POSITIONS}
_MLA = {
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
}

_LATENT_EXPERTS = {
    # Routers take sigmoids of one number per expert; torch rounds those otherwise that fill no vector of at most 32.
    "n_routed_experts": 32,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}

# What each architecture sets beside _COMMON.
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _DECODER,
    "mistral": _DECODER | _SLIDING,
    "qwen2": _DECODER | _ALTERNATING | {"use_sliding_window": True},
    "qwen2_moe": _DECODER
    | _ALTERNATING
    | _QWEN_EXPERTS
    | {"use_sliding_window": True, "shared_expert_intermediate_size": 32},
    "qwen3": _DECODER | _HEAD_DIM,
    "qwen3_moe": _DECODER | _HEAD_DIM | _QWEN_EXPERTS,
    "gemma": _DECODER | _HEAD_DIM,
    "gemma2": _DECODER | _HEAD_DIM | _ALTERNATING | {"query_pre_attn_scalar": 16},
    "gemma3_text": _DECODER
    | _HEAD_DIM
    | {
        "query_pre_attn_scalar": 16,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
    },
    "phi": _DECODER,
    "phi3": _DECODER | _SLIDING | {"original_max_position_embeddings": MAX_POSITIONS},
    "phimoe": _DECODER | _SLIDING | _EXPERTS,
    "gpt2": _GPT,
    "gpt_neox": _DECODER | {"rotary_pct": 0.25},
    "gpt_oss": _DECODER | _HEAD_DIM | _ALTERNATING | _EXPERTS,
    "opt": _DECODER | {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "mixtral": _DECODER | _SLIDING | _EXPERTS,
    "olmo2": _DECODER,
    "starcoder2": _DECODER | _SLIDING,
    "stablelm": _DECODER,
    "cohere2": _DECODER
    | {
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
    },
    "granite": _DECODER,
    "llama4_text": _DECODER
    | _HEAD_DIM
    | {
        "attention_chunk_size": CHUNK,
        "intermediate_size_mlp": 96,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "moe_layers": [1, 3],
        "layer_types": ["chunked_attention"] * 3 + ["full_attention"],
    },
    "deepseek_v3": _DECODER | _MLA | _LATENT_EXPERTS,
    # The other ones with latent attention.
    "axk1": _DECODER | _MLA | _LATENT_EXPERTS,
    "deepseek_v2": _DECODER | _MLA | _LATENT_EXPERTS,
    "glm4_moe_lite": _DECODER | _MLA | _LATENT_EXPERTS,
    "longcat_flash": _DECODER
    | _MLA
    | {
        # Each has two attention layers.
        "num_hidden_layers": 4,
        "head_dim": 8,
        "ffn_hidden_size": 96,
        "expert_ffn_hidden_size": 32,
        "n_routed_experts": 4,
        "moe_topk": 2,
        "zero_expert_num": 1,
    },
    "minicpm3": _DECODER | _MLA,
    "youtu": _DECODER | _MLA,
    # Beyond the sweep of the required ones: shared KV, several head sizes, both kinds of long rotary embeddings.
    "gemma3n_text": _DECODER
    | _HEAD_DIM
    | {
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCAB_SIZE,
        "intermediate_size": [96] * 4,
        "activation_sparsity_pattern": [0.0] * 4,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "gemma4_text": _DECODER
    | {
        "head_dim": 16,
        "global_head_dim": 32,
        "num_global_key_value_heads": 1,
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCAB_SIZE,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
}

# The architectures that the engine promises.
SWEEP = [name for name in CONFIGS if name not in ("gemma3n_text", "gemma4_text")]

# Those whose attention is code of their own.
_ROTARY_GPT = _GPT | {"rotary_dim": 8, "n_ctx": MAX_POSITIONS}
_HEADS = {"num_hidden_layers": 4, "num_attention_heads": 4}
SLOW_PATH: dict[str, dict[str, Any]] = {
    "bloom": {"hidden_size": 64, "n_layer": 4, "n_head": 4},
    "codegen": _ROTARY_GPT,
    "diffllama": _DECODER,
    "falcon": {"hidden_size": 64} | _HEADS,
    "gpt_neo": {
        "hidden_size": 64,
        "num_layers": 4,
        "num_heads": 4,
        "max_position_embeddings": MAX_POSITIONS,
        "window_size": WINDOW,
        "attention_types": [[["global", "local"], 2]],
    },
    "gpt_neox_japanese": {"hidden_size": 64, "max_position_embeddings": MAX_POSITIONS} | _HEADS,
    "gptj": _ROTARY_GPT,
    "mpt": {"d_model": 64, "n_layers": 4, "n_heads": 4, "max_seq_len": MAX_POSITIONS},
    "xglm": {
        "d_model": 64,
        "ffn_dim": 96,
        "num_layers": 4,
        "attention_heads": 4,
        "max_position_embeddings": MAX_POSITIONS,
    },
}

# Those of them that an adapter brings to the fast path.
ADAPTED = ["codegen", "falcon", "gpt_neox_japanese", "gptj"]


def with_wider_windows(model_type: str, *, window: int, chunk: int) -> dict[str, Any]:
    """Overrides that widen the windows of an architecture, if it has any."""
    widths = {"sliding_window": window, "attention_chunk_size": chunk}
    return {name: width for name, width in widths.items() if name in CONFIGS[model_type]}


def tiny_config(model_type: str, **overrides: Any) -> PretrainedConfig:
    """The configuration of a tiny model; ``overrides`` win."""
    return CONFIG_MAPPING[model_type](**(_COMMON | (CONFIGS | SLOW_PATH)[model_type] | overrides))


def tiny_model(
    model_type: str, *, dtype: torch.dtype = torch.float32, **overrides: Any
) -> PreTrainedModel:
    """A model of `tiny_config`."""
    return seeded_model(tiny_config(model_type, **overrides), dtype=dtype)


def seeded_model(config: PretrainedConfig, *, dtype: torch.dtype) -> PreTrainedModel:
    """A model with seeded random weights, with transformers' own eager attention and experts."""
    config._experts_implementation = "eager"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").to(dtype).eval()
    _spread_sinks(model)
    model.generation_config.eos_token_id = None
    return model


def save_tiny_model(model_type: str, folder: Path, **overrides: Any) -> PreTrainedModel:
    """Builds a tiny model and saves it as a checkpoint that `LLM(folder)` loads."""
    model = tiny_model(model_type, **overrides)
    model.save_pretrained(folder)
    return model


def random_prompts(lengths: list[int], *, seed: int = 1) -> list[list[int]]:
    """Prompts of the given lengths over the tiny vocabulary, without the special ids."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(2, VOCAB_SIZE, (length,), generator=generator).tolist() for length in lengths
    ]


@torch.no_grad()
def generate_greedy(
    model: PreTrainedModel, prompts: list[list[int]], *, max_tokens: int
) -> list[list[int]]:
    """What transformers' own `generate` continues each prompt with, one at a time."""
    continuations = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_tokens,
            do_sample=False,
            pad_token_id=0,
        )
        continuations.append(output[0, len(prompt) :].tolist())
    return continuations


def _spread_sinks(model: PreTrainedModel) -> None:
    """Attention sinks are not part of every initialisation: draw them, so that they matter."""
    for name, parameter in model.named_parameters():
        if name.endswith("sinks"):
            torch.nn.init.normal_(parameter, std=1.0)
