"""Latent attention caches the numbers of the paper, and continues prompts as over expanded keys and values.

Equal ids under chunks, preemption and poison: test_architectures.py and test_sweep.py, which run these architectures too.
"""

import logging

import pytest
import torch
from torch import nn

from models.naive_engine import NaiveEngine
from models.tiny import generate_greedy, random_prompts, save_tiny_model, tiny_config, tiny_model
from pagedkv import LLM
from pagedkv.attention import resolve_backend
from pagedkv.kv_cache import KvCache
from pagedkv.models import KvGroup, StorageShape, prepare_model
from pagedkv.models.geometry import plan_geometry
from pagedkv.models.latent import LatentAttention, use_latent_attention
from pagedkv.models.probe import ProbedLayer

CPU = torch.device("cpu")
LATENT_MODELS = [
    *("axk1", "deepseek_v2", "deepseek_v3", "glm4_moe_lite", "longcat_flash", "minicpm3", "youtu")
]
# Of tiny.py: a rank of 16 and a rotated part of 8.
RANK, ROPE = 16, 8
BACKENDS = sorted({"torch", resolve_backend("auto", CPU)})


def prepare(model, *, latent, max_model_len=256):
    return prepare_model(model, folder=None, max_model_len=max_model_len, latent_kv_cache=latent)


@pytest.mark.parametrize("model_type", LATENT_MODELS)
def test_a_token_takes_the_latent_and_the_rotated_key_once_per_layer(model_type):
    geometry = prepare(tiny_model(model_type), latent=True).geometry
    assert geometry.groups == (KvGroup("full", None, is_latent=True),)
    assert geometry.scheduler_groups == [("full", 0)]
    assert geometry.storages == (StorageShape(key_size=RANK + ROPE, value_size=0),) * 4
    assert geometry.bytes_per_block(block_size=8, dtype=torch.bfloat16) == 4 * (RANK + ROPE) * 8 * 2


@pytest.mark.parametrize("keys_in_columns", [False, True])
def test_the_memory_is_that_of_the_latents_and_values_are_a_part_of_the_keys(keys_in_columns):
    geometry = prepare(tiny_model("deepseek_v3"), latent=True).geometry
    cache = KvCache(
        geometry,
        num_blocks=5,
        block_size=16,
        dtype=torch.float32,
        device=CPU,
        keys_in_columns=keys_in_columns,
    )
    assert cache.nbytes == 5 * 16 * 4 * (RANK + ROPE) * 4
    layer = cache.layers[0]
    layer.key.copy_(torch.randn(layer.key.shape))
    assert torch.equal(layer.value, layer.key[..., :RANK])
    assert layer.value.data_ptr() == layer.key.data_ptr()
    assert layer.key.stride(-1) == 1


