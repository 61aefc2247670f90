"""Checkpoints as they are found in the wild load as transformers loads them, and generate the same ids."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from models.tiny import generate_greedy, random_prompts, save_tiny_model, tiny_model
from pagedkv import LLM, SamplingParams
from pagedkv.errors import ModelLoadError

PROMPTS = random_prompts([5, 20, 33])
MAX_TOKENS = 6
GREEDY = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)

# The configuration of a Llama as transformers 4.31 wrote it.
LLAMA_4_31 = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 96,
    "max_position_embeddings": 128,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "transformers_version": "4.31.0",
    "use_cache": True,
    "vocab_size": 199,
}


def open_llm(folder, **arguments):
    return LLM(folder, skip_tokenizer_init=True, kv_cache_memory=8 << 20, **arguments)


def generate(folder, **arguments):
    with open_llm(folder, **arguments) as llm:
        outputs = llm.generate(prompt_token_ids=PROMPTS, sampling_params=GREEDY, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def load_with_transformers(folder, **arguments):
    return AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", **arguments
    ).eval()


def assert_same_ids(folder, *, dtype="auto", **arguments):
    model = load_with_transformers(folder, dtype=dtype)
    expected = generate_greedy(model, PROMPTS, max_tokens=MAX_TOKENS)
    assert generate(folder, dtype=dtype, **arguments) == expected
    return expected


def edit_json(path, **changes):
    """Sets the fields that have a value and removes those that are None."""
    content = json.loads(path.read_text()) | changes
    path.write_text(
        json.dumps({name: value for name, value in content.items() if value is not None})
    )


def edit_weights(folder, edit):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def save_sharded(model, folder):
    model.save_pretrained(folder, max_shard_size="200KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    return shards


def test_shards_with_an_index(tmp_path):
    save_sharded(tiny_model("llama"), tmp_path)
    assert_same_ids(tmp_path)


@pytest.mark.parametrize("model_type", ["qwen2", "gemma2"])
def test_a_tied_head_is_not_in_the_file(model_type, tmp_path):
    save_tiny_model(model_type, tmp_path, tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert_same_ids(tmp_path)


@pytest.mark.parametrize("is_equal", [True, False])
def test_a_tied_configuration_with_a_head_in_the_file(is_equal, tmp_path):
    save_tiny_model("llama", tmp_path, tie_word_embeddings=True)

    def add_head(tensors):
        embedding = tensors["model.embed_tokens.weight"]
        tensors["lm_head.weight"] = embedding.clone() if is_equal else embedding.flip(0)

    edit_weights(tmp_path, add_head)
    assert_same_ids(tmp_path)


def test_weights_of_two_dtypes(tmp_path):
    save_tiny_model("llama", tmp_path, dtype=torch.bfloat16)

    def widen_norms(tensors):
        for name in tensors:
            if "norm" in name:
                tensors[name] = tensors[name].float() * 1.2345

    edit_weights(tmp_path, widen_norms)
    assert_same_ids(tmp_path, dtype="float32")
    theirs = {parameter.dtype for parameter in load_with_transformers(tmp_path).parameters()}
    with open_llm(tmp_path, fuse_projections=False) as llm:
        loaded = llm.llm_engine.parts.loaded
        assert {parameter.dtype for parameter in loaded.model.parameters()} == theirs
        assert loaded.dtype == torch.bfloat16


def test_keys_that_old_versions_saved_are_left_unused(tmp_path):
    save_tiny_model("llama", tmp_path)

    def add_frequencies(tensors):
        for layer in range(4):
            name = f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"
            tensors[name] = torch.full((8,), 7.0)

    edit_weights(tmp_path, add_frequencies)
    assert_same_ids(tmp_path)


def test_gpt2s_own_checkpoint_has_bare_names_and_masks(tmp_path):
    model = tiny_model("gpt2", tie_word_embeddings=True)
    model.save_pretrained(tmp_path)

    def as_openai_saved(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        for layer in range(4):
            tensors[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 256, 256).tril()

    edit_weights(tmp_path, as_openai_saved)
    assert assert_same_ids(tmp_path) == generate_greedy(model, PROMPTS, max_tokens=MAX_TOKENS)


def test_other_formats_of_the_same_weights_are_not_read(tmp_path):
    save_sharded(tiny_model("llama"), tmp_path)
    (tmp_path / "original").mkdir()
    for name in ("original/consolidated.safetensors", "consolidated.safetensors", "model.gguf"):
        (tmp_path / name).write_bytes(b"not to be read")
    (tmp_path / "pytorch_model.bin").write_bytes(b"not to be read")
    assert_same_ids(tmp_path)


def test_one_file_wins_over_shards_as_in_transformers(tmp_path):
    shards = save_sharded(tiny_model("llama"), tmp_path)
    tensors = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    by_shards = assert_same_ids(tmp_path)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].flip(0).contiguous()
    save_file(tensors, tmp_path / "model.safetensors")
    assert assert_same_ids(tmp_path) != by_shards
    # So a shard that is missing is not missed.
    shards[0].unlink()
    assert_same_ids(tmp_path)


def test_the_configuration_may_name_the_weight_file(tmp_path):
    save_tiny_model("llama", tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    edit_json(tmp_path / "config.json", transformers_weights="other.safetensors")
    assert_same_ids(tmp_path)
    edit_json(tmp_path / "config.json", transformers_weights="missing.safetensors")
    with pytest.raises(ModelLoadError, match=r"missing\.safetensors' is missing"):
        open_llm(tmp_path)


def test_a_shard_that_is_missing_or_cut_short_is_named(tmp_path):
    shards = save_sharded(tiny_model("llama"), tmp_path)
    whole = shards[1].read_bytes()
    shards[1].write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelLoadError, match=rf"{shards[1].name}' is damaged or cut short"):
        open_llm(tmp_path)
    shards[1].unlink()
    with pytest.raises(ModelLoadError, match=rf"{shards[1].name}' is missing; download"):
        open_llm(tmp_path)


@pytest.mark.parametrize("name", ["weight_map", "metadata"])
def test_an_index_that_is_incomplete_is_named(name, tmp_path):
    save_sharded(tiny_model("llama"), tmp_path)
    edit_json(tmp_path / "model.safetensors.index.json", **{name: None})
    with pytest.raises(ModelLoadError, match=rf"index\.json' has no object '{name}'"):
        open_llm(tmp_path)


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        {"type": "linear", "factor": 2.0},
        {"type": "dynamic", "factor": 2.0},
        {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    ],
)
def test_a_configuration_of_transformers_4(scaling, tmp_path):
    save_tiny_model("llama", tmp_path)
    (tmp_path / "generation_config.json").unlink()
    config = tmp_path / "config.json"
    ids = []
    for theta in (10_000.0, 50.0):
        config.write_text(json.dumps(LLAMA_4_31 | {"rope_theta": theta, "rope_scaling": scaling}))
        # Up to this length dynamic frequencies are those of transformers; beyond, ours are fixed.
        ids.append(assert_same_ids(tmp_path, max_model_len=128))
    assert ids[0] != ids[1]


def test_the_dtype_under_its_name_in_transformers_4(tmp_path):
    save_tiny_model("llama", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_4_31 | {"torch_dtype": "bfloat16"}))
    with open_llm(tmp_path) as llm:
        assert llm.llm_engine.parts.loaded.dtype == torch.bfloat16


def test_a_long_rope_as_transformers_4_wrote_it(tmp_path):
    factors = {"short_factor": [1.5] * 8, "long_factor": [4.0] * 8}
    save_tiny_model("phi3", tmp_path)
    changes = {"rope_parameters": None, "architectures": None, "dtype": None, "rope_theta": 1e4}
    edit_json(
        tmp_path / "config.json",
        rope_scaling={"type": "longrope", **factors},
        original_max_position_embeddings=64,
        torch_dtype="float32",
        **changes,
    )
    short = assert_same_ids(tmp_path, max_model_len=64)
    assert generate(tmp_path, max_model_len=65) != short


def test_sampling_fields_of_an_old_config_json(tmp_path):
    save_tiny_model("llama", tmp_path)
    (tmp_path / "generation_config.json").unlink()
    sampling = {"do_sample": True, "temperature": 0.7, "top_k": 5, "max_length": 50}
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_4_31 | sampling))
    with open_llm(tmp_path) as llm:
        assert llm.get_default_sampling_params() == SamplingParams(temperature=0.7, top_k=5)
        assert llm.llm_engine.parts.eos_token_ids == (2,)
    assert_same_ids(tmp_path)


def test_each_of_several_ending_ids_ends_a_sequence(tmp_path):
    save_tiny_model("llama", tmp_path)
    free = generate(tmp_path)
    last = sorted({ids[1] for ids in free})
    assert len(set(last)) > 1
    edit_json(tmp_path / "generation_config.json", eos_token_id=last)
    ended = assert_same_ids(tmp_path)
    assert [ids[-1] for ids in ended if len(ids) < MAX_TOKENS]
    for ids, whole in zip(ended, free, strict=True):
        first = next(i for i, token_id in enumerate(whole) if token_id in last)
        assert ids == whole[: first + 1]


def mapped_ranges(folder):
    """The address ranges that this process maps of a checkpoint's weight files."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    addresses = [line.split()[0].split("-") for line in lines if line.endswith(".safetensors")]
    assert any(str(folder) in line for line in lines)
    return [range(int(low, 16), int(high, 16)) for low, high in addresses]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no list of mappings")
def test_weights_are_used_where_the_file_is_mapped_without_a_copy(tmp_path):
    save_sharded(tiny_model("llama", dtype=torch.bfloat16, hidden_size=128), tmp_path)
    with open_llm(tmp_path, cpu_kernels=False, fuse_projections=False) as llm:
        parameters = list(llm.llm_engine.parts.loaded.model.parameters())
        ranges = mapped_ranges(tmp_path)
        assert all(any(p.data_ptr() in mapped for mapped in ranges) for p in parameters)
