"""What a caller gave, checked against the model: everything that can be wrong is found before anything starts."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pagedkv._core import BeamOptions, TextDecoder
from pagedkv.errors import QueueFullError
from pagedkv.outputs import RequestMetrics
from pagedkv.request_state import RequestState
from pagedkv.requests import (
    Prompt,
    check_prompt_length,
    check_token_ids,
    normalize_params,
    normalize_priorities,
    normalize_prompts,
)
from pagedkv.sampling.row_state import needs_token_ids
from pagedkv.sampling_fit import fit_params
from pagedkv.structured_outputs import StructuredOutputsParams

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pagedkv._core import Grammar
    from pagedkv.config import EngineConfig
    from pagedkv.sampling_params import SamplingParams
    from pagedkv.startup import EngineParts


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """A request that was checked against the model and may be submitted.

    Attributes:
        prompt: its text, and its cache salt.
        token_ids: its ids.
        params: its parameters.
        priority: lower is sooner, under ``scheduling_policy="priority"``.
        where: how messages call its prompt.
        grammar: what constrains its output; None if nothing does.
    """

    prompt: Prompt
    token_ids: list[int]
    params: SamplingParams
    priority: int
    where: str
    grammar: Grammar | None = None


def prepare_requests(
    config: EngineConfig,
    parts: EngineParts,
    prompts: Any,
    sampling_params: Any,
    *,
    prompt_token_ids: Any,
    priority: Any,
) -> list[EngineRequest]:
    """Checks and encodes the prompts of a call; changes nothing.

    Raises:
        TypeError: something of the wrong type; prompts are named by their index.
        ValueError: something out of range.
    """
    normalized = normalize_prompts(prompts, prompt_token_ids)
    params = normalize_params(
        sampling_params, len(normalized), default=parts.generation_defaults.params
    )
    priorities = normalize_priorities(priority, len(normalized))
    if any(priorities) and config.scheduling_policy != "priority":
        msg = "priority needs scheduling_policy='priority' when the engine is made"
        raise ValueError(msg)
    # One object for all prompts is checked once.
    for checked in {id(entry): entry for entry in params}.values():
        fit_params(checked, config, parts)
    grammars = _compile_grammars(params, parts)
    return [
        EngineRequest(
            prompt=prompt,
            token_ids=_token_ids(
                prompt, parts, truncate_to=params[i].truncate_prompt_tokens, where=f"prompts[{i}]"
            ),
            params=params[i],
            priority=priorities[i],
            where=f"prompts[{i}]",
            grammar=grammars.get(id(params[i])),
        )
        for i, prompt in enumerate(normalized)
    ]


def new_state(
    request: EngineRequest,
    parts: EngineParts,
    *,
    request_id: str,
    core_id: int,
    seed: int,
    is_streamed: bool,
) -> RequestState:
    """What the engine keeps of a request.

    Args:
        request: the prepared request.
        parts: the engine's parts.
        request_id: the caller's name for it.
        core_id: the core's number.
        seed: the seed to use.
        is_streamed: deltas are wanted.
    """
    params = request.params
    decoder = None
    if params.detokenize and parts.tokenizer is not None:
        decoder = parts.tokenizer.make_text_decoder(
            request.token_ids,
            stop=params.stop,
            include_stop_str_in_output=params.include_stop_str_in_output,
            skip_special_tokens=params.skip_special_tokens,
            spaces_between_special_tokens=params.spaces_between_special_tokens,
        )
    if request.grammar is not None:
        decoder = TextDecoder.constrained(request.grammar, decoder)
    eos_token_ids = () if params.ignore_eos else parts.eos_token_ids
    return RequestState(
        request_id=request_id,
        core_id=core_id,
        prompt=request.prompt.text,
        prompt_token_ids=request.token_ids,
        params=params,
        seed=seed,
        ending_ids=sorted({*eos_token_ids, *params.stop_token_ids}),
        metrics=RequestMetrics(arrival_time=time.monotonic()),
        is_streamed=is_streamed,
        decoder=decoder,
    )


def add_to_core(request: EngineRequest, parts: EngineParts, state: RequestState) -> None:
    """Queues a request with the scheduler.

    Raises:
        RequestTooLongError: it can never fit; nothing has changed then.
        QueueFullError: the queue is full; nothing has changed then.
    """
    params = request.params
    max_model_len = parts.loaded.max_model_len
    max_tokens = min(params.max_tokens or max_model_len, max_model_len)
    try:
        parts.scheduler.add_request(
            state.core_id,
            request.token_ids,
            n=params.num_sequences,
            max_tokens=max_tokens,
            min_tokens=min(params.min_tokens, max_tokens),
            eos_token_ids=parts.eos_token_ids,
            stop_token_ids=params.stop_token_ids,
            ignore_eos=params.ignore_eos,
            include_stop_in_text=params.include_stop_str_in_output,
            priority=request.priority,
            cache_salt=_cache_salt(request, state.core_id),
            text=state.decoder,
            stop_strings=params.stop,
            stream=state.is_streamed and not state.is_held,
            beams=_beam_options(params),
            repetition=params.repetition_detection and params.repetition_detection.limits(),
        )
    except (QueueFullError, ValueError) as error:
        msg = f"{request.where}: {error}"
        raise type(error)(msg) from error


def _cache_salt(request: EngineRequest, core_id: int) -> str | bytes | None:
    """Under which salt a request's blocks are found: one of its own where it may find nobody else's.

    No user's salt equals it, as UTF-8 never has the byte 0xff.
    """
    if request.params.reads_prefix_cache:
        return request.prompt.cache_salt
    return b"\xff" + core_id.to_bytes(8, "little")


def _compile_grammars(params: Sequence[SamplingParams], parts: EngineParts) -> dict[int, Grammar]:
    """The grammar of each object among ``params`` that asks for one, by its ``id``.

    Raises:
        TypeError, ValueError: it cannot be compiled; the first prompt that asks for it is named.
    """
    grammars: dict[int, Grammar] = {}
    for i, entry in enumerate(params):
        if not entry.structured_outputs or id(entry) in grammars:
            continue
        try:
            constraint = StructuredOutputsParams.of(entry.structured_outputs).constraint()
            grammars[id(entry)] = parts.grammars.grammar(constraint)
        except (TypeError, ValueError) as error:
            msg = f"prompts[{i}]: {error}"
            raise type(error)(msg) from error
    return grammars


def _token_ids(
    prompt: Prompt, parts: EngineParts, *, truncate_to: int | None, where: str
) -> list[int]:
    token_ids = prompt.token_ids
    if token_ids is None:
        if parts.tokenizer is None:
            msg = f"{where} is a text, but the engine has no tokenizer (skip_tokenizer_init=True); give token ids"
            raise ValueError(msg)
        token_ids = parts.tokenizer.encode(prompt.text or "")
        where_ids = f"{where} (as its tokenizer encodes it)"
    else:
        where_ids = where
    check_token_ids(token_ids, vocab_size=parts.loaded.vocab_size, where=where_ids)
    if truncate_to is not None:
        token_ids = token_ids[-truncate_to:]
    check_prompt_length(len(token_ids), max_model_len=parts.loaded.max_model_len, where=where)
    return [int(token_id) for token_id in token_ids]


def _beam_options(params: SamplingParams) -> BeamOptions | None:
    if not params.use_beam_search:
        return None
    return BeamOptions(
        num_returned=params.n,
        length_penalty=params.length_penalty,
        early_stopping=params.early_stopping,
        track_rows=needs_token_ids(params),
        num_logprobs=params.logprobs,
    )
