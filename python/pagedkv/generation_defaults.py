"""What a checkpoint's author recommends for generation: the parameters of requests that bring none, and ending ids."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pagedkv.errors import ModelLoadError, unknown_parameter
from pagedkv.json_files import read_json_object
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


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDefaults:
    """What holds for requests that do not say otherwise.

    Attributes:
        fields: the fields of `SamplingParams` that the author or the overrides set.
        params: the parameters of a request that brings none; unset fields have the defaults of `SamplingParams`.
        eos_token_ids: the ids that the file says end a sequence, ascending.
    """

    fields: Mapping[str, Any]
    params: SamplingParams
    eos_token_ids: tuple[int, ...]


def check_generation_config(source: str | Path, overrides: Mapping[str, Any] | None) -> None:
    """Checks the two settings as far as that can be done without the model.

    Args:
        source: as for `load_generation_defaults`.
        overrides: as for `load_generation_defaults`.

    Raises:
        ModelLoadError: the file in the folder cannot be read, or holds a value that cannot be sampled with.
        UnknownParameterError: a name among the overrides that is no sampling field.
        TypeError: an override of the wrong type.
        ValueError: an override out of range, or a folder without the file.
    """
    load_generation_defaults(None, source=source, overrides=overrides)


def load_generation_defaults(
    folder: Path | None, *, source: str | Path, overrides: Mapping[str, Any] | None
) -> GenerationDefaults:
    """What a checkpoint, or the settings in its stead, recommend; ``do_sample: false`` means greedy.

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
    content = {} if path is None else read_json_object(path)
    fields = _sampling_fields(content)
    try:
        SamplingParams(**fields)
        eos_token_ids = listed_token_ids(content.get("eos_token_id"))
    except (TypeError, ValueError) as error:
        msg = f"{str(path)!r} cannot be sampled with: {error}; set generation_config='neutral' to ignore it"
        raise ModelLoadError(msg) from error
    given = dict(overrides or {})
    for name in given:
        if name not in _FIELDS and name != "do_sample":
            raise unknown_parameter(_OWNER, name, [*_FIELDS, "do_sample"])
    fields |= _sampling_fields(given)
    return GenerationDefaults(
        fields=fields, params=SamplingParams(**fields), eos_token_ids=eos_token_ids
    )


def listed_token_ids(*eos_token_ids: Any) -> tuple[int, ...]:
    """The ids that values of ``eos_token_id`` name, ascending: each none, one or a list; negative ones mean none.

    Raises:
        ModelLoadError: a value is something else.
    """
    found: set[int] = set()
    for value in eos_token_ids:
        listed = value if isinstance(value, list | tuple) else [] if value is None else [value]
        if not all(isinstance(token_id, int) for token_id in listed):
            msg = f"eos_token_id must be an int or a list of ints, got {value!r}"
            raise ModelLoadError(msg)
        found.update(listed)
    return tuple(sorted(token_id for token_id in found if token_id >= 0))


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
