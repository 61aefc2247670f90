"""What a checkpoint's author set for sampling reaches the calls that bring no parameters, and no others."""

import json

import pytest

from pagedkv import LLM, SamplingParams
from pagedkv.errors import ModelLoadError, UnknownParameterError
from pagedkv.generation_defaults import load_generation_defaults

AUTHORS = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "max_new_tokens": 7}


def written(folder, name, content):
    (folder / name).write_text(json.dumps(content))
    return folder


def defaults(folder, source="auto", overrides=None):
    return load_generation_defaults(folder, source=source, overrides=overrides).params


def test_the_values_of_generation_config_are_taken_and_unset_ones_stay_neutral(tmp_path):
    written(tmp_path, "config.json", {"temperature": 0.1})
    written(tmp_path, "generation_config.json", AUTHORS | {"min_p": None, "eos_token_id": [1, 2]})
    expected = SamplingParams(temperature=0.6, top_p=0.9, top_k=20, max_tokens=7)
    assert defaults(tmp_path) == expected


def test_an_old_checkpoint_keeps_its_sampling_in_config_json(tmp_path):
    written(tmp_path, "config.json", {"model_type": "gpt2", "repetition_penalty": 1.2})
    assert defaults(tmp_path) == SamplingParams(repetition_penalty=1.2)


def test_do_sample_false_is_greedy(tmp_path):
    written(tmp_path, "generation_config.json", {"do_sample": False, "temperature": 0.6})
    assert defaults(tmp_path).is_greedy


def test_neutral_another_folder_and_overrides_replace_the_values(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    written(tmp_path, "generation_config.json", AUTHORS)
    written(other, "generation_config.json", {"top_k": 3})
    assert defaults(tmp_path, "neutral") == SamplingParams()
    assert defaults(tmp_path, other) == SamplingParams(top_k=3)
    assert defaults(tmp_path, other, {"top_k": 4, "top_p": 0.5}) == SamplingParams(
        top_k=4, top_p=0.5
    )


def test_bad_values_are_named_with_where_they_came_from(tmp_path):
    with pytest.raises(ValueError, match="a folder with generation_config"):
        defaults(tmp_path, "nowhere")
    with pytest.raises(UnknownParameterError, match="top_q"):
        defaults(tmp_path, overrides={"top_q": 0.5})
    with pytest.raises(ValueError, match="top_p"):
        defaults(tmp_path, overrides={"top_p": 5.0})
    written(tmp_path, "generation_config.json", {"temperature": -1})
    with pytest.raises(ModelLoadError, match=r"generation_config\.json.*temperature.*'neutral'"):
        defaults(tmp_path)
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ModelLoadError, match="cannot be read as JSON"):
        defaults(tmp_path)


def test_the_settings_are_refused_before_a_model_is_looked_for(tmp_path):
    with pytest.raises(ValueError, match=r"a folder with generation_config\.json, got 'nowhere'"):
        LLM(tmp_path / "no model", generation_config="nowhere")
    with pytest.raises(UnknownParameterError, match="top_q"):
        LLM(tmp_path / "no model", override_generation_config={"top_q": 0.5})
    with pytest.raises(ValueError, match="top_p"):
        LLM(tmp_path / "no model", override_generation_config={"top_p": 5.0})


@pytest.mark.parametrize(
    ("eos_token_id", "expected"), [(None, ()), (5, (5,)), ([7, 3, 7], (3, 7)), (-1, ())]
)
def test_ending_ids_may_be_none_one_or_several(eos_token_id, expected, tmp_path):
    written(tmp_path, "generation_config.json", {"eos_token_id": eos_token_id})
    loaded = load_generation_defaults(tmp_path, source="auto", overrides=None)
    assert loaded.eos_token_ids == expected


def test_an_ending_id_that_is_no_number_is_named_with_its_file(tmp_path):
    written(tmp_path, "generation_config.json", {"eos_token_id": "</s>"})
    with pytest.raises(ModelLoadError, match=r"generation_config\.json.*eos_token_id.*'</s>'"):
        defaults(tmp_path)


def test_generate_takes_the_defaults_and_explicit_parameters_stay_as_given():
    overrides = {"do_sample": False, "max_new_tokens": 3}
    with LLM("demo", kv_cache_memory=16 << 20, override_generation_config=overrides) as llm:
        assert llm.get_default_sampling_params() == SamplingParams(temperature=0.0, max_tokens=3)
        explicit = SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True)
        (by_default,) = llm.generate("Once upon", use_tqdm=False)
        (given,) = llm.generate("Once upon", explicit, use_tqdm=False)
    assert len(given.outputs[0].token_ids) == 5
    assert by_default.outputs[0].token_ids == given.outputs[0].token_ids[:3]


def test_another_folders_ending_ids_end_a_sequence_too(tmp_path):
    with LLM("demo", kv_cache_memory=16 << 20) as llm:
        (output,) = llm.generate("Once upon", SamplingParams(temperature=0.0), use_tqdm=False)
    token_ids = list(output.outputs[0].token_ids)
    assert token_ids[2] not in token_ids[:2]
    written(tmp_path, "generation_config.json", {"do_sample": False, "eos_token_id": token_ids[2]})
    with LLM("demo", kv_cache_memory=16 << 20, generation_config=tmp_path) as llm:
        (output,) = llm.generate("Once upon", use_tqdm=False)
    assert list(output.outputs[0].token_ids) == token_ids[:3]
    assert output.outputs[0].finish_reason == "stop"
