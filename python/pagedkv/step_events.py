"""What a step has to deliver, and the outputs that a loop of one's own gets of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pagedkv.request_state import grown_by
from pagedkv.sampling_params import RequestOutputKind

if TYPE_CHECKING:
    from pagedkv.outputs import RequestOutput, StreamDelta
    from pagedkv.request_state import DecodeToken, RequestState


@dataclass(slots=True)
class StepEvents:
    """What a step has to deliver.

    Attributes:
        deltas: what is new of streamed requests, in order.
        finished: requests that ended, with their outputs.
    """

    deltas: list[tuple[RequestState, StreamDelta]] = field(default_factory=list)
    finished: list[tuple[RequestState, RequestOutput]] = field(default_factory=list)

    def end(self, state: RequestState, output: RequestOutput) -> None:
        """Adds a request that has ended, and what its deltas still lack."""
        self.finished.append((state, output))
        if state.is_streamed:
            self.deltas += [(state, delta) for delta in state.last_deltas(output)]

    def add(self, events: StepEvents) -> None:
        """Adds what comes after."""
        self.deltas += events.deltas
        self.finished += events.finished

    def outputs(self, decode_token: DecodeToken | None) -> list[RequestOutput]:
        """The outputs of requests that grew, then those of requests that ended, each of its ``output_kind``."""
        grown: dict[int, tuple[RequestState, list[StreamDelta]]] = {}
        for state, delta in self.deltas:
            grown.setdefault(state.core_id, (state, []))[1].append(delta)
        final = [
            _last_output(state, output, grown.pop(state.core_id, (state, []))[1])
            for state, output in self.finished
        ]
        partial = [state.partial_output(deltas, decode_token) for state, deltas in grown.values()]
        return partial + final


def _last_output(
    state: RequestState, output: RequestOutput, deltas: list[StreamDelta]
) -> RequestOutput:
    if state.params.output_kind is not RequestOutputKind.DELTA:
        return output
    whole = {completion.index: completion for completion in output.outputs}
    last = [
        replace(
            part,
            cumulative_logprob=whole[part.index].cumulative_logprob,
            stop_reason=whole[part.index].stop_reason,
        )
        for part in grown_by(deltas)
    ]
    return replace(output, outputs=last)
