"""Rotary embeddings whose frequencies depend on the length of what runs.

Two kinds choose their frequencies from the largest position of the whole batch: ``dynamic`` stretches them as sequences
grow, ``longrope`` switches between a short and a long set. In a flattened batch one long sequence would change the
result of every other, and keys cached earlier would no longer fit. So the choice is made once, for the longest context
the engine admits, and frozen.
"""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING, Any

from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

if TYPE_CHECKING:
    import torch
    from torch import nn

logger = logging.getLogger(__name__)

# Any name that transformers' `dynamic_rope_update` does not act on.
_FROZEN = "frozen"


def freeze_rope(model: nn.Module, *, max_model_len: int) -> int:
    """Fixes every length-dependent rotary embedding of ``model`` for contexts up to ``max_model_len``.

    Returns:
        How many there were.
    """
    num_frozen = 0
    module: Any  # transformers' own attributes are untyped
    for module in model.modules():
        rope_type = getattr(module, "rope_type", None)
        if isinstance(rope_type, str) and _depends_on_length(rope_type):
            _fix_frequencies(module, rope_type, layer_type=None, max_model_len=max_model_len)
            module.rope_type = _FROZEN
            num_frozen += 1
        elif isinstance(rope_type, dict):
            for layer_type, name in rope_type.items():
                if _depends_on_length(name):
                    _fix_frequencies(
                        module, name, layer_type=layer_type, max_model_len=max_model_len
                    )
                    rope_type[layer_type] = _FROZEN
                    num_frozen += 1
    if num_frozen:
        logger.info("rotary embedding fixed for contexts of up to %d tokens", max_model_len)
    return num_frozen


def _depends_on_length(rope_type: str) -> bool:
    return "dynamic" in rope_type or rope_type == "longrope"


def _fix_frequencies(
    module: Any, rope_type: str, *, layer_type: str | None, max_model_len: int
) -> None:
    """Computes the frequencies for ``max_model_len`` and stores them where the module looks for them.

    Args:
        module: The rotary embedding. Its attributes are transformers' own and untyped.
        rope_type: ``dynamic`` or ``longrope``.
        layer_type: The kind of layer, for embeddings that keep one set for each.
        max_model_len: The longest context.
    """
    prefix = "" if layer_type is None else f"{layer_type}_"
    current: torch.Tensor = getattr(module, f"{prefix}inv_freq")
    keyword = {} if layer_type is None else {"layer_type": layer_type}
    frequencies, attention_scaling = ROPE_INIT_FUNCTIONS[rope_type](
        module.config, current.device, seq_len=max_model_len, **keyword
    )
    module.register_buffer(f"{prefix}inv_freq", frequencies.to(current.dtype), persistent=False)
    setattr(module, f"{prefix}attention_scaling", attention_scaling)
    if layer_type is None and "long_mscale" in module.config.rope_parameters:
        _fix_magnitude(module, max_model_len=max_model_len)


def _fix_magnitude(module: Any, *, max_model_len: int) -> None:
    """Makes both magnitudes of an embedding that chooses one by length in its own forward (phimoe) the same."""
    config = copy.deepcopy(module.config)
    parameters = config.rope_parameters
    is_long = max_model_len > parameters["original_max_position_embeddings"]
    magnitude = parameters["long_mscale" if is_long else "short_mscale"]
    parameters["long_mscale"] = parameters["short_mscale"] = magnitude
    module.config = config
