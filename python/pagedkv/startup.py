"""From a configuration to the parts of an engine."""

from __future__ import annotations

import logging
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pagedkv import _core
from pagedkv.attention import create_backend, prefers_columns, resolve_backend
from pagedkv.batch_runner import BatchRunner
from pagedkv.generation_defaults import load_generation_defaults
from pagedkv.grammars import GrammarCache
from pagedkv.kv_cache import KvCache
from pagedkv.kv_sizing import log_kv_size, size_kv_cache
from pagedkv.model_runner import ModelRunner
from pagedkv.models.files import resolve_model_folder
from pagedkv.models.loading import load_model
from pagedkv.pages import keep_freed_memory
from pagedkv.prompt_logprobs import PromptScorer
from pagedkv.reasoning_config import ReasoningConfig
from pagedkv.sampling.masks import MaskSource
from pagedkv.sampling.named_tokens import NamedTokens
from pagedkv.sampling.sampler import Sampler
from pagedkv.sequence_runner import SequenceRunner
from pagedkv.step_buffers import StepArena
from pagedkv.swap_space import SwapSize, SwapSpace, size_swap_space
from pagedkv.thinking_markers import ThinkingMarkers, thinking_markers
from pagedkv.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from pagedkv.batch_runner import Runner
    from pagedkv.config import EngineConfig
    from pagedkv.generation_defaults import GenerationDefaults
    from pagedkv.kv_sizing import KvSize
    from pagedkv.models.loading import LoadedModel
    from pagedkv.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

DEMO_MODEL = "demo"
_CPU_BATCHED_TOKENS = 2048
_GPU_BATCHED_TOKENS = 8192


@dataclass(slots=True, kw_only=True)
class EngineParts:
    """What an engine is made of.

    Attributes:
        scheduler: requests, their order and their blocks.
        arena: the step arrays.
        batches: runs a batch.
        sampler: per-row sampling state.
        scorer: rows that report their prompts.
        names: rows that report tokens they name.
        tokenizer: None with ``skip_tokenizer_init``.
        loaded: the model and its facts.
        kv_cache: the memory of keys and values.
        kv_size: its size.
        eos_token_ids: ids that end a sequence.
        generation_defaults: what holds for requests that do not say otherwise.
        grammars: compiled grammars.
        thinking: what begins and ends thinking; None without ``reasoning_config``.
    """

    scheduler: _core.Scheduler
    arena: StepArena
    batches: BatchRunner
    sampler: Sampler
    scorer: PromptScorer
    names: NamedTokens
    tokenizer: Tokenizer | None
    loaded: LoadedModel
    kv_cache: KvCache
    kv_size: KvSize
    eos_token_ids: tuple[int, ...]
    generation_defaults: GenerationDefaults
    grammars: GrammarCache
    thinking: ThinkingMarkers | None


def build_engine(config: EngineConfig) -> EngineParts:
    """Loads tokenizer and model and reserves all memory.

    Raises:
        ModelLoadError: model or tokenizer cannot be loaded.
        UnsupportedModelError: the model cannot run on a paged KV cache.
        ValueError: a setting does not fit the model or the machine.
    """
    started = time.monotonic()
    device = resolve_device(config.device)
    backend_name = resolve_backend(config.attention_backend, device)
    if device.type == "cpu":
        _set_threads(config.num_threads)
    name = demo_folder() if str(config.model) == DEMO_MODEL else config.model
    folder = resolve_model_folder(
        name, revision=config.revision, with_code=config.trust_remote_code
    )
    # Read before the weights, so that what is wrong with it is said at once.
    defaults = load_generation_defaults(
        folder, source=config.generation_config, overrides=config.override_generation_config
    )
    loaded = load_model(
        folder,
        revision=config.revision,
        dtype=config.dtype,
        device=device,
        max_model_len=config.max_model_len,
        trust_remote_code=config.trust_remote_code,
        fuse_projections=config.fuse_projections,
        latent_kv_cache=config.latent_kv_cache,
        cpu_kernels=config.cpu_kernels,
    )
    tokenizer = None
    if not config.skip_tokenizer_init:
        tokenizer = load_tokenizer(
            config.tokenizer or loaded.folder, trust_remote_code=config.trust_remote_code
        )
        _warn_of_foreign_tokenizer(tokenizer, loaded)
    parts = assemble(config, loaded, tokenizer, defaults, backend_name=backend_name)
    logger.info("engine ready after %.1f s", time.monotonic() - started)
    return parts


