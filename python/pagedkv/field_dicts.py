"""Dataclasses of parameters, given as such or as a dict of their fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

from pagedkv.errors import unknown_parameter

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Params = TypeVar("Params", bound=DataclassInstance)


def of_fields(cls: type[Params], value: Any, *, name: str, others: str = " or a dict") -> Params:
    """``value`` itself if it is a ``cls``, or a ``cls`` of the dict that it is.

    Args:
        cls: A dataclass that checks its values.
        value: Whatever a caller gave.
        name: Of the argument, for messages.
        others: What may be given instead of a ``cls``, for messages.

    Raises:
        UnknownParameterError: a key that is no field.
        TypeError: a value of the wrong type.
        ValueError: as for the class.
    """
    if isinstance(value, cls):
        return value
    if not isinstance(value, Mapping):
        msg = f"{name} must be a {cls.__name__}{others}, got {value!r}"
        raise TypeError(msg)
    known = [field.name for field in fields(cls)]
    for key in value:
        if key not in known:
            raise unknown_parameter(cls.__name__, str(key), known)
    return cls(**value)
