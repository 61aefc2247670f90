"""A model in the hub's cache loads by its id without network, by every kind of revision, or says what is missing."""

import hashlib
import os

import pytest
from huggingface_hub import constants

from models.tiny import tiny_model
from pagedkv import LLM, SamplingParams
from pagedkv.errors import ModelLoadError
from pagedkv.models.files import check_model_files, resolve_model_folder

FIRST, SECOND = "a" * 40, "b" * 40
LAST_SHARD = "model-00003-of-00003.safetensors"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    tiny_model("llama").save_pretrained(folder, max_shard_size="200KB")
    assert (folder / LAST_SHARD).is_file()
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Where the hub's library looks; it reads HF_HOME once, at its import."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def put_in_cache(cache, source, *, commits=(FIRST,), refs, without=()):
    """Files under the hashes of their contents, linked from snapshots, as the hub's library lays them out."""
    repository = cache / "models--org--name"
    (repository / "blobs").mkdir(parents=True)
    for commit in commits:
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True)
        for path in source.iterdir():
            if path.name in without:
                continue
            blob = repository / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
            blob.write_bytes(path.read_bytes())
            (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))
    for ref, commit in refs.items():
        (repository / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
        (repository / "refs" / ref).write_text(commit)
    return repository


def resolve(revision=None):
    folder = resolve_model_folder("org/name", revision=revision, with_code=False)
    check_model_files(folder)
    return folder


def test_an_id_loads_and_generates_as_its_folder_does(cache, source):
    put_in_cache(cache, source, refs={"main": FIRST})
    ids = []
    for name in (source, "org/name"):
        with LLM(name, skip_tokenizer_init=True, kv_cache_memory=8 << 20) as llm:
            params = SamplingParams(temperature=0.0, max_tokens=5)
            (output,) = llm.generate([[3, 4, 5]], params, use_tqdm=False)
            ids.append(list(output.outputs[0].token_ids))
    assert ids[0] == ids[1]


@pytest.mark.parametrize(
    ("revision", "commit"),
    [(None, FIRST), ("main", FIRST), ("v1.0", SECOND), ("pr/1", SECOND), (SECOND, SECOND)],
)
def test_branch_tag_and_commit_name_a_snapshot(revision, commit, cache, source):
    refs = {"main": FIRST, "v1.0": SECOND, "pr/1": SECOND}
    put_in_cache(cache, source, commits=(FIRST, SECOND), refs=refs)
    assert resolve(revision).name == commit


def test_a_revision_that_is_not_there_lists_those_that_are(cache, source):
    put_in_cache(cache, source, refs={"main": FIRST, "v1.0": FIRST})
    with pytest.raises(ModelLoadError, match=rf"revision 'v2' .*there \(main, v1\.0, {FIRST}\)"):
        resolve("v2")


def test_a_commit_without_a_branch_is_found_by_its_hash_alone(cache, source):
    put_in_cache(cache, source, refs={})
    assert resolve(FIRST).name == FIRST
    with pytest.raises(ModelLoadError, match=rf"revision 'main' .*there \({FIRST}\)"):
        resolve()


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "is not a model: it has no config"),
        ("model.safetensors.index.json", "has no weights"),
        (LAST_SHARD, rf"{LAST_SHARD}' is missing"),
    ],
)
def test_a_partial_snapshot_says_how_to_complete_it(missing, message, cache, source):
    put_in_cache(cache, source, refs={"main": FIRST}, without=(missing,))
    with pytest.raises(ModelLoadError, match=rf"{message}.*: hf download org/name$"):
        resolve()


def test_a_link_without_its_blob_is_a_missing_file(cache, source):
    repository = put_in_cache(cache, source, refs={"main": FIRST})
    (repository / "snapshots" / FIRST / LAST_SHARD).resolve().unlink()
    with pytest.raises(ModelLoadError, match=rf"{LAST_SHARD}' is missing; .*hf download org/name"):
        resolve()


def test_the_folder_of_all_snapshots_is_one_level_too_high(cache, source):
    repository = put_in_cache(cache, source, refs={"main": FIRST})
    folder = resolve_model_folder(repository, revision=None, with_code=False)
    with pytest.raises(ModelLoadError, match=rf"models below it: \S+{FIRST}$"):
        check_model_files(folder)
