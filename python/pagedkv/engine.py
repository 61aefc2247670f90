"""The loop: schedule, run, update. One step for all requests, two calls into the core."""

from __future__ import annotations

import gc
import logging
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pagedkv.admission import EngineRequest, add_to_core, new_state, prepare_requests
from pagedkv.config import EngineConfig
from pagedkv.errors import EngineClosedError
from pagedkv.interrupts import InterruptShield
from pagedkv.prefix_report import explain_prefix
from pagedkv.request_state import RequestState, SampledLogprob
from pagedkv.sampling.philox import derive_seed
from pagedkv.sampling.row_state import needs_token_ids
from pagedkv.startup import build_engine
from pagedkv.stats import EngineClock
from pagedkv.step_events import StepEvents

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pagedkv._core import Batch, StepOutput
    from pagedkv.batch_runner import BatchOutcome
    from pagedkv.outputs import RequestOutput
    from pagedkv.prefix_report import PrefixReport
    from pagedkv.requests import PromptInput
    from pagedkv.sampling_params import SamplingParams
    from pagedkv.startup import EngineParts
    from pagedkv.stats import EngineStats
    from pagedkv.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_NO_TOKENS = np.zeros(0, dtype=np.int32)


class LLMEngine:
    """Requests in, outputs out, one step at a time; for people with a loop of their own.

        engine = LLMEngine("demo")
        engine.add_request("0", "Once upon a time", SamplingParams())
        while engine.has_unfinished_requests():
            for output in engine.step():
                ...

    Not for several threads at once: `LLM` shares an engine between threads.

    Attributes:
        config: its settings.
    """

    def __init__(self, model: str | Path, **arguments: Any) -> None:
        """Loads the model and reserves all memory.

        Args:
            model: a folder, a hub id, or "demo" for the bundled model.
            **arguments: as `LLM` takes them, with the same errors.
        """
        config = EngineConfig.from_arguments(model, arguments)
        self._start(config, build_engine(config))

    @classmethod
    def from_config(cls, config: EngineConfig) -> LLMEngine:
        """The same from settings."""
        return cls.from_parts(config, build_engine(config))

    @classmethod
    def from_parts(cls, config: EngineConfig, parts: EngineParts) -> LLMEngine:
        """An engine around a model in memory; see `pagedkv.startup.assemble`."""
        engine = cls.__new__(cls)
        engine._start(config, parts)  # noqa: SLF001 - its own
        return engine

    def _start(self, config: EngineConfig, parts: EngineParts) -> None:
        self.config = config
        self._parts: EngineParts | None = parts
        self._states: dict[int, RequestState] = {}
        self._core_ids: dict[str, int] = {}
        self._request_of_row = np.full(config.max_num_seqs, -1, dtype=np.int64)
        self._num_requests = 0
        self._clock = EngineClock.start()
        self._shield = InterruptShield()

    @property
    def parts(self) -> EngineParts:
        """The parts of a running engine.

        Raises:
            EngineClosedError: after `close`.
        """
        if self._parts is None:
            msg = "the engine is closed; make a new one"
            raise EngineClosedError(msg)
        return self._parts

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
            ValueError: the engine has none.
        """
        tokenizer = self.parts.tokenizer
        if tokenizer is None:
            msg = "the engine has no tokenizer (skip_tokenizer_init=True); give token ids"
            raise ValueError(msg)
        return tokenizer

    def add_request(
        self,
        request_id: str,
        prompt: PromptInput,
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
    ) -> None:
        """Queues a request; its outputs come from `step`, growing from step to step.

        Args:
            request_id: a name that no live request has.
            prompt: a text, token ids or a dict.
            params: None for the defaults.
            priority: lower is sooner, under ``scheduling_policy="priority"``.

        Raises:
            EngineClosedError: after `close`.
            TypeError: something of the wrong type.
            ValueError: something out of range, or a request that can never fit.
        """
        _check_request_id(request_id)
        requests = self.prepare([prompt], params, priority=priority)
        self.submit(requests[0], request_id=request_id, is_streamed=True)

    def step(self) -> list[RequestOutput]:
        """Runs one step.

        Returns:
            The outputs of the requests that grew, then those of the requests that ended: of each what its
            ``SamplingParams.output_kind`` says.

        Raises:
            EngineClosedError: after `close`.
        """
        collected = StepEvents()
        self.advance(collected.add)
        return collected.outputs(self._decode_token)

    def has_unfinished_requests(self) -> bool:
        """Whether a step has something to do."""
        return self.parts.scheduler.has_unfinished

    def get_num_unfinished_requests(self) -> int:
        """Requests that wait or run."""
        scheduler = self.parts.scheduler
        return scheduler.num_running + scheduler.num_waiting

    def abort_request(self, request_id: str) -> bool:
        """Ends a request in whatever state it is and frees its blocks; False if there is none of that name."""
        core_id = self._core_ids.pop(request_id, None)
        if core_id is None:
            return False
        self._states.pop(core_id)
        self.parts.scheduler.abort(core_id)
        return True

    def prepare(
        self,
        prompts: Any,
        sampling_params: Any,
        *,
        prompt_token_ids: Any = None,
        priority: Any = None,
    ) -> list[EngineRequest]:
        """Checks and encodes what a caller gave; see `prepare_requests`.

        Raises:
            EngineClosedError: after `close`.
        """
        return prepare_requests(
            self.config,
            self.parts,
            prompts,
            sampling_params,
            prompt_token_ids=prompt_token_ids,
            priority=priority,
        )

    def submit(self, request: EngineRequest, *, request_id: str | None, is_streamed: bool) -> str:
        """Queues a prepared request.

        Args:
            request: from `prepare`.
            request_id: None makes one.
            is_streamed: deltas are wanted besides the final output.

        Returns:
            The request's id.

        Raises:
            RequestTooLongError: it can never fit; nothing has changed then.
            QueueFullError: the queue is full; nothing has changed then.
            ValueError: the id is taken; nothing has changed then.
        """
        core_id = self._num_requests
        name = self._free_name(core_id) if request_id is None else request_id
        if name in self._core_ids:
            msg = f"request_id {name!r} is in use; ids must be unique among live requests"
            raise ValueError(msg)
        parts = self.parts
        seed = request.params.seed
        if seed is None or seed == -1:
            seed = derive_seed(self.config.seed, core_id)
        state = new_state(
            request, parts, request_id=name, core_id=core_id, seed=seed, is_streamed=is_streamed
        )
        with self._shield:
            add_to_core(request, parts, state)
            self._num_requests += 1
            self._core_ids[name] = core_id
            self._states[core_id] = state
        return name

    def advance(self, deliver: Callable[[StepEvents], None]) -> bool:
        """Runs one step.

        Args:
            deliver: is called once with what there is to deliver, in a moment that Ctrl-C does not interrupt.

        Returns:
            Whether there was anything to run.

        Raises:
            EngineClosedError: after `close`.
        """
        parts, started = self.parts, time.monotonic()
        batch: Batch | None = None
        try:
            with self._shield:
                batch = parts.scheduler.schedule(parts.arena.buffers)
            if batch is None:
                return False
            self._fill_rows(batch, now=time.monotonic())
            outcome = parts.batches.run(batch)
            with self._shield:
                events = StepEvents()
                self._end_failed(outcome, events)
                output = parts.scheduler.update(batch, outcome.token_ids, outcome.logprobs)
                batch = None
                self._collect(outcome, output, events)
                deliver(events)
        except BaseException:
            if batch is not None:
                parts.scheduler.requeue(batch)
            raise
        finally:
            self._clock.busy_seconds += time.monotonic() - started
        return True

    def explain_prefix(self, prompt: PromptInput) -> PrefixReport:
        """How much of a prompt is cached, and which block is the first that is not; see `LLM.explain_prefix`."""
        (request,) = self.prepare([prompt], None)
        return explain_prefix(
            self.parts.scheduler,
            self.parts.tokenizer,
            request.token_ids,
            cache_salt=request.prompt.cache_salt,
            block_size=self.config.block_size,
        )

    def reset_prefix_cache(self) -> bool:
        """Forgets all cached content; False, and nothing done, while a request runs."""
        return self.parts.scheduler.reset_prefix_cache()

    def stats(self) -> EngineStats:
        """Counters and times; see `EngineClock.figures` and ``Scheduler.stats``."""
        return self._clock.figures(self.parts.scheduler.stats())

    def check_invariants(self) -> None:
        """Checks that the core's books add up; O(blocks). A failure is a bug of pagedkv."""
        self.parts.scheduler.check_invariants()

    def close(self) -> None:
        """Ends all requests and returns all memory. A second call does nothing."""
        if self._parts is None:
            return
        is_cuda = self._parts.loaded.device.type == "cuda"
        self._parts = None
        self._states.clear()
        self._core_ids.clear()
        # Models hold references in circles.
        gc.collect()
        if is_cuda:
            torch.cuda.empty_cache()

    @property
    def _decode_token(self) -> Callable[[int], str] | None:
        tokenizer = self.parts.tokenizer
        return None if tokenizer is None else tokenizer.decode_token

    def _free_name(self, core_id: int) -> str:
        name = str(core_id)
        while name in self._core_ids:
            name += "_"
        return name

    def _fill_rows(self, batch: Batch, *, now: float) -> None:
        """Writes the state of sequences that got a row."""
        parts = self.parts
        for row, core_id, index in parts.arena.row_fills(batch):
            self._request_of_row[row] = core_id
            state = self._states[core_id]
            if state.metrics.first_scheduled_time is None:
                state.metrics.first_scheduled_time = now
            is_read = needs_token_ids(state.params)
            output_ids = parts.scheduler.output_token_ids(core_id, index) if is_read else None
            parts.scorer.fill_row(row, state.unscored_prompt, state.params)
            parts.names.fill_row(row, state.params.logprob_token_ids)
            parts.sampler.fill_row(
                row,
                state.params,
                index=index,
                seed=state.seed,
                ending_ids=state.ending_ids,
                prompt_token_ids=np.asarray(state.prompt_token_ids, dtype=np.int32)
                if is_read
                else _NO_TOKENS,
                output_token_ids=_NO_TOKENS if output_ids is None else output_ids,
            )

    def _end_failed(self, outcome: BatchOutcome, events: StepEvents) -> None:
        """Ends the requests of rows that failed; what else they have in the batch is then discarded."""
        messages = {
            int(self._request_of_row[row]): error for row, error in outcome.failures.items()
        }
        for core_id, error in messages.items():
            state = self._states.pop(core_id)
            self._core_ids.pop(state.request_id)
            logger.error("request %s failed: %s", state.request_id, error)
            result = self.parts.scheduler.abort(core_id)
            if result is None:
                continue
            state.metrics.finished_time = time.monotonic()
            events.end(state, state.final_output(result, self._decode_token, error=error))

    def _collect(self, outcome: BatchOutcome, output: StepOutput, events: StepEvents) -> None:
        """Everything a step delivers. Loops over requests with something to deliver alone."""
        now, decode_token = time.monotonic(), self._decode_token
        for score in outcome.prompt_scores:
            state = self._states.get(int(self._request_of_row[score.row]))
            if state is not None:
                state.prompt_scores[score.position] = score
        if outcome.top:
            self._keep_logprobs(outcome, output)
        for core_id in output.first_tokens:
            self._clock.note_first_token(self._states[core_id].metrics, now)
        for core_id, index, text, token_ids, finish_reason in output.deltas:
            state = self._states[core_id]
            delta = state.note_delta(index, text, token_ids, finish_reason, decode_token)
            if delta is not None:
                events.deltas.append((state, delta))
        for core_id in output.finished:
            state = self._states.pop(core_id)
            self._core_ids.pop(state.request_id)
            state.metrics.finished_time = now
            result = self.parts.scheduler.take_output(core_id)
            events.end(state, state.final_output(result, decode_token))

    def _keep_logprobs(self, outcome: BatchOutcome, output: StepOutput) -> None:
        arrays = self.parts.arena.arrays
        # A sample that reports has one candidate, the first, also beside beams that have many.
        num_samples = outcome.token_ids.shape[0]
        token_ids = outcome.token_ids.reshape(num_samples, -1)[:, 0]
        logprobs = outcome.logprobs.reshape(num_samples, -1)[:, 0]
        for report in outcome.top:
            sample = report.sample
            if not output.accepted[sample]:
                continue
            core_id = int(self._request_of_row[arrays["sample_rows"][sample]])
            index = int(arrays["sample_index"][sample])
            self._states[core_id].logprobs.setdefault(index, []).append(
                SampledLogprob(
                    token_id=int(token_ids[sample]),
                    logprob=float(logprobs[sample]),
                    top=report,
                    named=outcome.named.get(sample, []),
                )
            )


def _check_request_id(request_id: Any) -> None:
    if not isinstance(request_id, str) or not request_id:
        msg = f"request_id must be a str that is not empty, got {request_id!r}"
        raise TypeError(msg)
