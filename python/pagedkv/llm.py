"""The class that people meet first: prompts in, continuations out."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from pagedkv.beam_search import beam_search_output
from pagedkv.beam_search_params import BeamSearchParams
from pagedkv.chat import render_chat
from pagedkv.engine import LLMEngine
from pagedkv.errors import not_supported_yet, unknown_parameter
from pagedkv.progress import GenerationProgress
from pagedkv.shared_loop import Call, SharedLoop

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from typing_extensions import Self

    from pagedkv.beam_search import BeamSearchOutput
    from pagedkv.chat import ChatMessage
    from pagedkv.outputs import RequestOutput, StreamDelta
    from pagedkv.prefix_report import PrefixReport
    from pagedkv.requests import PromptInput
    from pagedkv.sampling_params import SamplingParams
    from pagedkv.stats import EngineStats

logger = logging.getLogger(__name__)

# Arguments of the classic generate() and chat() that have no effect yet: refused unless None.
_NOT_YET = (
    "lora_request",
    "prompt_adapter_request",
    "guided_options_request",
    "mm_processor_kwargs",
)


class LLM:
    """A language model behind a paged KV cache.

        with LLM("demo") as llm:
            outputs = llm.generate(["Once upon a time"], SamplingParams(max_tokens=40))
            print(outputs[0].outputs[0].text)

    Threads may call one LLM: they share its batch.

    Attributes:
        llm_engine: the engine below, for a look at its parts.
    """

    def __init__(self, model: str | Path, **arguments: Any) -> None:
        """Loads the model and reserves all memory.

        Args:
            model: a folder, a hub id, or "demo" for the bundled model.
            **arguments: the fields of `EngineConfig`; ``kv_cache_memory`` is ``kv_cache_memory_bytes``. Classic engine
                arguments that come later are refused unless they have their default.

        Raises:
            TypeError: an argument that does not exist (the nearest one is named), or one of the wrong type.
            ValueError: an argument out of range, or one that does not fit the model or the machine.
            ModelLoadError: the model or its tokenizer cannot be loaded.
            UnsupportedModelError: the model cannot run on a paged KV cache.
        """
        self.llm_engine = LLMEngine(model, **arguments)
        self._loop = SharedLoop(self.llm_engine)

    def generate(
        self,
        prompts: PromptInput | Sequence[PromptInput] | None = None,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        prompt_token_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        priority: int | Sequence[int] | None = None,
        **other: Any,
    ) -> list[RequestOutput]:
        """Continues every prompt.

        Args:
            prompts: a text, token ids, a dict with ``prompt`` or ``prompt_token_ids`` (and ``cache_salt``), or a list of
                these.
            sampling_params: one for all prompts, or one per prompt; None for the defaults.
            use_tqdm: show a progress bar.
            prompt_token_ids: ids of one prompt or several, the classic spelling.
            priority: lower is sooner, one for all or one per prompt; needs ``scheduling_policy="priority"``.
            **other: classic arguments that come later; refused unless None.

        Returns:
            One output per prompt, in the order of the prompts. A request that fails while it runs has ``error`` set and
            ``finish_reason`` "error"; the others are complete.

        Raises:
            EngineClosedError: after `close`.
            TypeError: something of the wrong type, before anything has started; prompts are named by their index.
            ValueError: something out of range, likewise.
        """
        _refuse_other("generate()", other)
        requests = self.llm_engine.prepare(
            prompts, sampling_params, prompt_token_ids=prompt_token_ids, priority=priority
        )
        call = self._loop.submit(requests, is_streamed=False)
        return self._wait_for(call, use_tqdm=use_tqdm)

    def chat(
        self,
        messages: Sequence[ChatMessage] | Sequence[Sequence[ChatMessage]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        priority: int | Sequence[int] | None = None,
        **other: Any,
    ) -> list[RequestOutput]:
        """Answers one conversation or several, through the model's chat template.

        Args:
            messages: a conversation (dicts with ``role`` and ``content``), or a list of conversations.
            sampling_params: as for `generate`.
            use_tqdm: show a progress bar.
            chat_template: a Jinja template instead of the model's own.
            add_generation_prompt: end with the start of the assistant's turn.
            continue_final_message: leave the last message open, to be continued.
            tools: JSON schemas of functions that the model may call.
            chat_template_kwargs: further variables of the template.
            priority: as for `generate`.
            **other: classic arguments that come later; refused unless None.

        Raises:
            EngineClosedError: after `close`.
            TypeError: a message that is none.
            ValueError: a message that the template refuses, or no template.
        """
        _refuse_other("chat()", other)
        tokenizer = self.llm_engine.tokenizer
        texts = [
            render_chat(
                tokenizer,
                conversation,
                chat_template=chat_template or self.llm_engine.config.chat_template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tools=tools,
                chat_template_kwargs=chat_template_kwargs,
            )
            for conversation in _conversations(messages)
        ]
        # The template writes the special tokens itself, so none are added.
        prompts = [
            {
                "prompt": text,
                "prompt_token_ids": tokenizer.encode(text, add_special_tokens=False),
            }
            for text in texts
        ]
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm, priority=priority)

    def beam_search(
        self,
        prompts: PromptInput | Sequence[PromptInput],
        params: BeamSearchParams,
        *,
        use_tqdm: bool = True,
        priority: int | Sequence[int] | None = None,
    ) -> list[BeamSearchOutput]:
        """Searches the most likely continuations of one prompt or several.

        The same search as ``SamplingParams(use_beam_search=True)`` with `generate`: token ids and scores are those of
        transformers' ``generate(num_beams=...)``.

        Args:
            prompts: as for `generate`.
            params: width, lengths and penalties.
            use_tqdm: show a progress bar.
            priority: as for `generate`.

        Returns:
            One output per prompt with ``beam_width`` sequences, best first.

        Raises:
            EngineClosedError: after `close`.
            TypeError: something of the wrong type.
            ValueError: something out of range; a width above ``max_num_seqs`` names that setting.
        """
        given: Any = params
        if not isinstance(given, BeamSearchParams):
            msg = f"params must be a BeamSearchParams, got {params!r}"
            raise TypeError(msg)
        params.verify()
        outputs = self.generate(
            prompts, params.sampling_params(), use_tqdm=use_tqdm, priority=priority
        )
        tokenizer = self.llm_engine.parts.tokenizer
        return [
            beam_search_output(output, tokenizer, skip_special_tokens=params.skip_special_tokens)
            for output in outputs
        ]

    def stream(
        self,
        prompt: PromptInput,
        sampling_params: SamplingParams | None = None,
        *,
        priority: int | None = None,
    ) -> TokenStream:
        """Continues one prompt and yields what it generates as it appears.

        The request starts at once; it advances whenever somebody asks for the next delta, or calls `generate`. Leaving the
        stream (``close()``, the end of a ``with`` block, or dropping it) ends the request and frees its blocks.

        Args:
            prompt: as for `generate`, one of them.
            sampling_params: None for the defaults.
            priority: as for `generate`.

        Raises:
            EngineClosedError: after `close`.
            TypeError: something of the wrong type.
            ValueError: something out of range.
        """
        requests = self.llm_engine.prepare(prompt, sampling_params, priority=priority)
        if len(requests) != 1:
            msg = f"stream() takes one prompt, got {len(requests)}; use generate() for several"
            raise ValueError(msg)
        return TokenStream(self._loop, self._loop.submit(requests, is_streamed=True))

    def get_tokenizer(self) -> Any:
        """The transformers tokenizer.

        Raises:
            ValueError: the engine has none (``skip_tokenizer_init=True``).
        """
        return self.llm_engine.tokenizer.hf_tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """The parameters of calls that bring none, a copy: the checkpoint's own, see ``generation_config``."""
        return self.llm_engine.parts.generation_defaults.params.clone()

    def stats(self) -> EngineStats:
        """Slots held and used, blocks shared, copies, cached tokens, preemptions, times; see ``EngineClock.figures``."""
        return self._loop.between_steps(self.llm_engine.stats)

    def explain_prefix(self, prompt: PromptInput) -> PrefixReport:
        """How much of a prompt is cached, and which block is the first that is not. Changes nothing.

        Args:
            prompt: a text, token ids or a dict, as for `generate`; one of them.

        Raises:
            EngineClosedError: after `close`.
            TypeError: something of the wrong type.
            ValueError: a prompt that could not be generated from.
        """
        return self._loop.between_steps(lambda: self.llm_engine.explain_prefix(prompt))

    def reset_prefix_cache(self) -> bool:
        """Forgets all cached content; False, and nothing done, while a request runs."""
        return self._loop.between_steps(self.llm_engine.reset_prefix_cache)

    def close(self) -> None:
        """Ends all requests and returns all memory; later calls raise `EngineClosedError`."""
        self._loop.close()

    def __enter__(self) -> Self:
        """Returns itself; the end of the block closes it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes it."""
        self.close()

    def _wait_for(self, call: Call, *, use_tqdm: bool) -> list[RequestOutput]:
        try:
            with GenerationProgress(len(call.request_ids), is_shown=use_tqdm) as progress:
                progress.refresh(0, self.stats())
                while not call.is_finished:
                    self._loop.advance(call)
                    if progress.is_due:
                        progress.refresh(len(call.outputs), self.stats())
                progress.refresh(len(call.outputs), self.stats())
        except BaseException:
            self._loop.recover()
            self._loop.cancel(call)
            raise
        return [call.outputs[name] for name in call.request_ids]


