"""Sibling projections, such as those to query, key and value: one matrix product instead of several.

Siblings are linear layers of one module that a forward pass gives the same tensor. Which ones they are is seen, not
known by name: every linear layer is watched through one probe. Then they share one weight, of which each keeps its rows
as a view, so that names and state dictionaries stay as they were. The first one called computes for all; another one,
called with the very same tensor, takes its columns, and called with any other tensor it computes on its own.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.nn import functional

from pagedkv.models.packed_weight import STRIP, PackedWeight
from pagedkv.models.rows import has_row_multiple, results_agree
from pagedkv.pages import release_pages

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pagedkv.models.probe import ProbeResult
    from pagedkv.models.rows import Probe

logger = logging.getLogger(__name__)

FusionChoice = bool | Literal["auto"]

# The most numbers in a shared weight that gained by it (benches/RESULTS.md): what is saved is the start of a product,
# which counts when threads must be woken for it and the product is short.
_MAX_AUTO_NUMEL = 1 << 17


@dataclass(frozen=True, slots=True, kw_only=True)
class Siblings:
    """Linear layers that read the same tensor.

    Attributes:
        parent: The module whose children they are.
        names: Their names there, in the order in which they are called.
    """

    parent: nn.Module
    names: tuple[str, ...]

    @property
    def linears(self) -> list[nn.Linear]:
        """The layers, in the order of ``names``."""
        return [self.parent.get_submodule(name) for name in self.names]  # type: ignore[misc] # found as linear layers


class LinearCalls:
    """Which tensor each linear layer of a model was given, in the order of the calls.

    Holds the tensors, so that none takes the place of another.
    """

    def __init__(self) -> None:
        self._inputs: dict[nn.Module, list[torch.Tensor]] = {}

    def record(self, linear: nn.Module, arguments: tuple[Any, ...]) -> None:
        """A forward pre-hook."""
        self._inputs.setdefault(linear, []).append(arguments[0])

    def siblings(self, model: nn.Module, *, num_rows: int) -> list[Siblings]:
        """The siblings among the layers seen.

        Left out are experts, which see a part of the rows, and layers that were called more than once or whose weight
        or bias another module has too.

        Args:
            model: The model that was watched.
            num_rows: Rows of the watched forward pass.
        """
        shared = _shared_parameters(model)
        found = []
        for name, parent in model.named_modules():
            if "experts" in name.split("."):
                continue
            names = {child: child_name for child_name, child in parent.named_children()}
            by_input: dict[tuple[int, torch.dtype], list[str]] = defaultdict(list)
            for linear, inputs in self._inputs.items():
                if linear not in names or len(inputs) > 1 or linear._forward_hooks:  # noqa: SLF001 (has no public reader)
                    continue
                tensor, weight = inputs[0], linear.get_parameter("weight")
                is_whole = tensor.numel() == num_rows * tensor.shape[-1]
                if is_whole and not any(id(p) in shared for p in linear.parameters()):
                    by_input[id(tensor), weight.dtype].append(names[linear])
            found += [
                Siblings(parent=parent, names=tuple(group))
                for group in by_input.values()
                if len(group) > 1
            ]
        return found


@contextmanager
def watch_linears(model: nn.Module) -> Iterator[LinearCalls]:
    """Records the inputs of all linear layers of ``model`` during the ``with`` statement."""
    calls = LinearCalls()
    handles = [
        module.register_forward_pre_hook(calls.record)
        for module in model.modules()
        if type(module) is nn.Linear
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def choose_siblings(
    found: Sequence[Siblings], choice: FusionChoice, device: torch.device
) -> list[Siblings]:
    """The siblings to fuse: all for True, none for False, those that measured faster for ``auto``."""
    if choice != "auto":
        return list(found) if choice else []
    if device.type != "cpu" or torch.get_num_threads() == 1:
        return []
    return [
        siblings
        for siblings in found
        if sum(linear.weight.numel() for linear in siblings.linears) <= _MAX_AUTO_NUMEL
    ]


def fuse_if_equal(
    model: nn.Module,
    found: Sequence[Siblings],
    choice: FusionChoice,
    run: Probe,
    first: ProbeResult,
    *,
    input_ids: torch.Tensor,
    positions: torch.Tensor,
    row_multiple: int | None,
) -> FusedProjections | None:
    """Fuses the siblings to be fused, runs the probe again, and takes the fusion back if the result is another.

    Args:
        model: Changed in place.
        found: The siblings to choose from.
        choice: Which to fuse, see `choose_siblings`. ``auto`` accepts equal bits alone, True a result that agrees up to
            rounding.
        run: Runs the probe.
        first: The result of ``input_ids`` at ``positions`` before.
        input_ids: [T].
        positions: [T].
        row_multiple: Accept only rows that have the same bits in batches of a multiple of it, unless it is None.
    """
    groups = choose_siblings(found, choice, input_ids.device)
    if not groups:
        return None
    fused = FusedProjections(model, groups)
    try:
        again = run(input_ids, positions)
        is_same = results_agree(first, again, in_bits=choice == "auto") and (
            row_multiple is None
            or has_row_multiple(row_multiple, run, again, input_ids=input_ids, positions=positions)
        )
    except RuntimeError as error:
        # A model that cannot read strided columns.
        logger.debug("the fused model fails: %s", error)
        is_same = False
    if is_same:
        logger.debug("%d groups of sibling projections fused", len(groups))
        return fused
    logger.info("sibling projections stay separate: fused, they give other results")
    fused.undo()
    return None


class SharedProduct:
    """The product of one input with the weights of all siblings, computed by the first and taken by the others.

    Attributes:
        weight: [outputs, inputs], the siblings' weights one below the other; packed ones begin with a strip.
        bias: [outputs], None where none of them has one.
        starts: The row in which each sibling begins.
    """

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        """Copies the weights; a sibling without bias beside one with gets zeros."""
        weights = [linear.weight.detach() for linear in linears]
        self.weight, self.starts = _join(weights)
        self._sizes = [linear.out_features for linear in linears]
        self.bias: torch.Tensor | None = None
        biases = [_bias_of(linear) for linear in linears]
        if any(bias is not None for bias in biases):
            first = next(bias for bias in biases if bias is not None)
            self.bias = first.new_zeros(self.weight.shape[0])
            for start, bias in zip(self.starts, biases, strict=True):
                if bias is not None:
                    self.bias[start : start + bias.shape[0]] = bias
        # The input and what is left of its product, by place.
        self._held: tuple[torch.Tensor, dict[int, torch.Tensor]] | None = None

    def weight_of(self, place: int) -> torch.Tensor:
        """The weight of sibling ``place``, in the same memory."""
        start, size = self.starts[place], self._sizes[place]
        if isinstance(self.weight, PackedWeight):
            return self.weight.part(start, size)
        return self.weight[start : start + size]

    def bias_of(self, place: int) -> torch.Tensor:
        """The bias of sibling ``place``, in the same memory."""
        assert self.bias is not None, "asked for by a sibling with a bias"
        return self.bias[self.starts[place] :][: self._sizes[place]]

    def compute(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Multiplies, keeps the columns of the others, and returns those of the first."""
        product = functional.linear(hidden_states, self.weight, self.bias)
        first, *others = (
            product.narrow(-1, start, size)
            for start, size in zip(self.starts, self._sizes, strict=True)
        )
        self._held = (hidden_states, dict(enumerate(others, start=1)))
        return first

    def take(self, place: int, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """The columns of sibling ``place``, once; None if the product at hand is not that of this very tensor."""
        if self._held is None or self._held[0] is not hidden_states:
            return None
        columns = self._held[1].pop(place, None)
        if not self._held[1]:
            self._held = None
        return columns

    def drop(self) -> None:
        """Forgets what nobody took."""
        self._held = None


class SiblingLinear(nn.Linear):
    """A linear layer whose weight is a part of a shared one."""

    def __init__(self, product: SharedProduct, linear: nn.Linear, *, place: int) -> None:
        """Stands for ``linear``, sibling ``place`` of the product."""
        super().__init__(
            linear.in_features,
            linear.out_features,
            bias=_bias_of(linear) is not None,
            device="meta",
        )
        self.weight = nn.Parameter(product.weight_of(place), requires_grad=False)
        if _bias_of(linear) is not None:
            self.bias = nn.Parameter(product.bias_of(place), requires_grad=False)
        self._product = product
        self._place = place
        self.train(linear.training)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The projection of ``hidden_states`` [..., inputs]; its rows may be strided."""
        if self._place == 0:
            return self._product.compute(hidden_states)
        columns = self._product.take(self._place, hidden_states)
        if columns is not None:
            return columns
        return functional.linear(hidden_states, self.weight, self.bias)


class FusedProjections:
    """The siblings of a model, fused one group after the other, so that only one is held twice at a time."""

    def __init__(self, model: nn.Module, groups: Sequence[Siblings]) -> None:
        """Puts a `SiblingLinear` in the place of every sibling."""
        self._groups = groups
        self._products = [_fuse(siblings) for siblings in groups]
        # Also when the forward pass fails.
        self._hook = model.register_forward_hook(self._drop_all, always_call=True)

    def undo(self) -> None:
        """Gives every sibling a weight of its own again."""
        self._hook.remove()
        self._products.clear()
        for siblings in self._groups:
            for name, sibling in zip(siblings.names, siblings.linears, strict=True):
                setattr(siblings.parent, name, _separate(sibling))

    def _drop_all(self, *_: object) -> None:
        for product in self._products:
            product.drop()


def _fuse(siblings: Siblings) -> SharedProduct:
    linears = siblings.linears
    product = SharedProduct(linears)
    for place, (name, linear) in enumerate(zip(siblings.names, linears, strict=True)):
        setattr(siblings.parent, name, SiblingLinear(product, linear, place=place))
        release_pages(linear.weight)
    return product


def _join(weights: Sequence[torch.Tensor]) -> tuple[torch.Tensor, list[int]]:
    """The weights one below the other, and the row in which each begins."""
    packed = [weight for weight in weights if isinstance(weight, PackedWeight)]
    are_packed = len(packed) == len(weights)
    sizes = [
        -(-weight.shape[0] // STRIP) * STRIP if are_packed else weight.shape[0]
        for weight in weights
    ]
    starts = [0, *accumulate(sizes[:-1])]
    return PackedWeight.join(packed) if are_packed else torch.cat(list(weights)), starts


def _separate(sibling: nn.Linear) -> nn.Linear:
    assert isinstance(sibling, SiblingLinear), "undone once"
    bias = _bias_of(sibling)
    linear = nn.Linear(
        sibling.in_features, sibling.out_features, bias=bias is not None, device="meta"
    )
    linear.weight = nn.Parameter(sibling.weight.detach().clone(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.clone(), requires_grad=False)
    return linear.train(sibling.training)


def _bias_of(linear: nn.Linear) -> torch.Tensor | None:
    """The bias; torch's annotation leaves out that there may be none."""
    bias: torch.Tensor | None = linear.bias
    return None if bias is None else bias.detach()


def _shared_parameters(model: nn.Module) -> set[int]:
    """Ids of the parameters that stand in several places of the model."""
    seen: set[int] = set()
    shared: set[int] = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            (shared if id(parameter) in seen else seen).add(id(parameter))
    return shared
