"""Loading a tokenizer, and what it says when it cannot."""

import json

import pytest

from pagedkv.errors import ModelLoadError
from pagedkv.tokenizer import load_tokenizer
from text.zoo import tokenizer


@pytest.fixture
def folder(tmp_path):
    tokenizer("byte_level").hf_tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_a_saved_tokenizer_loads_and_encodes_as_before(folder):
    """Ids, special tokens and text survive the folder."""
    loaded = load_tokenizer(folder)
    original = tokenizer("byte_level")
    text = "The quick 日本語 fox"
    assert loaded.encode(text) == original.hf_tokenizer.encode(text)
    assert loaded.decode(loaded.encode(text)) == text
    assert loaded.vocab_size == original.vocab_size
    assert loaded.eos_token_ids == (original.hf_tokenizer.eos_token_id,)
    assert loaded.table is not None


def test_a_missing_folder_is_named(tmp_path):
    """A typo in a path is not looked up on the hub."""
    with pytest.raises(ModelLoadError, match=r"absent' does not exist; pass the folder"):
        load_tokenizer(tmp_path / "absent")
    with pytest.raises(ModelLoadError, match=r"'\./absent' does not exist"):
        load_tokenizer("./absent")


def test_a_file_is_not_a_folder(folder):
    """The file itself is a likely mistake."""
    with pytest.raises(ModelLoadError, match="is a file, not a folder"):
        load_tokenizer(folder / "tokenizer.json")


@pytest.mark.parametrize("model_type", ["gpt2", "qwen2", "gpt_neox"])
def test_a_model_without_tokenizer_files_is_refused(tmp_path, model_type):
    """Without files transformers makes an empty tokenizer, which would encode every prompt to nothing."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(ModelLoadError, match=r"has no tokenizer files.*skip_tokenizer_init"):
        load_tokenizer(tmp_path)


def test_an_empty_folder_is_refused(tmp_path):
    """Nothing to read, and the message says what to pass instead."""
    with pytest.raises(ModelLoadError, match=r"tokenizer files.*tokenizer="):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["", "{broken", '{"version": "1.0"}', "[]"])
def test_broken_files_are_refused(folder, content):
    """Truncated and foreign files raise one kind of error that names the folder."""
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ModelLoadError, match="cannot be read"):
        load_tokenizer(folder)


def test_the_hub_out_of_reach_is_explained():
    """Tests run offline, as do many servers."""
    with pytest.raises(ModelLoadError, match=r"cannot be fetched.*local folder"):
        load_tokenizer("somebody/absent-model")


def test_python_code_of_a_model_needs_consent(folder):
    """Code from a model's folder runs on request only."""
    config = {"auto_map": {"AutoTokenizer": ["custom.Custom", None]}, "tokenizer_class": "Custom"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match="pass trust_remote_code=True"):
        load_tokenizer(folder)


def test_a_lone_surrogate_is_refused_with_its_place():
    """Such a string cannot be written as UTF-8."""
    with pytest.raises(ValueError, match=r"lone surrogate '\\ud800' at index 2"):
        tokenizer("byte_level").encode("ab\ud800")


def test_a_token_of_its_own_keeps_its_leading_space():
    """For logprobs: what the token adds to a text, half a character as U+FFFD."""
    for kind in ("byte_level", "llama_style"):
        wrapper = tokenizer(kind)
        fox = wrapper.encode("The fox", add_special_tokens=False)[1:]
        assert "".join(map(wrapper.decode_token, fox)) == " fox"
    assert tokenizer("llama_style").decode_token(3 + 0xE2) == "\ufffd"
    assert tokenizer("llama_style").decode_token(10**6) == ""
    wrapper = tokenizer("word_piece")
    assert wrapper.decode_token(wrapper.encode("fox")[0])


@pytest.mark.parametrize("kind", ["byte_level", "word_piece"])
def test_an_empty_stop_string_is_refused(kind):
    """It would be complete before the first token."""
    with pytest.raises(ValueError, match=r"stop\[1\] must not be empty"):
        tokenizer(kind).make_text_decoder([], stop=["a", ""])


def test_one_string_is_not_a_list_of_stop_strings():
    """`stop="abc"` must not become three stop strings."""
    from pagedkv._core import TextDecoder

    with pytest.raises(TypeError):
        TextDecoder(
            tokenizer("byte_level").table,
            [],
            stop="abc",
            include_stop_str_in_output=False,
            skip_special_tokens=True,
        )


@pytest.mark.parametrize("value", [-1, 2**32, "a", None, 1.5])
def test_a_token_id_that_is_none_raises_and_leaves_the_text_usable(value):
    """Wrong types and ranges never reach the decoder."""
    decoder = tokenizer("byte_level").make_text_decoder([])
    with pytest.raises((TypeError, OverflowError)):
        decoder.push(value)
    decoder.push(tokenizer("byte_level").encode("a")[0])
    assert decoder.text == "a"
