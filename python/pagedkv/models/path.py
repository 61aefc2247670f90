"""The path that a model takes: its attention handed to the backends, or its own attention code over the paged cache.

The fast path is tried first; what cannot be watched there may still run slowly, see `pagedkv.models.slow_path`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from transformers.utils import logging as transformers_logging

from pagedkv.attention.interface import PROBE_NAME, RUNTIME_NAME
from pagedkv.models.adapters import adapt_attention, restore_attention, use_implementation
from pagedkv.models.cache_windows import check_cache_windows
from pagedkv.models.fusion import fuse_if_equal, watch_linears
from pagedkv.models.packing import unpack_weights
from pagedkv.models.padding import ROW_MULTIPLE
from pagedkv.models.probe import NotOnFastPathError, ProbeResult, check_layer_count, probe
from pagedkv.models.rows import check_rows_independent, find_row_multiple
from pagedkv.models.slow_path import probe_slow_path
from pagedkv.models.surgery import multiplies_in_kernels

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from pagedkv.models.fusion import FusionChoice
    from pagedkv.models.probe import ProbedLayer

logger = logging.getLogger(__name__)

# Tokens of a probe: few, and a number of rows whose quarter is padded like a batch.
_PROBE_TOKENS = 16

# The attention that every model brings: it is loaded with it and keeps it on the slow path.
OWN_ATTENTION = "eager"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPath:
    """How a model runs.

    Attributes:
        layers: In the order of their index.
        num_logits: Per token; some models pad their vocabulary.
        batch_invariant: A row's result has the same bits whatever else is in the batch.
        row_multiple: Of how many rows a batch must be a multiple for that.
        is_slow: Its own attention code runs, one sequence per forward pass.
    """

    layers: list[ProbedLayer]
    num_logits: int
    batch_invariant: bool
    row_multiple: int
    is_slow: bool


def choose_path(
    model: PreTrainedModel, *, max_model_len: int, fuse_projections: FusionChoice
) -> ModelPath:
    """Sets the model's attention to the backends, or to its own where they cannot stand in for it.

    Raises:
        UnsupportedModelError: Neither way gives what the model is meant to compute.
    """
    model_type = str(model.config.model_type)
    set_attention = partial(use_implementation if adapt_attention(model) else _set_attention, model)
    set_attention(PROBE_NAME)
    try:
        probed, row_multiple = _probe_model(
            model, max_model_len=max_model_len, fuse_projections=fuse_projections
        )
    except NotOnFastPathError as error:
        set_attention(OWN_ATTENTION)
        restore_attention(model)
        layers, num_logits = probe_slow_path(
            model, vocab_size=num_embeddings(model), max_model_len=max_model_len
        )
        unpack_weights(model, only_if_read=True)
        logger.warning(
            "model type %r runs on the slow path, because %s: each sequence of a step takes a forward "
            "pass of its own, in the model's own attention code; the results are the same, but a "
            "batch is no faster than its sequences one by one",
            model_type,
            error.reason,
        )
        return ModelPath(
            layers=layers,
            num_logits=num_logits,
            batch_invariant=False,
            row_multiple=ROW_MULTIPLE,
            is_slow=True,
        )
    set_attention(RUNTIME_NAME)
    if row_multiple is None:
        logger.info(
            "on this machine the last bits of a result of %r can depend on what else is in the batch",
            model_type,
        )
    return ModelPath(
        layers=list(probed.layers.values()),
        num_logits=probed.logits.shape[1],
        batch_invariant=row_multiple is not None,
        row_multiple=row_multiple or ROW_MULTIPLE,
        is_slow=False,
    )


def _probe_model(
    model: PreTrainedModel, *, max_model_len: int, fuse_projections: FusionChoice
) -> tuple[ProbeResult, int | None]:
    """Watches and checks the model; fuses its sibling projections on the way.

    Returns:
        What was seen, and of how many rows a batch must be a multiple for a row not to depend on it; None if it does
        even so.
    """
    model_type = str(model.config.model_type)
    num_tokens = min(_PROBE_TOKENS, max_model_len)
    # Spread over the vocabulary.
    stride = max(1, num_embeddings(model) // _PROBE_TOKENS)
    input_ids = torch.arange(num_tokens, device=model.device) * stride % num_embeddings(model)
    positions = torch.arange(num_tokens, device=model.device)

    def run(ids: torch.Tensor, at: torch.Tensor, *, with_masks: bool) -> ProbeResult:
        return probe(
            model,
            input_ids=ids,
            positions=at,
            model_type=model_type,
            max_model_len=max_model_len,
            with_masks=with_masks,
        )

    def run_rows(ids: torch.Tensor, at: torch.Tensor) -> ProbeResult:
        return run(ids, at, with_masks=False)

    with watch_linears(model) as calls:
        first = run(input_ids, positions, with_masks=True)
    unpack_weights(model, only_if_read=True)
    check_layer_count(model_type, first.layers, num_hidden_layers(model.config))
    check_cache_windows(model.config, first.layers, max_model_len=max_model_len)
    check_rows_independent(
        run_rows,
        first,
        input_ids=input_ids,
        positions=positions,
        model_type=model_type,
        max_model_len=max_model_len,
    )
    row_multiple = find_row_multiple(
        run_rows,
        first,
        input_ids=input_ids,
        positions=positions,
        smallest=1 if multiplies_in_kernels(model) else ROW_MULTIPLE,
    )
    fuse_if_equal(
        model,
        calls.siblings(model, num_rows=num_tokens),
        fuse_projections,
        run_rows,
        first,
        input_ids=input_ids,
        positions=positions,
        row_multiple=row_multiple,
    )
    return first, row_multiple


def num_hidden_layers(config: PretrainedConfig) -> int | None:
    """How many decoder layers a configuration declares, if it does."""
    count = getattr(config, "num_hidden_layers", None)
    return count if isinstance(count, int) else None


def num_embeddings(model: PreTrainedModel) -> int:
    """How many token ids the model has an embedding for."""
    embedding: Any = model.get_input_embeddings()
    return int(embedding.weight.shape[0])


def _set_attention(model: PreTrainedModel, name: str) -> None:
    """Without transformers' warning where the model has no choice: the probe sees that, and says what it leads to."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        model.set_attn_implementation(name)
    finally:
        transformers_logging.set_verbosity(verbosity)
