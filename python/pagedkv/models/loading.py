"""From a model's name to a model that runs on the paged KV cache, or to the reason why not."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pagedkv.attention.interface import SHAPE_PROBE_NAME
from pagedkv.errors import ModelLoadError, UnsupportedModelError
from pagedkv.generation_defaults import listed_token_ids
from pagedkv.models.checks import check_config
from pagedkv.models.context_length import resolve_max_model_len
from pagedkv.models.experts import use_padded_experts
from pagedkv.models.files import check_model_files, resolve_model_folder
from pagedkv.models.geometry import KvGeometry, plan_geometry
from pagedkv.models.latent import use_latent_attention
from pagedkv.models.path import OWN_ATTENTION, choose_path, num_embeddings, num_hidden_layers
from pagedkv.models.probe import NotOnFastPathError, check_layer_count, probe
from pagedkv.models.rope import freeze_rope
from pagedkv.models.surgery import use_kernels

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PretrainedConfig, PreTrainedModel

    from pagedkv.models.fusion import FusionChoice

logger = logging.getLogger(__name__)

_DTYPES = {
    "float32": torch.float32,
    "float": torch.float32,
    "float16": torch.float16,
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model that is ready to run, and what the engine must know about it.

    Attributes:
        model: Runs on the path that was chosen, in evaluation mode, on ``device``.
        folder: Where its files are, for the tokenizer.
        model_type: The name of its architecture.
        geometry: Layers, KV groups and storages.
        max_model_len: The longest context admitted.
        context_length: The longest context the model is made for; None if it does not say.
        vocab_size: Token ids below it can be run and sampled.
        eos_token_ids: Ids that end a sequence, of the model's configurations (not of the tokenizer).
        dtype: Of the weights and of keys and values.
        device: Where it runs.
        batch_invariant: A row's result has the same bits whatever else is in the batch.
        row_multiple: Of how many rows a batch must be a multiple for that.
        on_slow_path: It computes its attention itself, over the keys and values of one sequence at a time.
    """

    model: PreTrainedModel
    folder: Path
    model_type: str
    geometry: KvGeometry
    max_model_len: int
    context_length: int | None
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    batch_invariant: bool
    row_multiple: int
    on_slow_path: bool


def load_model(
    name: str | Path,
    *,
    revision: str | None,
    dtype: str | torch.dtype,
    device: torch.device,
    max_model_len: int | None,
    trust_remote_code: bool,
    fuse_projections: FusionChoice = "auto",
    latent_kv_cache: bool = True,
    cpu_kernels: bool = True,
) -> LoadedModel:
    """Loads a causal language model and sets it up for the paged KV cache.

    Args:
        name: A folder, or a hub id.
        revision: Branch, tag or commit of a hub id.
        dtype: ``auto`` for the checkpoint's own, a name, or a torch dtype.
        device: Where to run.
        max_model_len: The longest context to admit; None for all the model is made for.
        trust_remote_code: Run Python code that the model brings.
        fuse_projections: As for `prepare_model`.
        latent_kv_cache: As for `prepare_model`.
        cpu_kernels: On a CPU, compute linear layers, norms, rotary embeddings and activations in kernels of pagedkv.

    Raises:
        ModelLoadError: Files are missing, damaged or of a kind that is not loaded.
        UnsupportedModelError: The model keeps state or attends in a way that cannot be vouched for.
        ValueError: ``dtype`` or ``max_model_len`` is out of range.
    """
    wanted_dtype = parse_dtype(dtype)
    folder = resolve_model_folder(name, revision=revision, with_code=trust_remote_code)
    check_model_files(folder)
    config = _load_config(folder, trust_remote_code=trust_remote_code)
    check_config(config, has_code=trust_remote_code and hasattr(config, "auto_map"))
    context = resolve_max_model_len(config, max_model_len)
    _probe_shapes(config, trust_remote_code=trust_remote_code)
    model = _load_weights(
        folder, config, dtype=wanted_dtype, trust_remote_code=trust_remote_code
    ).to(device)
    return prepare_model(
        model,
        folder=folder,
        max_model_len=context,
        fuse_projections=fuse_projections,
        latent_kv_cache=latent_kv_cache,
        cpu_kernels=cpu_kernels,
    )


