"""What an engine did, in numbers."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pagedkv.outputs import RequestMetrics

EngineStats: TypeAlias = "dict[str, int | float | None]"
"""Counters of the core (see ``Scheduler.stats``) and times of the engine, by name."""


@dataclass(slots=True)
class EngineClock:
    """Times that the core, which has no clock, cannot keep.

    Attributes:
        started: when the engine was ready.
        busy_seconds: seconds spent in steps.
        num_first_tokens: requests that got their first token.
        sum_time_to_first_token: over these, in seconds.
    """

    started: float
    busy_seconds: float = 0.0
    num_first_tokens: int = 0
    sum_time_to_first_token: float = 0.0

    @classmethod
    def start(cls) -> EngineClock:
        """A clock that starts now."""
        return cls(started=time.monotonic())

    def note_first_token(self, metrics: RequestMetrics, now: float) -> None:
        """Records that a request got its first token."""
        metrics.first_token_time = now
        self.num_first_tokens += 1
        self.sum_time_to_first_token += now - metrics.arrival_time

    def figures(self, core: Mapping[str, int | float]) -> EngineStats:
        """The core's figures with the engine's own.

        Of the core's: ``num_held_slots`` and of those ``num_used_slots`` (with tokens), ``num_saved_blocks`` (blocks that
        sequences refer to again, now), ``num_cow_copies``, ``num_cached_prompt_tokens``, ``num_preemptions``,
        ``num_swaps`` and ``num_tokens_lost``; over steps ``mean_slot_use`` (used / held slots) and ``mean_sharing``
        (blocks saved / blocks without sharing, the formula of Kwon et al. 2023, figure 15).

        Besides them: ``slot_use`` and ``sharing`` (the same now, 0 without blocks), ``num_recomputes`` (preemptions that were no
        swaps), ``uptime_seconds``, ``busy_seconds`` (in steps), ``tokens_per_second`` (generated, over busy
        time), ``mean_time_to_first_token`` (None before the first),
        ``prefix_hit_rate`` and ``kv_cache_usage`` (used blocks over all, now).
        """
        busy = self.busy_seconds
        first = self.num_first_tokens
        num_saved, num_held = core["num_saved_blocks"], core["num_used_blocks"]
        return {
            **core,
            "slot_use": _ratio(core["num_used_slots"], core["num_held_slots"]),
            "sharing": _ratio(num_saved, num_saved + num_held),
            "num_recomputes": core["num_preemptions"] - core["num_swaps"],
            "uptime_seconds": time.monotonic() - self.started,
            "busy_seconds": busy,
            "tokens_per_second": _ratio(core["num_generated_tokens"], busy),
            "mean_time_to_first_token": self.sum_time_to_first_token / first if first else None,
            "prefix_hit_rate": _ratio(core["num_cached_prompt_tokens"], core["num_prompt_tokens"]),
            "kv_cache_usage": core["num_used_blocks"] / core["num_blocks"],
        }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
