"""How long a context a model is made for, and how long a one the engine admits."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig

logger = logging.getLogger(__name__)

_LENGTH_ATTRIBUTES = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "max_sequence_length",
    "seq_length",
    "max_target_positions",
)
_DEFAULT_WITHOUT_LIMIT = 4096


def resolve_max_model_len(config: PretrainedConfig, requested: int | None) -> int:
    """The longest context to admit: what was asked for, or all that the model is made for.

    Raises:
        ValueError: More was asked for than the model is made for, or no positive number.
    """
    limit = model_context_length(config)
    if requested is None:
        if limit is None:
            logger.info(
                "the model states no context length; using max_model_len=%d",
                _DEFAULT_WITHOUT_LIMIT,
            )
            return _DEFAULT_WITHOUT_LIMIT
        return limit
    if requested < 1:
        msg = f"max_model_len must be at least 1, got {requested}"
        raise ValueError(msg)
    if limit is not None and requested > limit:
        msg = (
            f"max_model_len={requested} is more than the {limit} tokens the model is made for; "
            f"pass {limit} or less"
        )
        raise ValueError(msg)
    return requested


def model_context_length(config: PretrainedConfig) -> int | None:
    """The context that the model's configuration states, rotary scaling included; None if it states none."""
    lengths = [
        length
        for attribute in _LENGTH_ATTRIBUTES
        if isinstance(length := getattr(config, attribute, None), int) and length > 0
    ]
    if not lengths:
        return None
    return max(_scaled(min(lengths), scaling) for scaling in _rope_scalings(config) or [{}])


def _rope_scalings(config: PretrainedConfig) -> list[dict[str, Any]]:
    """The rotary parameters, one set per kind of layer where they differ."""
    parameters = getattr(config, "rope_parameters", None)
    if not isinstance(parameters, dict):
        return []
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return nested or [parameters]


def _scaled(length: int, scaling: dict[str, Any]) -> int:
    """``length`` as stretched by one set of rotary parameters.

    ``llama3`` and ``longrope`` configurations state the stretched length already; ``linear`` and ``dynamic`` state the
    length before; ``yarn`` states the length before under a name of its own.
    """
    rope_type, factor = scaling.get("rope_type", "default"), scaling.get("factor")
    if not isinstance(factor, (int, float)) or factor <= 1:
        return length
    if rope_type in ("linear", "dynamic"):
        return int(length * factor)
    if rope_type == "yarn":
        original = scaling.get("original_max_position_embeddings") or length
        return max(length, int(original * factor))
    return length
