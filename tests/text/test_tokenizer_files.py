"""Tokenizers and chat templates in every set of files that checkpoints come with."""

import json
import struct

import pytest

from pagedkv import tokenizer as tokenizer_module
from pagedkv.chat import render_chat
from pagedkv.errors import ModelLoadError
from pagedkv.tokenizer import load_tokenizer
from text.zoo import byte_level

TEXT = "The quick 日本語 fox"
MESSAGES = [{"role": "user", "content": "hello"}]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


@pytest.fixture(scope="module")
def original():
    return byte_level()


def write(folder, **files):
    """One file for each argument; the last underscore of its name stands for the dot."""
    for name, content in files.items():
        path = folder / ".".join(name.rsplit("_", 1))
        path.write_text(content if isinstance(content, str) else json.dumps(content))


def write_gpt2_files(folder, original, **files):
    """The files of GPT-2's first tokenizer: a vocabulary and merges, and no tokenizer.json."""
    model = json.loads(original.backend_tokenizer.to_str())["model"]
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in model["merges"])])
    write(folder, config_json={"model_type": "gpt2"}, vocab_json=model["vocab"], merges_txt=merges)
    write(folder, **files)


def test_tokenizer_json_alone(original, tmp_path):
    original.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path)
    assert loaded.encode(TEXT) == original.encode(TEXT)
    assert loaded.decode(loaded.encode(TEXT)) == TEXT
    assert loaded.eos_token_ids == ()


def test_special_tokens_in_a_file_of_their_own(original, tmp_path):
    original.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, special_tokens_map_json=SPECIAL | {"eos_token": {"content": "</s>"}})
    assert load_tokenizer(tmp_path).eos_token_ids == (original.eos_token_id,)


def test_vocabulary_and_merges_alone(original, tmp_path):
    write_gpt2_files(tmp_path, original, special_tokens_map_json=SPECIAL)
    loaded = load_tokenizer(tmp_path)
    assert loaded.encode(TEXT) == original.encode(TEXT)
    assert loaded.decode(loaded.encode(TEXT)) == TEXT
    assert loaded.eos_token_ids == (original.eos_token_id,)
    assert loaded.table is not None


def test_added_tokens_in_a_file_of_their_own(original, tmp_path):
    first = original.vocab_size
    write_gpt2_files(
        tmp_path,
        original,
        added_tokens_json={"<|im_end|>": first + 1, "<|im_start|>": first},
        special_tokens_map_json=SPECIAL | {"eos_token": "<|im_end|>"},
    )
    loaded = load_tokenizer(tmp_path)
    assert loaded.encode("fox<|im_start|>")[-1] == first
    assert loaded.eos_token_ids == (first + 1,)
    assert loaded.decode([first + 1]) == ""
    assert loaded.decode([first + 1], skip_special_tokens=False) == "<|im_end|>"


def test_merges_that_are_missing_are_an_error(original, tmp_path):
    write_gpt2_files(tmp_path, original)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(ModelLoadError, match=r"merges.*skip_tokenizer_init"):
        load_tokenizer(tmp_path)


def field(number, content):
    """A field of a protocol buffer that holds a string or a message shorter than 128 bytes."""
    return bytes([number << 3 | 2, len(content)]) + content


def sentencepiece_file():
    """A SentencePiece model: pieces of a text, a score and a kind."""
    score = struct.pack("<f", 0.0)
    pieces = [("<unk>", 2), ("<s>", 3), ("</s>", 3), ("▁", 1), ("▁the", 1)]
    return b"".join(
        field(1, field(1, text.encode()) + b"\x15" + score + bytes([3 << 3, kind]))
        for text, kind in pieces
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "tokenizer.model",
            sentencepiece_file(),
            r"SentencePiece file tokenizer\.model.*pip install sentencepiece protobuf",
        ),
        (
            "sentencepiece.bpe.model",
            sentencepiece_file(),
            r"SentencePiece file sentencepiece\.bpe\.model.*pip install",
        ),
        ("tokenizer.model", b"IQ== 0\nIg== 1\n", r"tiktoken file.*pip install tiktoken, or"),
    ],
)
def test_a_vocabulary_that_needs_a_package_names_it(name, content, message, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_module, "_is_installed", lambda module: False)
    write(tmp_path, config_json={"model_type": "llama"})
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelLoadError, match=message):
        load_tokenizer(tmp_path)


def test_a_hub_tokenizer_that_needs_a_package_is_not_said_to_be_unreachable(monkeypatch):
    from transformers import AutoTokenizer

    def fail(*_, **__):
        raise ValueError("`tiktoken` is required to read a `tiktoken` file. Install it.")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(ModelLoadError, match=r"'org/name' needs a package.*pip install sentencep"):
        load_tokenizer("org/name")


def test_a_sentencepiece_file_beside_tokenizer_json_needs_no_package(
    original, tmp_path, monkeypatch
):
    monkeypatch.setattr(tokenizer_module, "_is_installed", lambda module: False)
    original.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_file())
    assert load_tokenizer(tmp_path).encode(TEXT) == original.encode(TEXT)


def rendered(folder, **arguments):
    return render_chat(load_tokenizer(folder), MESSAGES, **arguments)


def template(mark):
    return f"{{% for message in messages %}}[{mark} {{{{ message['content'] }}}}]{{% endfor %}}"


@pytest.fixture
def folder(original, tmp_path):
    original.save_pretrained(tmp_path)
    return tmp_path


def set_template(folder, content):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": content}))


def test_one_template_in_the_tokenizers_configuration(folder):
    set_template(folder, template("config"))
    assert rendered(folder) == "[config hello]"


def test_named_templates_in_the_tokenizers_configuration(folder):
    named = [{"name": name, "template": template(name)} for name in ("default", "tool_use")]
    set_template(folder, named)
    assert rendered(folder) == "[default hello]"
    assert rendered(folder, chat_template="tool_use") == "[tool_use hello]"


def test_named_templates_without_a_default_are_listed(folder):
    named = [{"name": name, "template": template(name)} for name in ("rag", "tool_use")]
    set_template(folder, named)
    assert rendered(folder, chat_template="rag") == "[rag hello]"
    with pytest.raises(ValueError, match=r"no default.*'rag', 'tool_use'"):
        rendered(folder)


def test_a_template_file_wins_over_the_configuration(folder):
    set_template(folder, template("config"))
    (folder / "chat_template.jinja").write_text(template("file"))
    assert rendered(folder) == "[file hello]"


def test_further_templates_in_a_folder(folder):
    (folder / "chat_template.jinja").write_text(template("file"))
    more = folder / "additional_chat_templates"
    more.mkdir()
    (more / "rag.jinja").write_text(template("rag"))
    assert rendered(folder) == "[file hello]"
    assert rendered(folder, chat_template="rag") == "[rag hello]"


def test_a_template_that_is_no_jinja_is_an_error(folder):
    (folder / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(ValueError, match="chat template"):
        rendered(folder)


def test_a_misspelt_name_of_a_template_is_not_taken_for_a_template(folder):
    set_template(folder, [{"name": "rag", "template": template("rag")}])
    with pytest.raises(ValueError, match=r"one of the model's templates \(rag\), got 'ragg'"):
        rendered(folder, chat_template="ragg")


def test_the_path_of_a_template_is_not_taken_for_a_template(folder):
    set_template(folder, template("config"))
    with pytest.raises(ValueError, match=r"must be a Jinja template.*got './chat\.jinja'"):
        rendered(folder, chat_template="./chat.jinja")