def test_the_engine_reports_the_tokens_that_latents_leave_room_for(tmp_path, caplog):
    save_tiny_model("deepseek_v3", tmp_path)
    num_tokens = {}
    for latent in (True, False):
        with (
            caplog.at_level(logging.INFO, logger="pagedkv"),
            LLM(
                str(tmp_path),
                skip_tokenizer_init=True,
                kv_cache_memory_bytes=1 << 20,
                latent_kv_cache=latent,
            ) as llm,
        ):
            num_tokens[latent] = llm.llm_engine.parts.kv_size.num_tokens
        assert f"KV cache size: {num_tokens[latent]:,} tokens" in caplog.text
    block_bytes = {True: 16 * 4 * (RANK + ROPE) * 4, False: 16 * 4 * 4 * (24 + 16) * 4}
    assert num_tokens == {
        latent: ((1 << 20) // num_bytes - 1) * 16 for latent, num_bytes in block_bytes.items()
    }


def test_the_sizes_of_deepseek_v2_are_those_of_its_paper():
    # Section 2.1.4, table 1: (d_c + d_h^R) numbers per token and layer, 512 + 64.
    layers = [
        ProbedLayer(
            layer_idx=layer_idx,
            num_query_heads=128,
            num_kv_heads=1,
            k_dim=576,
            v_dim=512,
            scale=1.0,
            softcap=None,
            has_sinks=False,
            kind="full",
            window=None,
            same_kv_as=None,
            is_latent=True,
        )
        for layer_idx in range(60)
    ]
    geometry = plan_geometry(layers, max_model_len=131_072)
    assert geometry.bytes_per_block(block_size=1, dtype=torch.bfloat16) == 60 * 576 * 2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("model_type", LATENT_MODELS)
def test_latent_and_expanded_cache_continue_a_mixed_batch_alike(model_type, backend):
    # Longer contexts than the other tests have, beside short ones.
    prompts = random_prompts([100, 3, 41, 1])
    results = {}
    for latent in (True, False):
        loaded = prepare(tiny_model(model_type), latent=latent)
        assert all(layer.is_latent == latent for layer in loaded.geometry.layers)
        engine = NaiveEngine(loaded, backend=backend, max_num_batched_tokens=64)
        results[latent] = engine.generate(prompts, max_tokens=4)
    assert results[True][0] == results[False][0]
    for latent, expanded in zip(results[True][1], results[False][1], strict=True):
        torch.testing.assert_close(torch.stack(latent), torch.stack(expanded), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_latents_stay_close_to_float32(dtype):
    prompts = random_prompts([40])
    expected = NaiveEngine(
        prepare(tiny_model("deepseek_v3", initializer_range=0.05), latent=True), backend="torch"
    ).generate(prompts, max_tokens=1)[1][0][0]
    half = prepare(tiny_model("deepseek_v3", initializer_range=0.05, dtype=dtype), latent=True)
    assert all(layer.is_latent for layer in half.geometry.layers)
    actual = NaiveEngine(half, backend="torch").generate(prompts, max_tokens=1)[1][0][0]
    assert (actual - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize("model_type", LATENT_MODELS)
def test_logits_have_the_same_bits_whatever_the_chunks_and_the_neighbours(model_type):
    loaded = prepare(tiny_model(model_type), latent=True)
    if model_type == "longcat_flash":
        # Its own experts multiply as many rows as chose them, padded by nobody.
        assert not prepare(tiny_model(model_type), latent=False).batch_invariant
        return
    assert loaded.batch_invariant
    backend = "cpu"
    prompts = random_prompts([30, 17, 3])
    together = NaiveEngine(loaded, backend=backend).generate(prompts, max_tokens=4)[1]
    for prompt, expected in zip(prompts, together, strict=True):
        alone = NaiveEngine(loaded, backend=backend, max_num_batched_tokens=13)
        logits = alone.generate([prompt], max_tokens=4)[1][0]
        assert torch.equal(torch.stack(logits), torch.stack(expected))


def test_the_model_by_itself_expands_its_keys_again():
    prompts = random_prompts([12])
    expected = generate_greedy(tiny_model("deepseek_v3"), prompts, max_tokens=5)
    model = prepare(tiny_model("deepseek_v3"), latent=True).model
    for name in ("sdpa", "eager"):
        model.set_attn_implementation(name)
        assert generate_greedy(model, prompts, max_tokens=5) == expected


@pytest.mark.parametrize("rope_interleave", [True, False])
@pytest.mark.parametrize("q_lora_rank", [None, 24])
def test_the_variants_of_the_family_agree_with_generate(rope_interleave, q_lora_rank):
    changes = {"rope_interleave": rope_interleave, "q_lora_rank": q_lora_rank, "v_head_dim": 20}
    model = tiny_model("deepseek_v3", **changes)
    prompts = random_prompts([20, 5])
    expected = generate_greedy(model, prompts, max_tokens=6)
    loaded = prepare(model, latent=True)
    assert loaded.geometry.layers[0].is_latent
    assert NaiveEngine(loaded, backend="torch").generate(prompts, max_tokens=6)[0] == expected


def break_values(module):
    module.expand_kv = lambda latent, rotated: tuple(
        part * factor
        for part, factor in zip(
            type(module).expand_kv(module, latent, rotated), (1, 2), strict=True
        )
    )


def break_keys(module):
    module.expand_kv = lambda latent, rotated: type(module).expand_kv(module, latent, rotated * 2)


def break_shapes(module):
    module.expand_kv = lambda latent, rotated: (latent, rotated)


def add_bias(module):
    module.kv_b_proj.bias = nn.Parameter(torch.ones(module.kv_b_proj.out_features))


@pytest.mark.parametrize("change", [break_values, break_keys, break_shapes, add_bias])
def test_a_module_that_expands_otherwise_keeps_its_expanded_cache(change):
    model = tiny_model("deepseek_v3")
    change(model.model.layers[0].self_attn)
    assert use_latent_attention(model) == 3
    assert not hasattr(model.model.layers[0].self_attn, "pagedkv_latent")


def test_other_models_are_left_alone():
    assert use_latent_attention(tiny_model("llama")) == 0


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_absorbed_scores_and_expanded_values_equal_those_of_the_formula(dtype):
    config = tiny_config("deepseek_v3")
    module = tiny_model("deepseek_v3", dtype=dtype).model.layers[0].self_attn
    maps = LatentAttention(module)
    generator = torch.Generator().manual_seed(0)
    heads, nope, v_dim = 4, config.qk_nope_head_dim, config.v_head_dim
    query = torch.randn(1, heads, 4, nope + ROPE, generator=generator).to(dtype)
    latent = torch.randn(1, 4, heads, RANK, generator=generator).to(dtype)
    absorbed, expanded = maps.absorb(query), maps.expand(latent)
    weight = module.kv_b_proj.weight.double().view(heads, nope + v_dim, RANK)
    for head in range(heads):
        for token in range(4):
            wanted = query[0, head, token, :nope].double() @ weight[head, :nope]
            tolerance = 1e-5 if dtype is torch.float32 else 1e-1
            torch.testing.assert_close(
                absorbed[0, head, token, :RANK].double(), wanted, rtol=1e-2, atol=tolerance
            )
            wanted = weight[head, nope:] @ latent[0, token, head].double()
            torch.testing.assert_close(
                expanded[0, token, head].double(), wanted, rtol=1e-2, atol=tolerance
            )
    assert torch.equal(absorbed[..., RANK:], query[..., nope:])
