"""JSON files of a checkpoint, read with errors that name the file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pagedkv.errors import ModelLoadError

if TYPE_CHECKING:
    from pathlib import Path


def read_json_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        ModelLoadError: The file cannot be read, is no JSON, or holds something else than an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{str(path)!r} cannot be read as JSON ({error})"
        raise ModelLoadError(msg) from error
    if not isinstance(content, dict):
        msg = f"{str(path)!r} must hold a JSON object, got {type(content).__name__}"
        raise ModelLoadError(msg)
    return content
