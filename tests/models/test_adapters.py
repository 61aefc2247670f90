"""Adapters bring attention classes with code of their own to the fast path, with the same results, and leave no trace elsewhere."""

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.gptj.modeling_gptj import GPTJAttention

from models.crowded import MAX_TOKENS, PROMPT_LENGTHS, run_engine, smallest_pool
from models.tiny import ADAPTED, generate_greedy, random_prompts, save_tiny_model, tiny_model
from pagedkv.attention.interface import PROBE_NAME, observe_attention
from pagedkv.models import prepare_model
from pagedkv.models.adapters import adapt_attention, use_implementation

VARIANTS = [
    *((model_type, {}) for model_type in ADAPTED),
    ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    ("falcon", {"multi_query": False, "parallel_attn": False}),
]


@pytest.mark.parametrize(("model_type", "overrides"), VARIANTS)
def test_ids_equal_those_of_generate_under_preemption(model_type, overrides, tmp_path):
    model = save_tiny_model(model_type, tmp_path, **overrides)
    prompts = random_prompts(PROMPT_LENGTHS)
    expected = generate_greedy(model, prompts, max_tokens=MAX_TOKENS)
    pool_bytes = smallest_pool(model)
    token_ids, stats, _ = run_engine(tmp_path, "auto", prompts, kv_cache_memory_bytes=pool_bytes)
    assert token_ids == expected
    assert stats["num_preemptions"] > 0
    assert not prepare_model(model, folder=None, max_model_len=64).on_slow_path


def test_a_falcon_of_the_new_architecture_stores_each_key_head_once():
    model = tiny_model("falcon", new_decoder_architecture=True, num_kv_heads=2)
    layers = prepare_model(model, folder=None, max_model_len=64).geometry.layers
    assert [(layer.num_query_heads, layer.num_kv_heads) for layer in layers] == [(4, 2)] * 4


def test_a_falcon_with_linear_biases_keeps_its_own_attention():
    model = tiny_model("falcon", alibi=True)
    assert not adapt_attention(model)
    assert prepare_model(model, folder=None, max_model_len=64).on_slow_path


def test_a_model_that_still_misses_the_fast_path_gets_its_own_attention_back():
    model = tiny_model("gptj")
    prompts = random_prompts([9, 4])
    expected = generate_greedy(model, prompts, max_tokens=MAX_TOKENS)

    class OtherAttention(GPTJAttention):
        """No adapter knows it."""

    model.transformer.h[2].attn.__class__ = OtherAttention
    loaded = prepare_model(model, folder=None, max_model_len=64)
    assert loaded.on_slow_path
    assert not any("_attn" in vars(module) for module in model.modules())
    assert generate_greedy(model, prompts, max_tokens=MAX_TOKENS) == expected


@pytest.mark.parametrize("model_type", ADAPTED)
def test_queries_and_keys_have_the_dtype_of_values_in_16_bits(model_type, tmp_path):
    save_tiny_model(model_type, tmp_path)
    # Loaded, not converted: loading leaves rotary tables in float32.
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert adapt_attention(model)
    use_implementation(model, PROBE_NAME)
    dtypes = []

    def note(module, query, key, value, mask, kwargs):
        dtypes.append({query.dtype, key.dtype, value.dtype})
        return value.repeat_interleave(query.shape[1] // value.shape[1], 1).transpose(1, 2)

    with torch.inference_mode(), observe_attention(note):
        model(input_ids=torch.tensor([[5, 6, 7]]), use_cache=False)
    assert dtypes == [{torch.bfloat16}] * 4
