"""What becomes of a causal-LM type of transformers: it runs as `generate` does, is refused, or is wrong.

A tiny random model of the type is saved, and loaded by an engine whose pool is too small (crowded.py). Its greedy ids
must be those of `generate`, one prompt at a time, and so must their log-probabilities.
"""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from models.crowded import MAX_TOKENS, PROMPT_LENGTHS, crowded_llm, generate, smallest_pool
from models.shrink import shrunk_config
from models.tiny import random_prompts, seeded_model
from pagedkv.catalog import CatalogEntry
from pagedkv.errors import UnsupportedModelError
from pagedkv.models import prepare_model
from pagedkv.models.checks import KeepsStateError, check_config

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PretrainedConfig, PreTrainedModel

TYPES = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))

# Tokens whose log-probabilities are closer may change places by rounding.
TIE_GAP = 1e-4
# Rounding of float32 through a few layers stays far below; one wrong key moves log-probabilities by tenths.
LOGPROB_TOLERANCE = 5e-3

# Words in the name of a configuration inside of another that says that it is for images or sound.
_OTHER_MEDIA = ("vision", "audio", "image", "vq")

_REMARKS = {
    "granitemoehybrid": "checkpoints whose layers are all full_attention; others keep a recurrent state and are refused",
    **dict.fromkeys(("git", "phi4_multimodal", "moshi"), "its text alone"),
}
_OWN_POSITIONS = (
    "positions as `generate` counts them, from 0; a plain forward pass counts otherwise"
)


@dataclass(frozen=True, slots=True)
class Reference:
    """What transformers generates for a prompt.

    Attributes:
        token_ids: N greedy ids.
        logprobs: [N, vocabulary] that they are the best of.
        plain_logprobs: [vocabulary] of the first of them, by a forward pass that is given the prompt and nothing else.
    """

    token_ids: list[int]
    logprobs: torch.Tensor
    plain_logprobs: torch.Tensor


def sweep_type(model_type: str) -> CatalogEntry:
    """Runs one type; takes seconds."""
    try:
        config = shrunk_config(model_type)
    except Exception as error:  # noqa: BLE001 (the configurations raise whatever they like)
        return CatalogEntry(model_type, "text", "not built", _first_line(error))
    try:
        check_config(config, has_code=False)
    except KeepsStateError as error:
        return CatalogEntry(model_type, "state", "refused", _reason(error))
    except UnsupportedModelError as error:
        return CatalogEntry(model_type, _scope(config), "refused", _reason(error))
    status, notes = _run(config)
    return CatalogEntry(model_type, _scope(config), status, notes)


def _run(config: PretrainedConfig) -> tuple[str, str]:
    """Status and notes."""
    prompts = random_prompts(PROMPT_LENGTHS)
    try:
        model = seeded_model(config, dtype=torch.float32)
        references = [generate_reference(model, prompt) for prompt in prompts]
    except Exception as error:  # noqa: BLE001 (so do models)
        return _without_reference(config, error)
    with tempfile.TemporaryDirectory() as folder, _SlowPathReasons() as reasons:
        model.save_pretrained(folder)
        try:
            # The reference comes first: this hands the attention of the model over.
            pool_bytes = smallest_pool(model)
            with crowded_llm(
                folder, "auto", max_num_seqs=len(prompts), kv_cache_memory_bytes=pool_bytes
            ) as llm:
                completions = generate(llm, prompts, logprobs=0)
                num_preemptions = llm.stats()["num_preemptions"]
                is_slow = llm.llm_engine.parts.loaded.on_slow_path
        except UnsupportedModelError as error:
            return "refused", _reason(error)
        except Exception as error:  # noqa: BLE001 (a failure of the engine is a row, not the end)
            return "wrong", _first_line(error)
    if num_preemptions == 0:
        return (
            "wrong",
            "nothing was preempted: the pool is too large for the sweep to show anything",
        )
    differences = [
        found
        for reference, completion in zip(references, completions, strict=True)
        if (found := difference(reference, completion))
    ]
    if differences:
        return "wrong", f"{len(differences)} of {len(prompts)} prompts: {differences[0]}"
    notes = [reasons[-1]] if is_slow else []
    notes += [_REMARKS[config.model_type]] if config.model_type in _REMARKS else []
    notes += [_OWN_POSITIONS] if any(map(_counts_otherwise, references)) else []
    return "slow" if is_slow else "fast", "; ".join(notes)


