"""A checkpoint loads as it was saved, and everything wrong with a model's files has an error that says what and how."""

import json
import shutil

import pytest
import torch

from models.naive_engine import NaiveEngine
from models.tiny import generate_greedy, random_prompts, save_tiny_model
from pagedkv.errors import ModelLoadError
from pagedkv.models import load_model, parse_dtype

CPU = torch.device("cpu")


def load(name, **arguments):
    defaults = {
        "revision": None,
        "dtype": "auto",
        "device": CPU,
        "max_model_len": None,
        "trust_remote_code": False,
    }
    return load_model(name, **defaults | arguments)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    save_tiny_model("llama", folder)
    return folder


@pytest.fixture
def damaged(checkpoint, tmp_path):
    """A copy of the checkpoint to break."""
    return shutil.copytree(checkpoint, tmp_path / "model")


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "mixtral"])
def test_a_saved_model_generates_what_it_did_in_memory(model_type, tmp_path):
    model = save_tiny_model(model_type, tmp_path)
    prompts = random_prompts([5, 20])
    loaded = load(tmp_path)
    token_ids, _ = NaiveEngine(loaded, backend="torch").generate(prompts, max_tokens=6)
    assert token_ids == generate_greedy(model, prompts, max_tokens=6)
    assert loaded.folder == tmp_path
    assert (loaded.vocab_size, loaded.max_model_len, loaded.dtype) == (199, 256, torch.float32)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("auto", torch.bfloat16),
        ("float32", torch.float32),
        ("half", torch.float16),
        (torch.bfloat16, torch.bfloat16),
    ],
)
def test_dtype_is_the_checkpoints_own_or_what_was_asked_for(dtype, expected, tmp_path):
    save_tiny_model("llama", tmp_path, dtype=torch.bfloat16)
    loaded = load(tmp_path, dtype=dtype)
    assert loaded.dtype == loaded.model.dtype == expected


@pytest.mark.parametrize("dtype", ["float8", "int8", torch.int32])
def test_a_dtype_that_models_do_not_run_in_lists_those_they_do(dtype):
    with pytest.raises(ValueError, match="dtype must be one of auto, float32, float, float16"):
        parse_dtype(dtype)


def test_eos_ids_are_the_union_of_both_configurations(damaged):
    for name, value in (("config.json", 5), ("generation_config.json", [7, 3])):
        path = damaged / name
        content = json.loads(path.read_text()) | {"eos_token_id": value}
        path.write_text(json.dumps(content))
    assert load(damaged).eos_token_ids == (3, 5, 7)


def test_a_context_longer_than_the_models_is_refused_with_both_numbers(checkpoint):
    assert load(checkpoint, max_model_len=100).max_model_len == 100
    with pytest.raises(ValueError, match="max_model_len=257 is more than the 256 tokens"):
        load(checkpoint, max_model_len=257)
    with pytest.raises(ValueError, match="max_model_len must be at least 1, got 0"):
        load(checkpoint, max_model_len=0)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ModelLoadError, match=r"model folder '.*nothing' does not exist"):
        load(tmp_path / "nothing")


def test_a_hub_id_without_network_says_that_the_hub_cannot_be_reached():
    with pytest.raises(ModelLoadError, match=r"'nobody/nothing' .* hub cannot be reached"):
        load("nobody/nothing")


def test_a_name_that_is_neither_folder_nor_id_is_refused():
    with pytest.raises(ModelLoadError, match="neither a folder nor a valid hub id"):
        load("what is this?")


def test_a_file_is_no_model(damaged):
    with pytest.raises(ModelLoadError, match="is a file; give the folder"):
        load(damaged / "model.safetensors")


def test_a_folder_without_configuration_is_not_a_model(tmp_path):
    with pytest.raises(ModelLoadError, match=r"is not a model: it has no config\.json"):
        load(tmp_path)


def test_a_configuration_that_is_no_json_is_named(damaged):
    (damaged / "config.json").write_text("{")
    with pytest.raises(ModelLoadError, match=r"config\.json' cannot be read as JSON"):
        load(damaged)


def test_an_unknown_model_type_is_named(damaged):
    (damaged / "config.json").write_text('{"model_type": "no_such_model"}')
    with pytest.raises(ModelLoadError, match="no_such_model"):
        load(damaged)


def test_pickle_weights_are_refused_with_the_way_to_convert_them(damaged):
    (damaged / "model.safetensors").rename(damaged / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match=r"pickle format only .*save_pretrained"):
        load(damaged)


def test_a_folder_without_weights_is_refused(damaged):
    (damaged / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"has no weights: neither model\.safetensors"):
        load(damaged)


def test_a_truncated_weight_file_is_named(damaged):
    path = damaged / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelLoadError, match=r"model\.safetensors' is damaged or cut short"):
        load(damaged)


def test_a_missing_shard_is_named(damaged):
    (damaged / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (damaged / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelLoadError, match=r"model-00001-of-00002\.safetensors' is missing"):
        load(damaged)


def test_weights_that_lack_a_tensor_are_refused_rather_than_drawn_at_random(damaged):
    config = json.loads((damaged / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    with pytest.raises(ModelLoadError, match=r"missing keys .*layers\.4"):
        load(damaged)


def test_weights_of_another_size_are_refused(damaged):
    config = json.loads((damaged / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps(config | {"intermediate_size": 80}))
    with pytest.raises(ModelLoadError, match="weights"):
        load(damaged)
