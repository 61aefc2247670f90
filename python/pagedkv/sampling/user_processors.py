"""``logits_processors``: the request's own functions on its raw logits."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from pagedkv.sampling.histories import OutputHistories
    from pagedkv.sampling.row_state import RowState
    from pagedkv.sampling.targets import SampleTargets

_NUM_WITH_PROMPT = 3


class UserProcessors:
    """The functions by row. What one of them does wrong is a failure of its own sample."""

    def __init__(self, *, histories: OutputHistories, max_num_seqs: int) -> None:
        """Has no functions.

        Args:
            histories: Where the rows' tokens are.
            max_num_seqs: Rows there can be.
        """
        self._histories = histories
        self._processors: dict[int, list[tuple[Callable[..., Any], bool]]] = {}
        self._has_processors = np.zeros(max_num_seqs, dtype=np.bool_)

    def fill(self, row: int, state: RowState) -> None:
        """Notes the row's functions."""
        self._has_processors[row] = bool(state.processors)
        if state.processors:
            self._processors[row] = [(each, _takes_prompt(each)) for each in state.processors]
        else:
            self._processors.pop(row, None)

    def active(self, targets: SampleTargets) -> npt.NDArray[np.bool_]:
        """[S], which samples have functions."""
        return self._has_processors[targets.rows]

    def apply(
        self, logits: torch.Tensor, places: npt.NDArray[np.int64], targets: SampleTargets
    ) -> dict[int, str]:
        """Replaces each of the rows by what its functions make of it.

        Args:
            logits: [P, V] float32.
            places: [A] rows of ``logits``.
            targets: [A], for whom.

        Returns:
            What went wrong, by place; such a row is left as it was.
        """
        failures = {}
        for place, row in zip(places.tolist(), targets.rows.tolist(), strict=True):
            error = self._process(logits[place], row)
            if error is not None:
                failures[place] = f"a logits processor failed: {type(error).__name__}: {error}"
        return failures

    def _process(self, logits: torch.Tensor, row: int) -> Exception | None:
        result = logits.clone()
        try:
            for function, takes_prompt in self._processors[row]:
                # Copies: the lists are the engine's, and a function may keep what it is given.
                tokens = [list(self._histories.output(row))]
                if takes_prompt:
                    tokens.insert(0, list(self._histories.prompt(row)))
                result = _checked(function(*tokens, result), logits)
        except Exception as error:  # noqa: BLE001 - whatever a user's function raises ends its request alone
            return error
        logits.copy_(result)
        return None


def _takes_prompt(function: Callable[..., Any]) -> bool:
    """Whether it is called with (prompt ids, output ids, logits); else with (output ids, logits)."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = [
        each
        for each in parameters
        if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
        and each.default is each.empty
    ]
    return len(positional) == _NUM_WITH_PROMPT


def _checked(result: Any, logits: torch.Tensor) -> torch.Tensor:
    if isinstance(result, torch.Tensor):
        if result.shape == logits.shape and result.is_floating_point():
            return result
        got = f"a tensor of shape {tuple(result.shape)} and dtype {result.dtype}"
    else:
        got = type(result).__name__
    msg = f"it must return a floating-point tensor of shape {tuple(logits.shape)}, got {got}"
    raise TypeError(msg)
