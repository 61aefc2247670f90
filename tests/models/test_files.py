"""A folder or file that is not a safetensors model is refused with what it is and what to give instead."""

import json

import pytest

from pagedkv.errors import ModelLoadError
from pagedkv.models.files import check_model_files, resolve_model_folder


def test_a_gguf_file_and_a_folder_of_them_are_refused(tmp_path):
    (tmp_path / "model-q4.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelLoadError, match=r"GGUF.*safetensors"):
        resolve_model_folder(tmp_path / "model-q4.gguf", revision=None, with_code=False)
    with pytest.raises(ModelLoadError, match=r"model-q4\.gguf.*safetensors"):
        check_model_files(tmp_path)


def test_an_adapter_is_refused_and_its_base_model_named(tmp_path):
    config = {"peft_type": "LORA", "base_model_name_or_path": "some/base"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match=r"PEFT adapter.*some/base.*merge_and_unload"):
        check_model_files(tmp_path)


def test_a_folder_one_level_too_high_lists_the_models_below_it(tmp_path):
    for name in ("first", "snapshots/abc"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
    with pytest.raises(ModelLoadError, match=r"models below it: \S+first, \S+abc$"):
        check_model_files(tmp_path)


def test_an_empty_folder_is_said_to_be_no_model(tmp_path):
    with pytest.raises(ModelLoadError, match="is not a model: it has no config"):
        check_model_files(tmp_path)
