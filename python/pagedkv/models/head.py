"""The language-model head on its own: logits of more positions of a forward pass, without running its layers again."""

from __future__ import annotations

import contextlib
import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import nn


class LanguageModelHead:
    """What a causal language model does after its body: projection, scaling, caps, whatever its code says.

    A model is a body, which returns hidden states, and code around it. While a call is watched, the body's result is
    kept. `logits` calls the model again with a body that returns that result at once, so that no head is written twice.
    """

    def __init__(self, model: nn.Module) -> None:
        """Keeps the model; the first call that is watched shows which module its body is."""
        self._model = model
        self._takes_indices = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._body: nn.Module | None = None
        self._arguments: dict[str, Any] = {}
        self._hidden: Any = None

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Keeps what the body returns in the last call of the model within the block.

        Raises:
            RuntimeError: at the end, if the model was called and has no body to be seen.
        """
        found: dict[int, tuple[nn.Module, Any]] = {}

        def note_arguments(_: nn.Module, __: Any, arguments: dict[str, Any]) -> None:
            self._arguments = arguments

        def note_result(depth: int) -> Any:
            def note(module: nn.Module, _: Any, result: Any) -> None:
                if hasattr(result, "last_hidden_state") or (depth == 1 and type(result) is tuple):
                    found.setdefault(depth, (module, result))

            return note

        hooks = [self._model.register_forward_pre_hook(note_arguments, with_kwargs=True)]
        for depth, modules in enumerate(self._candidates(), start=1):
            hooks += [module.register_forward_hook(note_result(depth)) for module in modules]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        if not found:
            name = type(self._model).__name__
            msg = f"prompt_logprobs: {name} has no body whose hidden states could be kept"
            raise RuntimeError(msg)
        self._body, self._hidden = found[min(found)]

    def logits(self, indices: torch.Tensor) -> torch.Tensor:
        """Logits of positions of the call that was watched.

        Args:
            indices: [K] int64 on the model's device; may repeat.

        Returns:
            [K, vocabulary or more] in the model's dtype.

        Raises:
            RuntimeError: no call was watched.
        """
        body, hidden = self._body, self._hidden
        if body is None:
            msg = "no call of the model was watched"
            raise RuntimeError(msg)
        arguments = dict(self._arguments)
        if self._takes_indices:
            arguments["logits_to_keep"] = indices
        own = vars(body).get("forward")
        body.forward = lambda *_, **__: hidden
        try:
            logits: torch.Tensor = self._model(**arguments).logits[0]
        finally:
            if own is None:
                del body.forward
            else:
                body.forward = own
        return logits if self._takes_indices else logits[indices]

    def forget(self) -> None:
        """Lets go of the hidden states."""
        self._hidden = self._body = None
        self._arguments = {}

    def _candidates(self) -> list[list[nn.Module]]:
        """The modules that may be the body: children, then theirs; some models call those past their parent."""
        children = list(self._model.children())
        return [children, [module for child in children for module in child.children()]]
