"""The files of a model: a folder on this machine or a repository on the hub, checked before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from pagedkv.errors import ModelLoadError
from pagedkv.json_files import read_json_object

_DOWNLOADED = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken"]
_NOT_DOWNLOADED = ["original/*", "consolidated*", "*.gguf", "*.onnx"]
# Folders named where the one given is too high.
_MAX_CANDIDATES = 5
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def resolve_model_folder(model: str | Path, *, revision: str | None, with_code: bool) -> Path:
    """The folder that holds the model's files; a hub id is downloaded, or taken from the local cache.

    Args:
        model: A folder, or an id such as ``organisation/name``.
        revision: Branch, tag or commit of a hub id.
        with_code: Fetch Python files too, for models with code of their own.

    Raises:
        ModelLoadError: There is no such folder or id, or the hub cannot be reached.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    name = str(model)
    if folder.exists():
        msg = f"model {name!r} is a file; give the folder that holds config.json and the weights"
        if folder.suffix == ".gguf":
            msg = (
                f"model {name!r} is a GGUF file, which is not loaded; give the folder of the "
                "safetensors checkpoint that it was made from"
            )
        raise ModelLoadError(msg)
    # An id has one slash at the most and does not begin like a path.
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or not name:
        msg = f"model folder {name!r} does not exist"
        raise ModelLoadError(msg)
    return _download(name, revision=revision, with_code=with_code)


def check_model_files(folder: Path) -> None:
    """Checks that a folder is a model with whole safetensors weights; reads only headers.

    Raises:
        ModelLoadError: config.json or weights are missing, weights are pickles, or a file is cut short.
    """
    if not (folder / "config.json").is_file():
        raise ModelLoadError(_why_no_model(folder))
    config = read_json_object(folder / "config.json")
    for path in _weight_files(folder, named=config.get("transformers_weights")):
        _check_weight_file(path)


def _why_no_model(folder: Path) -> str:
    if (folder / "adapter_config.json").is_file():
        base = read_json_object(folder / "adapter_config.json").get("base_model_name_or_path")
        return (
            f"{str(folder)!r} is a PEFT adapter, not a model; merge it into its base model "
            f"({base}) with peft's merge_and_unload() and save that"
        )
    if gguf := sorted(path.name for path in folder.glob("*.gguf")):
        return (
            f"{str(folder)!r} has weights in GGUF format only ({gguf[0]}), which is not loaded; give "
            "the folder of the safetensors checkpoint that they were made from"
        )
    below = sorted(
        {path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/config.json")}
    )
    if below:
        names = ", ".join(str(path) for path in below[:_MAX_CANDIDATES])
        more = f" and {len(below) - _MAX_CANDIDATES} more" if len(below) > _MAX_CANDIDATES else ""
        return f"{str(folder)!r} has no config.json; give one of the models below it: {names}{more}"
    hint = f"; {_download_hint(folder)}" if _hub_id(folder) else ""
    return f"{str(folder)!r} is not a model: it has no config.json{hint}"


def _weight_files(folder: Path, *, named: str | None) -> list[Path]:
    """The files that transformers reads: the one that the configuration names, else one file rather than shards."""
    if named is not None:
        path = folder / named
        return _shards(path) if path.name.endswith(".index.json") else [path]
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return _shards(index)
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        msg = (
            f"{str(folder)!r} has weights in pickle format only ({pickles[0]}), which can run code "
            "when loaded; convert them once with transformers: "
            "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)"
        )
        raise ModelLoadError(msg)
    hint = f"; {_download_hint(folder)}" if _hub_id(folder) else ""
    msg = (
        f"{str(folder)!r} has no weights: neither model.safetensors nor "
        f"model.safetensors.index.json{hint}"
    )
    raise ModelLoadError(msg)


def _shards(index: Path) -> list[Path]:
    content = read_json_object(index)
    for name in ("weight_map", "metadata"):
        if not isinstance(content.get(name), dict):
            msg = f"{str(index)!r} has no object {name!r}; {_download_hint(index.parent)}"
            raise ModelLoadError(msg)
    return [index.parent / str(name) for name in sorted(set(content["weight_map"].values()))]


def _check_weight_file(path: Path) -> None:
    if not path.is_file():
        msg = f"weight file {str(path)!r} is missing; {_download_hint(path.parent)}"
        raise ModelLoadError(msg)
    try:
        # Opening compares the header's offsets with the length of the file.
        with safe_open(path, framework="pt") as _:
            pass
    except (SafetensorError, OSError) as error:
        msg = f"weight file {str(path)!r} is damaged or cut short ({error}); {_download_hint(path.parent)}"
        raise ModelLoadError(msg) from error


def _hub_id(folder: Path) -> str | None:
    """The id of a model whose folder is a snapshot in a hub cache."""
    owner, _, name = folder.parent.parent.name.partition("--")
    is_snapshot = folder.parent.name == "snapshots" and owner == "models"
    return name.replace("--", "/") if is_snapshot else None


def _download_hint(folder: Path) -> str:
    hub_id = _hub_id(folder)
    if hub_id is None:
        return "download the model again"
    return f"the cached copy of {hub_id!r} is incomplete, complete it with: hf download {hub_id}"


def _download(name: str, *, revision: str | None, with_code: bool) -> Path:
    patterns = [*_DOWNLOADED, "*.py"] if with_code else _DOWNLOADED
    try:
        folder = snapshot_download(
            name, revision=revision, allow_patterns=patterns, ignore_patterns=_NOT_DOWNLOADED
        )
    except HFValidationError as error:
        msg = f"model {name!r} is neither a folder nor a valid hub id ({error})"
        raise ModelLoadError(msg) from error
    except LocalEntryNotFoundError as error:
        raise ModelLoadError(_why_not_cached(name, revision)) from error
    except (HfHubHTTPError, OSError) as error:
        msg = f"model {name!r} cannot be fetched from the hub: {error}"
        raise ModelLoadError(msg) from error
    return Path(folder)


def _why_not_cached(name: str, revision: str | None) -> str:
    why = "and the hub cannot be reached (offline, or HF_HUB_OFFLINE is set)"
    repository = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    commits = sorted(path.name for path in repository.glob("snapshots/*"))
    if not commits:
        return (
            f"model {name!r} is not a folder here, is not in the local hub cache, {why}; give a "
            "folder, or connect"
        )
    refs = repository / "refs"
    named = sorted(str(path.relative_to(refs)) for path in refs.rglob("*") if path.is_file())
    return (
        f"revision {revision or 'main'!r} of model {name!r} is not in the local hub cache, {why}; "
        f"pass a revision that is there ({', '.join([*named, *commits])}), or connect"
    )
