"""A progress bar with the two numbers that matter: tokens per second and how full the KV cache is."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from pagedkv.stats import EngineStats

_SECONDS_BETWEEN_REFRESHES = 0.1


class GenerationProgress:
    """Counts finished requests of a call; silent when switched off."""

    def __init__(self, num_requests: int, *, is_shown: bool) -> None:
        """Opens the bar.

        Args:
            num_requests: requests of the call.
            is_shown: whether to show anything.
        """
        self._bar: Any = None
        self._last_refresh = time.monotonic()
        self._first_tokens: float | None = None
        self._started = self._last_refresh
        if is_shown and num_requests:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=num_requests, desc="Generating", unit="req", dynamic_ncols=True)

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes the bar."""
        if self._bar is not None:
            self._bar.close()

    @property
    def is_due(self) -> bool:
        """Whether the bar is shown and its last refresh is some time ago."""
        if self._bar is None:
            return False
        return time.monotonic() - self._last_refresh >= _SECONDS_BETWEEN_REFRESHES

    def refresh(self, num_finished: int, stats: EngineStats) -> None:
        """Shows how far the call is.

        Args:
            num_finished: of its requests.
            stats: of the engine, now.
        """
        if self._bar is None:
            return
        now = time.monotonic()
        generated = stats["num_generated_tokens"] or 0
        if self._first_tokens is None:
            self._first_tokens, self._started = generated, now
        seconds = now - self._started
        rate = (generated - self._first_tokens) / seconds if seconds > 0 else 0.0
        usage = stats["kv_cache_usage"] or 0.0
        self._last_refresh = now
        self._bar.n = num_finished
        self._bar.set_postfix_str(f"{rate:,.0f} tokens/s, KV cache {usage:.0%}")