class TokenStream:
    """An iterator over the deltas of one request; see `LLM.stream`."""

    def __init__(self, loop: SharedLoop, call: Call) -> None:
        self._loop = loop
        self._call = call

    def __iter__(self) -> TokenStream:
        """Returns itself."""
        return self

    def __next__(self) -> StreamDelta:
        """The next delta; runs steps until there is one.

        Raises:
            StopIteration: the request has ended, or was left.
        """
        call = self._call
        try:
            while not call.deltas and not call.is_finished:
                self._loop.advance(call)
        except BaseException:
            self._loop.recover()
            self.close()
            raise
        if call.deltas:
            return call.deltas.popleft()
        raise StopIteration

    @property
    def output(self) -> RequestOutput | None:
        """The whole output, once the request has ended."""
        return next(iter(self._call.outputs.values()), None)

    def close(self) -> None:
        """Ends the request, unless it has ended, and frees its blocks."""
        call = self._call
        if not call.is_finished:
            self._loop.cancel(call)
            call.request_ids.clear()
            call.deltas.clear()

    def __enter__(self) -> Self:
        """Returns itself; the end of the block closes it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes it."""
        self.close()

    def __del__(self) -> None:
        """A stream that nobody holds any more ends its request."""
        self.close()


def _conversations(messages: Any) -> list[Any]:
    """A list of conversations, of one where ``messages`` is one."""
    if isinstance(messages, list | tuple) and messages and isinstance(messages[0], list | tuple):
        return list(messages)
    return [messages]


def _refuse_other(owner: str, other: Mapping[str, Any]) -> None:
    known = ["prompts", "sampling_params", "use_tqdm", "prompt_token_ids", "priority", *_NOT_YET]
    for name, value in other.items():
        if name not in _NOT_YET:
            raise unknown_parameter(owner, name, known)
        if value is not None:
            raise not_supported_yet(owner, name, value)
