"""Sampling parameters against the model and the settings: what neither knows alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pagedkv.sampling_lists import LOGIT_BIAS_LIMIT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pagedkv.config import EngineConfig
    from pagedkv.sampling_params import SamplingParams
    from pagedkv.startup import EngineParts
    from pagedkv.tokenizer import Tokenizer


def fit_params(params: SamplingParams, config: EngineConfig, parts: EngineParts) -> None:
    """Checks a request's own copy of its parameters, and fills what depends on the model.

    Afterwards ``bad_words_token_ids`` holds the ids of ``bad_words``, and a number of log-probabilities is one of tokens.

    Raises:
        ValueError: a value that this model or these settings cannot serve; the setting is named.
    """
    vocab_size = parts.loaded.vocab_size
    _check_limits(params, config, vocab_size)
    _check_ids(params, vocab_size)
    if params.thinking_token_budget is not None and parts.thinking is None:
        msg = (
            f"thinking_token_budget={params.thinking_token_budget} needs to know what begins and ends thinking, but the "
            "engine was made without reasoning_config; make it with reasoning_config="
            '{"reasoning_start_str": "<think>", "reasoning_end_str": "</think>"}'
        )
        raise ValueError(msg)
    _check_what_is_left(params, vocab_size, eos_token_ids=parts.eos_token_ids)
    for name in ("stop", "bad_words"):
        if getattr(params, name) and parts.tokenizer is None:
            words = "stop strings need" if name == "stop" else "bad_words needs"
            msg = f"{words} a tokenizer, but the engine has none (skip_tokenizer_init=True)"
            raise ValueError(msg)
    if params.bad_words and parts.tokenizer is not None:
        params.bad_words_token_ids = bad_words_token_ids(params.bad_words, parts.tokenizer)


def bad_words_token_ids(words: Iterable[str], tokenizer: Tokenizer) -> list[list[int]]:
    """The ids of each word, as the start of a text and after a space; each sequence once."""
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        for spelling in (word, " " + word.lstrip()):
            token_ids = tuple(tokenizer.encode(spelling, add_special_tokens=False))
            if token_ids:
                found[token_ids] = None
    return [list(token_ids) for token_ids in found]


def _check_limits(params: SamplingParams, config: EngineConfig, vocab_size: int) -> None:
    if params.num_sequences > config.max_num_seqs:
        name = "n" if params.best_of is None else "best_of"
        msg = (
            f"{name} must be at most max_num_seqs ({config.max_num_seqs}), "
            f"got {params.num_sequences}; raise max_num_seqs or lower {name}"
        )
        raise ValueError(msg)
    if params.num_sequences > params.n and config.logprobs_mode.endswith("logits"):
        msg = (
            f"best_of ({params.best_of}) above n ({params.n}) ranks by log-probability, but "
            f"logprobs_mode={config.logprobs_mode!r}; use raw_logprobs or processed_logprobs"
        )
        raise ValueError(msg)
    if params.logprob_token_ids and config.logprobs_mode.startswith("processed"):
        msg = (
            "logprob_token_ids reports the model's own numbers, but "
            f"logprobs_mode={config.logprobs_mode!r}; use raw_logprobs or raw_logits"
        )
        raise ValueError(msg)
    if params.logprob_token_ids and params.use_beam_search:
        msg = "logprob_token_ids does not go with a beam search; use logprobs"
        raise ValueError(msg)
    if params.logprob_token_ids and params.logprobs is None:
        # The chosen token is reported beside the named ones.
        params.logprobs = 0
    if params.prompt_logprob_token_ids and params.prompt_logprobs is None:
        params.prompt_logprobs = 0
    limit = vocab_size if config.max_logprobs == -1 else config.max_logprobs
    for name in ("logprobs", "prompt_logprobs"):
        count = getattr(params, name)
        if count is None:
            continue
        asked, of_all = (vocab_size, " (the whole vocabulary)") if count == -1 else (count, "")
        if asked > limit:
            msg = f"{name} must be at most max_logprobs ({limit}), got {count}{of_all}; raise max_logprobs"
            raise ValueError(msg)
        setattr(params, name, min(asked, vocab_size))


def _check_ids(params: SamplingParams, vocab_size: int) -> None:
    # Sets and maxima, not loops: there may be as many entries as tokens.
    for name in (
        "stop_token_ids",
        "allowed_token_ids",
        "logit_bias",
        "logprob_token_ids",
        "prompt_logprob_token_ids",
    ):
        token_ids = getattr(params, name)
        if token_ids and (highest := max(token_ids)) >= vocab_size:
            place = ""
            if isinstance(token_ids, list):
                place = f" at position {token_ids.index(highest)}"
            msg = (
                f"{name} holds token id {highest}{place}, which is outside the vocabulary "
                f"(0 to {vocab_size - 1})"
            )
            raise ValueError(msg)


def _check_what_is_left(
    params: SamplingParams, vocab_size: int, *, eos_token_ids: Iterable[int]
) -> None:
    """Some token must remain that may be generated."""
    allowed = set(params.allowed_token_ids or ())
    bias = params.logit_bias or {}
    if len(bias) == vocab_size and set(bias.values()) == {-LOGIT_BIAS_LIMIT}:
        msg = f"logit_bias leaves no token to generate: it is -{LOGIT_BIAS_LIMIT:g} for the whole vocabulary"
        raise ValueError(msg)
    ending = set(params.stop_token_ids) | (set() if params.ignore_eos else set(eos_token_ids))
    if params.min_tokens and len(ending) >= vocab_size:
        msg = "min_tokens leaves no token to generate: stop_token_ids names the whole vocabulary"
        raise ValueError(msg)
    if params.min_tokens and allowed and allowed <= ending:
        msg = "min_tokens leaves no token to generate: allowed_token_ids names ending ids alone"
        raise ValueError(msg)