def prepare_model(
    model: PreTrainedModel,
    *,
    folder: Path,
    max_model_len: int,
    fuse_projections: FusionChoice = "auto",
    latent_kv_cache: bool = True,
    cpu_kernels: bool = True,
) -> LoadedModel:
    """Probes a model that is in memory, freezes what depends on lengths, and chooses the path that it takes.

    Args:
        model: Loaded or built, in any attention implementation; changed in place.
        folder: Where its files are.
        max_model_len: The longest context to admit.
        fuse_projections: Run projections of the same tensor as one product: all, none, or ``auto`` for those that gain
            by it and give the same bits.
        latent_kv_cache: Cache the latents of latent attention rather than the keys and values expanded from them.
        cpu_kernels: On a CPU, compute linear layers, norms, rotary embeddings and activations in kernels of pagedkv.

    Raises:
        UnsupportedModelError: The model keeps state or attends in a way that cannot be vouched for.
    """
    config = model.config
    model_type = str(config.model_type)
    model.eval()
    freeze_rope(model, max_model_len=max_model_len)
    if latent_kv_cache:
        use_latent_attention(model)
    if model.device.type == "cpu":
        use_padded_experts(model)
        if cpu_kernels:
            use_kernels(model)
    path = choose_path(model, max_model_len=max_model_len, fuse_projections=fuse_projections)
    return LoadedModel(
        model=model,
        folder=folder,
        model_type=model_type,
        geometry=plan_geometry(path.layers, max_model_len=max_model_len),
        max_model_len=max_model_len,
        context_length=resolve_max_model_len(config, None),
        vocab_size=min(num_embeddings(model), path.num_logits),
        eos_token_ids=_eos_token_ids(model),
        dtype=model.dtype,
        device=model.device,
        batch_invariant=path.batch_invariant,
        row_multiple=path.row_multiple,
        on_slow_path=path.is_slow,
    )


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype | None:
    """The torch dtype that ``dtype`` names; None for ``auto``.

    Raises:
        ValueError: It is none that models run in.
    """
    if dtype == "auto":
        return None
    found = _DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found not in _DTYPES.values():
        msg = f"dtype must be one of auto, {', '.join(_DTYPES)}, got {dtype!r}"
        raise ValueError(msg)
    return found


def _load_config(folder: Path, *, trust_remote_code: bool) -> PretrainedConfig:
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"the configuration of {str(folder)!r} cannot be read: {error}"
        raise ModelLoadError(msg) from error
    return config


def _load_weights(
    folder: Path, config: PretrainedConfig, *, dtype: torch.dtype | None, trust_remote_code: bool
) -> PreTrainedModel:
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype="auto" if dtype is None else dtype,
            attn_implementation=OWN_ATTENTION,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        msg = f"the weights of {str(folder)!r} cannot be loaded: {error}"
        raise ModelLoadError(msg) from error
    for what in ("missing_keys", "mismatched_keys"):
        if report.get(what):
            names = sorted(str(name) for name in report[what])
            msg = (
                f"the weights of {str(folder)!r} do not fit its configuration: "
                f"{what.replace('_', ' ')} {', '.join(names[:3])}"
                f"{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
            )
            raise ModelLoadError(msg)
    loaded: PreTrainedModel = model
    return loaded


def _probe_shapes(config: PretrainedConfig, *, trust_remote_code: bool) -> None:
    """Refuses before any weight is read, where the model can be run without weights.

    Raises:
        UnsupportedModelError: As `prepare_model` would, a download or minutes of loading later.
    """
    bare = copy.deepcopy(config)
    # Other ways to run experts look at how many tokens each one got, which has no answer without data.
    bare._experts_implementation = "batched_mm"  # noqa: SLF001 (has no public setter before construction)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                bare, attn_implementation=SHAPE_PROBE_NAME, trust_remote_code=trust_remote_code
            ).eval()
            result = probe(
                model,
                input_ids=torch.zeros(4, dtype=torch.long),
                positions=torch.arange(4),
                model_type=str(config.model_type),
                max_model_len=4,
                with_masks=False,
            )
        check_layer_count(str(config.model_type), result.layers, num_hidden_layers(config))
    except NotOnFastPathError as error:
        logger.debug("no fast path by a probe without weights: %s", error)
    except UnsupportedModelError:
        raise
    except Exception as error:  # noqa: BLE001 (any failure here only means that the real probe decides)
        logger.debug("no probe without weights: %s: %s", type(error).__name__, error)


def _eos_token_ids(model: PreTrainedModel) -> tuple[int, ...]:
    """The union of what the generation configuration and the model's configuration name."""
    configs = (model.generation_config, model.config)
    return listed_token_ids(*(getattr(config, "eos_token_id", None) for config in configs))
