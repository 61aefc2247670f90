"""Threads that share one engine: whoever has the turn runs a step for all."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from typing import TYPE_CHECKING, TypeVar

from pagedkv.errors import PagedKVError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pagedkv.admission import EngineRequest
    from pagedkv.engine import LLMEngine
    from pagedkv.outputs import RequestOutput, StreamDelta
    from pagedkv.step_events import StepEvents

Answer = TypeVar("Answer")


class Call:
    """What one caller waits for.

    Attributes:
        request_ids: its requests, in the order of its prompts.
        outputs: those that have ended, by request id.
        deltas: what a stream has not yet handed out.
    """

    def __init__(self) -> None:
        self.request_ids: list[str] = []
        self.outputs: dict[str, RequestOutput] = {}
        self.deltas: deque[StreamDelta] = deque()

    @property
    def is_finished(self) -> bool:
        """Whether every request has ended."""
        return len(self.outputs) == len(self.request_ids)


class SharedLoop:
    """Lets any number of threads drive an engine.

    One thread at a time has the turn. It runs one step, which advances the requests of all callers, delivers what came of
    it, and wakes the others; each then looks whether its own call is done and, if not, takes the next turn. Requests are
    added and ended between steps.
    """

    def __init__(self, engine: LLMEngine) -> None:
        """Takes over an engine that nobody else steps."""
        self._engine = engine
        # Reentrant: a stream may be collected, and end its request, in the middle of any line.
        self._condition = threading.Condition(threading.RLock())
        self._stepper: int | None = None
        self._num_waiting = 0
        self._num_turns = 0
        self._calls: dict[str, Call] = {}
        self._abandoned: deque[str] = deque()

    def submit(self, requests: Sequence[EngineRequest], *, is_streamed: bool) -> Call:
        """Adds all requests of a call, or none.

        Raises:
            ValueError: one can never fit, or the queue is full.
        """
        call = Call()
        with self._pause():
            try:
                for request in requests:
                    name = self._engine.submit(request, request_id=None, is_streamed=is_streamed)
                    call.request_ids.append(name)
                    self._calls[name] = call
            except BaseException:
                self._abandoned.extend(call.request_ids)
                self._end_abandoned()
                raise
        return call

    def advance(self, call: Call) -> None:
        """Returns after one more step, run by this thread or by another that had the turn.

        Raises:
            PagedKVError: the engine has nothing to run although the call is not finished: somebody else stepped it.
        """
        if not self._take_turn():
            return
        try:
            has_run = self._engine.advance(self._deliver)
        finally:
            self._give_turn_back()
        if not has_run and not call.is_finished:
            msg = "a request is gone: llm.llm_engine was stepped while a call was running"
            raise PagedKVError(msg)

    def between_steps(self, question: Callable[[], Answer]) -> Answer:
        """Calls a function of the engine while no step runs; from inside a step, at once."""
        with self._pause():
            return question()

    def cancel(self, call: Call) -> None:
        """Ends what is left of a call and frees its blocks, at once or after the step that runs."""
        with self._condition:
            self._abandoned.extend(name for name in call.request_ids if name not in call.outputs)
            if self._stepper is None:
                self._end_abandoned()

    def recover(self) -> None:
        """Gives back a turn that an interrupt left behind in this thread."""
        with self._condition:
            if self._stepper == threading.get_ident():
                self._give_turn_back()

    def close(self) -> None:
        """Waits for the step that runs, then closes the engine; whoever waits for it gets an error."""
        with self._pause():
            self._calls.clear()
            self._engine.close()

    @contextlib.contextmanager
    def _pause(self) -> Iterator[None]:
        """Waits for the step that runs, unless it is this thread's own, and holds the next one back."""
        with self._condition:
            self._num_waiting += 1
            try:
                self._condition.wait_for(lambda: self._stepper in {None, threading.get_ident()})
                yield
            finally:
                self._num_waiting -= 1
                self._condition.notify_all()

    def _take_turn(self) -> bool:
        """Waits until this thread may step; False if another stepped meanwhile."""
        with self._condition:
            if self._stepper == threading.get_ident():
                msg = "generate() was called from inside a step of the same engine, which cannot end before it"
                raise RuntimeError(msg)
            seen = self._num_turns
            while self._stepper is not None or self._num_waiting:
                self._condition.wait()
                if self._num_turns != seen:
                    return False
            self._stepper = threading.get_ident()
            return True

    def _give_turn_back(self) -> None:
        with self._condition:
            self._stepper = None
            self._num_turns += 1
            self._end_abandoned()
            self._condition.notify_all()

    def _end_abandoned(self) -> None:
        while self._abandoned:
            name = self._abandoned.popleft()
            self._calls.pop(name, None)
            self._engine.abort_request(name)

    def _deliver(self, events: StepEvents) -> None:
        for state, delta in events.deltas:
            if call := self._calls.get(state.request_id):
                call.deltas.append(delta)
        for _, output in events.finished:
            if call := self._calls.pop(output.request_id, None):
                call.outputs[output.request_id] = output