def assemble(
    config: EngineConfig,
    loaded: LoadedModel,
    tokenizer: Tokenizer | None,
    defaults: GenerationDefaults,
    *,
    backend_name: str,
) -> EngineParts:
    """Builds an engine's parts around a model in memory.

    Raises:
        ValueError: the KV cache cannot hold one sequence of the longest context, or the tokenizer does not have the markers
            of ``reasoning_config``.
    """
    thinking = _thinking(config, loaded, tokenizer)
    max_num_batched_tokens = _max_batched_tokens(config, loaded)
    kv_size = size_kv_cache(loaded, config, max_num_batched_tokens=max_num_batched_tokens)
    log_kv_size(kv_size, loaded)
    kv_cache = _create_kv_cache(
        loaded, kv_size, block_size=config.block_size, backend_name=backend_name
    )
    runner = _create_runner(
        loaded,
        kv_cache,
        backend_name=backend_name,
        max_num_batched_tokens=max_num_batched_tokens,
    )
    sampler = _create_sampler(config, loaded, thinking)
    scorer = PromptScorer(
        max_num_seqs=config.max_num_seqs,
        vocab_size=loaded.vocab_size,
        logprobs_mode=config.logprobs_mode,
    )
    names = NamedTokens(
        max_num_seqs=config.max_num_seqs, reports_logits=config.logprobs_mode == "raw_logits"
    )
    swap_size = size_swap_space(loaded, config, kv_size)
    scheduler = _create_scheduler(
        config, loaded, kv_size, swap_size, max_num_batched_tokens=max_num_batched_tokens
    )
    arena = StepArena(scheduler.sizes)
    return EngineParts(
        scheduler=scheduler,
        arena=arena,
        batches=BatchRunner(
            runner=runner,
            sampler=sampler,
            scorer=scorer,
            names=names,
            arena=arena,
            device=loaded.device,
            masks=MaskSource(scheduler, vocab_size=loaded.vocab_size),
            swap=SwapSpace(kv_cache, num_blocks=swap_size.num_blocks),
            row_multiple=loaded.row_multiple,
        ),
        sampler=sampler,
        scorer=scorer,
        names=names,
        tokenizer=tokenizer,
        loaded=loaded,
        kv_cache=kv_cache,
        kv_size=kv_size,
        eos_token_ids=_eos_token_ids(loaded, tokenizer, defaults),
        generation_defaults=defaults,
        grammars=GrammarCache(tokenizer, vocab_size=loaded.vocab_size),
        thinking=thinking,
    )


def _thinking(
    config: EngineConfig, loaded: LoadedModel, tokenizer: Tokenizer | None
) -> ThinkingMarkers | None:
    if config.reasoning_config is None:
        return None
    reasoning = ReasoningConfig.of(config.reasoning_config)
    return thinking_markers(reasoning, tokenizer, vocab_size=loaded.vocab_size)


def _eos_token_ids(
    loaded: LoadedModel, tokenizer: Tokenizer | None, defaults: GenerationDefaults
) -> tuple[int, ...]:
    found = {*loaded.eos_token_ids, *defaults.eos_token_ids}
    if tokenizer is not None:
        found.update(tokenizer.eos_token_ids)
    return tuple(sorted(token_id for token_id in found if token_id < loaded.vocab_size))


def _create_sampler(
    config: EngineConfig, loaded: LoadedModel, thinking: ThinkingMarkers | None
) -> Sampler:
    return Sampler(
        max_num_seqs=config.max_num_seqs,
        vocab_size=loaded.vocab_size,
        device=loaded.device,
        logprobs_mode=config.logprobs_mode,
        thinking=thinking,
    )