def _without_reference(config: PretrainedConfig, error: Exception) -> tuple[str, str]:
    """A model that transformers cannot generate with is refused all the same, or shows nothing."""
    try:
        model = seeded_model(config, dtype=torch.float32)
        prepare_model(model, folder=None, max_model_len=max(PROMPT_LENGTHS))
    except UnsupportedModelError as refusal:
        return "refused", _reason(refusal)
    except Exception:
        logging.getLogger(__name__).debug("nor can it be prepared", exc_info=True)
    return "not built", f"transformers' own generate fails: {_first_line(error)}"


@torch.no_grad()
def generate_reference(model: PreTrainedModel, prompt: list[int]) -> Reference:
    """Greedy generation by transformers.

    Raises:
        ValueError: Its logits are not finite, and so show nothing.
    """
    ids = torch.tensor([prompt])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=MAX_TOKENS,
        do_sample=False,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    logits = torch.cat(output.logits).float()
    if not bool(logits.isfinite().all()):
        msg = "the logits of the random model are not finite"
        raise ValueError(msg)
    plain = model(ids, use_cache=False).logits[0, -1].float()
    return Reference(
        output.sequences[0, len(prompt) :].tolist(),
        logits.log_softmax(dim=-1),
        plain.log_softmax(dim=-1),
    )


def difference(reference: Reference, completion: Any) -> str | None:
    """The first thing that differs by more than rounding; ids that follow a tie cannot be compared."""
    token_ids = list(completion.token_ids)
    if len(token_ids) != len(reference.token_ids):
        return f"{len(token_ids)} tokens instead of {len(reference.token_ids)}"
    for position, token_id in enumerate(token_ids):
        expected = reference.logprobs[position]
        logprob = completion.logprobs[position][token_id].logprob
        if not abs(float(expected[token_id]) - logprob) <= LOGPROB_TOLERANCE:
            return (
                f"log-probability {logprob:.4f} instead of {float(expected[token_id]):.4f} at "
                f"output token {position}"
            )
        if token_id != reference.token_ids[position]:
            gap = float(expected.max() - expected[token_id])
            return None if gap < TIE_GAP else f"output token {position} is {gap:.4f} below the best"
    return None


def _counts_otherwise(reference: Reference) -> bool:
    distance = (reference.plain_logprobs - reference.logprobs[0]).abs().max()
    return bool(distance > LOGPROB_TOLERANCE)


def _scope(config: PretrainedConfig) -> str:
    """Of `pagedkv.catalog.SCOPES`; *state* is told by the refusal."""
    if config.is_encoder_decoder:
        return "encoder-decoder"
    parts = [name for name in config.sub_configs if any(word in name for word in _OTHER_MEDIA)]
    is_wrapped = config.get_text_config(decoder=True) is not config
    return "multimodal" if parts or is_wrapped else "text"


class _SlowPathReasons(logging.Handler):
    """Collects why models take the slow path, from the warning that says so."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.reasons: list[str] = []
        self.logger = logging.getLogger("pagedkv.models")

    def emit(self, record: logging.LogRecord) -> None:
        if "slow path" in str(record.msg) and isinstance(record.args, tuple):
            self.reasons.append(str(record.args[1]))

    def __enter__(self) -> Sequence[str]:
        self.logger.addHandler(self)
        return self.reasons

    def __exit__(self, *_: object) -> None:
        self.logger.removeHandler(self)


def _reason(error: UnsupportedModelError) -> str:
    """Without the model type, which the table names beside it."""
    return str(error).partition(" cannot run: ")[2] or str(error)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0].replace("\t", " ")
