"""The exceptions pagedkv raises on purpose.

A mistake in an argument is a plain ``ValueError`` or ``TypeError`` and is raised before anything
starts; a full pool is never an exception; what is left is here.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class PagedKVError(Exception):
    """The base class of every error that is pagedkv's own."""


class ModelLoadError(PagedKVError, ValueError):
    """A model or tokenizer cannot be loaded; the message names the file or name and a remedy."""


class UnsupportedModelError(ModelLoadError):
    """A model keeps state, or attends in a way, that the paged KV cache cannot vouch for."""


class EngineClosedError(PagedKVError, RuntimeError):
    """An engine was used after ``close()``."""


class RequestTooLongError(PagedKVError, ValueError):
    """A request that could not run even alone: its prompt or its worst case is too long."""


class QueueFullError(PagedKVError, RuntimeError):
    """``max_num_waiting`` requests wait already; the same request can succeed later."""


class UnknownRequestError(PagedKVError, LookupError):
    """A request id that was never added, or whose output was taken or aborted."""


class UnknownParameterError(TypeError):
    """A keyword argument that does not exist; the message names the nearest one that does."""


def unknown_parameter(owner: str, name: str, known: Iterable[str]) -> UnknownParameterError:
    """Builds the error for an unknown keyword, with the nearest known name if one is near."""
    known_names = sorted(known)
    nearest = difflib.get_close_matches(name, known_names, n=1, cutoff=0.6)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else f"; known: {', '.join(known_names)}"
    return UnknownParameterError(f"{owner} has no parameter {name!r}{hint}")


def not_supported_yet(owner: str, name: str, value: object) -> ValueError:
    """Builds the error for a parameter of the classic API that has no effect here yet."""
    return ValueError(f"{owner}: {name}={value!r} is not supported yet; leave it at its default")
