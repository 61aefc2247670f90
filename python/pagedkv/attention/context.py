"""The step that the running forward pass belongs to.

Transformers calls the attention function with the tensors of one layer and nothing of ours, and some models drop unknown
keyword arguments on the way. So the step travels beside the model: in one context variable, set for one forward pass.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pagedkv.attention.base import AttentionBackend, LayerSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class StepContext:
    """What the attention function needs to know about the running step.

    Attributes:
        backend: The planned backend.
        layers: Attention layers by the index that the model gives them.
    """

    backend: AttentionBackend
    layers: Mapping[int, LayerSpec]


_current: ContextVar[StepContext | None] = ContextVar("pagedkv_step", default=None)


@contextmanager
def step_context(context: StepContext) -> Iterator[None]:
    """Makes ``context`` the current step of this thread for the body of the ``with`` statement.

    Raises:
        RuntimeError: A step is running in this thread already.
    """
    if _current.get() is not None:
        msg = "a forward pass is running in this thread already: steps do not nest"
        raise RuntimeError(msg)
    token = _current.set(context)
    try:
        yield
    finally:
        _current.reset(token)


def current_step() -> StepContext:
    """The step set by `step_context`.

    Raises:
        RuntimeError: No step is running: the model was called outside of the engine.
    """
    context = _current.get()
    if context is None:
        msg = (
            "the model was called outside of an engine step; "
            "call model.set_attn_implementation('sdpa') to use it by itself"
        )
        raise RuntimeError(msg)
    return context
