"""The sampling that a checkpoint's author recommends, as the parameters of requests that bring none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pagedkv.errors import ModelLoadError, unknown_parameter
from pagedkv.sampling_params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Mapping

AUTO = "auto"
NEUTRAL = "neutral"

_OWNER = "override_generation_config"

# Names in generation_config.json, and what SamplingParams calls them.
_FIELDS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}


def load_default_params(
    folder: Path | None, *, source: str | Path, overrides: Mapping[str, Any] | None
) -> SamplingParams:
    """The parameters of requests that bring none.

    Fields that the author left unset have the defaults of `SamplingParams`; ``do_sample: false`` means greedy.

    Args:
        folder: the model's files; None for a model that has none.
        source: "auto" for the model's own, "neutral" for none, or a folder with a generation_config.json.
        overrides: values above those of the source, by the names of generation_config.json.

    Raises:
        ModelLoadError: the file cannot be read, or holds a value that cannot be sampled with.
        UnknownParameterError: a name among the overrides that is no sampling field.
        TypeError: an override of the wrong type.
        ValueError: an override out of range, or a folder without the file.
    """
    path = _find_file(folder, source)
    values = {} if path is None else _sampling_fields(_read(path))
    try:
        SamplingParams(**values)
    except (TypeError, ValueError) as error:
        msg = f"{str(path)!r} cannot be sampled with: {error}; set generation_config='neutral' to ignore it"
        raise ModelLoadError(msg) from error
    given = dict(overrides or {})
    for name in given:
        if name not in _FIELDS and name != "do_sample":
            raise unknown_parameter(_OWNER, name, [*_FIELDS, "do_sample"])
    return SamplingParams(**(values | _sampling_fields(given)))


def _find_file(folder: Path | None, source: str | Path) -> Path | None:
    if source == NEUTRAL:
        return None
    if source != AUTO:
        path = Path(source).expanduser() / "generation_config.json"
        if not path.is_file():
            msg = (
                f"generation_config must be 'auto', 'neutral' or a folder with generation_config.json, "
                f"got {str(source)!r}"
            )
            raise ValueError(msg)
        return path
    if folder is None:
        return None
    # Checkpoints older than generation_config.json kept these fields in config.json.
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            return folder / name
    return None


def _sampling_fields(content: Mapping[str, Any]) -> dict[str, Any]:
    found = {
        ours: content[theirs] for theirs, ours in _FIELDS.items() if content.get(theirs) is not None
    }
    if content.get("do_sample") is False:
        found["temperature"] = 0.0
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{str(path)!r} cannot be read as JSON ({error})"
        raise ModelLoadError(msg) from error
    if not isinstance(content, dict):
        msg = f"{str(path)!r} must hold a JSON object, got {type(content).__name__}"
        raise ModelLoadError(msg)
    return content