def _create_scheduler(
    config: EngineConfig,
    loaded: LoadedModel,
    kv_size: KvSize,
    swap_size: SwapSize,
    *,
    max_num_batched_tokens: int,
) -> _core.Scheduler:
    return _core.Scheduler(
        num_blocks=kv_size.num_blocks,
        block_size=config.block_size,
        kv_groups=loaded.geometry.scheduler_groups,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_model_len=loaded.max_model_len,
        max_num_waiting=config.max_num_waiting,
        policy=config.scheduling_policy,
        enable_prefix_caching=config.enable_prefix_caching,
        hash_key=secrets.randbits(64),
        num_swap_blocks=swap_size.num_blocks,
        swap_cost=swap_size.cost,
    )


def _max_batched_tokens(config: EngineConfig, loaded: LoadedModel) -> int:
    """Those asked for; else as many as the device is good for, and one for each sequence at least."""
    usual = _CPU_BATCHED_TOKENS if loaded.device.type == "cpu" else _GPU_BATCHED_TOKENS
    return config.max_num_batched_tokens or max(usual, config.max_num_seqs)


def _create_kv_cache(
    loaded: LoadedModel, kv_size: KvSize, *, block_size: int, backend_name: str
) -> KvCache:
    # The slow path hands keys to models as rows.
    in_columns = prefers_columns(backend_name, block_size=block_size) and not loaded.on_slow_path
    return KvCache(
        loaded.geometry,
        num_blocks=kv_size.num_blocks,
        block_size=block_size,
        dtype=loaded.dtype,
        device=loaded.device,
        keys_in_columns=in_columns,
    )


def _create_runner(
    loaded: LoadedModel, kv_cache: KvCache, *, backend_name: str, max_num_batched_tokens: int
) -> Runner:
    if loaded.device.type == "cpu":
        # Not before the model is loaded: what that frees is not needed again.
        keep_freed_memory()
    layers = {layer.layer_idx: layer for layer in loaded.geometry.layers}
    if loaded.on_slow_path:
        return SequenceRunner(
            loaded.model,
            layers=layers,
            caches=kv_cache.layers,
            device=loaded.device,
            vocab_size=loaded.vocab_size,
        )
    backend = create_backend(
        backend_name, layers=layers, caches=kv_cache.layers, device=loaded.device
    )
    return ModelRunner(
        loaded.model,
        layers=layers,
        backend=backend,
        device=loaded.device,
        max_num_batched_tokens=max_num_batched_tokens,
        vocab_size=loaded.vocab_size,
        row_multiple=loaded.row_multiple,
    )


def _set_threads(num_threads: int | None) -> None:
    """Torch and the kernels take turns, so both get as many; they sleep while the others work."""
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    _core.set_num_threads(torch.get_num_threads())


def resolve_device(device: str | torch.device) -> torch.device:
    """The torch device that ``device`` means.

    Raises:
        ValueError: it names no device, or one that is not there.
    """
    if isinstance(device, str) and device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        msg = f"device must be 'auto', 'cpu', 'cuda' or 'cuda:N', got {device!r}"
        raise ValueError(msg) from error
    if resolved.type not in ("cpu", "cuda"):
        msg = f"device must be 'auto', 'cpu', 'cuda' or 'cuda:N', got {device!r}"
        raise ValueError(msg)
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        msg = f"device={device!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices"
        raise ValueError(msg)
    return resolved


def demo_folder() -> Path:
    """Where the bundled model is."""
    return Path(__file__).parent / "demo"


def _warn_of_foreign_tokenizer(tokenizer: Tokenizer, loaded: LoadedModel) -> None:
    if tokenizer.vocab_size > loaded.vocab_size:
        logger.warning(
            "the tokenizer has %d tokens and the model %d; a prompt that needs the others is refused",
            tokenizer.vocab_size,
            loaded.vocab_size,
        )
