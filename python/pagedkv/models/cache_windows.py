"""Do a model's masks and the cache that transformers makes for it forget at the same distance?

`generate` keeps no more keys of a layer than its configuration's window names. A model whose mask has no such window still
attends without one over a prompt, but with one over what it generated. Which of the two it was trained with, nobody can
tell from here, so contexts are admitted as far as both agree.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers.cache_utils import DynamicCache

from pagedkv.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PretrainedConfig

    from pagedkv.models.probe import ProbedLayer


def check_cache_windows(
    config: PretrainedConfig, layers: Mapping[int, ProbedLayer], *, max_model_len: int
) -> None:
    """Compares each layer's mask with the window of its cache in transformers.

    Args:
        config: The model's configuration.
        layers: What the probe saw, by index, with classified masks.
        max_model_len: The longest context.

    Raises:
        UnsupportedModelError: Within the longest context a mask reaches farther back than the cache.
    """
    for layer_idx, cached in enumerate(DynamicCache(config=config).layers):
        layer = layers.get(layer_idx)
        kept = getattr(cached, "sliding_window", None)
        if layer is None or not isinstance(kept, int):
            continue
        reach = max_model_len if layer.window is None else min(layer.window, max_model_len)
        if reach > kept:
            msg = (
                f"model type {str(config.model_type)!r} cannot run: layer {layer_idx} attends to "
                f"{reach} tokens, but transformers keeps the last {kept} of them when it generates; "
                f"pass max_model_len={kept} or less"
            )
            raise UnsupportedModelError(msg)
