"""Ctrl-C at a moment when it can be answered."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType, TracebackType


class InterruptShield:
    """Holds SIGINT back for the microseconds in which a step changes hands.

    Inside the block the signal is noted; at its end the handler that was there before gets it. Without that, an interrupt
    between two lines could lose a scheduled batch or the outputs of finished requests. Only the main thread receives
    KeyboardInterrupt, so that in other threads this does nothing.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._previous: object = None
        self._frame: FrameType | None = None
        self._is_noted = False

    def __enter__(self) -> None:
        """Starts to hold the signal back."""
        self._depth += 1
        if self._depth == 1 and threading.current_thread() is threading.main_thread():
            handler = signal.getsignal(signal.SIGINT)
            # A handler of C, or none, raises nothing here.
            if callable(handler):
                self._previous = handler
                signal.signal(signal.SIGINT, self._note)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Gives the signal back, and answers it if it came."""
        self._depth -= 1
        if self._depth:
            return
        handler, self._previous = self._previous, None
        if not callable(handler):
            return
        signal.signal(signal.SIGINT, handler)
        if self._is_noted:
            self._is_noted = False
            handler(signal.SIGINT, self._frame)

    def _note(self, _signal_number: int, frame: FrameType | None) -> None:
        self._frame = frame
        self._is_noted = True
