"""Weights in the order in which the kernel for linear layers reads them.

`pagedkv._core.linear` multiplies with the weights of sixteen outputs at once, so these lie beside each other: strips of
sixteen outputs, in each the weights of one input after those of another. A `PackedWeight` is kept like that and is the
matrix that it was for all else: it stands in the place of a parameter, whatever the code of the layer, and in several
places where a weight is tied. ``functional.linear`` and ``functional.embedding`` take it as it is; any other function
gets a copy in torch's own order, and a write is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch.nn import functional
from torch.utils._pytree import tree_map

from pagedkv.arrays import DTYPE_NAMES, shared_array
from pagedkv.models.linear import linear

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Self

    from pagedkv.arrays import SharedArray

    Function: TypeAlias = Callable[..., Any]

# Outputs of a strip.
STRIP = 16

_ATEN = torch.ops.aten
_WRITES = (torch.Tensor.__setitem__, torch.Tensor.data.__set__)  # type: ignore[attr-defined] # a property of C


class Packed(torch.Tensor):
    """What a function of torch does with weights in strips: their shape, dtype and device are those of ``unpacked``.

    Attributes:
        strips: [..., outputs / 16, inputs * 16], rounded up; zeros where there is no output.
        num_outputs: Of each matrix.
        num_inputs: Of each matrix.
        num_unpackings: How often a copy in torch's order was made.
    """

    strips: torch.Tensor
    num_outputs: int
    num_inputs: int
    num_unpackings: int

    @classmethod
    def _wrap(cls, strips: torch.Tensor, num_outputs: int, shape: tuple[int, ...]) -> Self:
        """An object of the class, by its strips and by the shape that it shows."""
        self: Self = torch.Tensor._make_wrapper_subclass(  # noqa: SLF001 (has no public name)
            cls, shape, dtype=strips.dtype, device=strips.device
        )
        self.strips = strips
        self.num_outputs = num_outputs
        self.num_inputs = strips.shape[-1] // STRIP
        self.num_unpackings = 0
        return self

    def unpacked(self) -> torch.Tensor:
        """A copy in torch's order."""
        raise NotImplementedError

    def with_strips(self, strips: torch.Tensor) -> Self:
        """The same weights in other memory."""
        raise NotImplementedError

    def __repr__(self) -> str:  # type: ignore[override]
        """What it is; its numbers are in `unpacked`."""
        return f"{type(self).__name__}(shape={tuple(self.shape)}, dtype={self.dtype})"

    @classmethod
    def __torch_function__(
        cls,
        func: Function,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Functions and methods of torch, by the object that Python sees."""
        own = _FUNCTIONS.get(func)
        if own is not None:
            return own(*args, **(kwargs or {}))
        if func in _WRITES and isinstance(args[0], Packed):
            raise _write_error(func.__name__)
        with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001 (has no public name)
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override] # torch has a function without a class here
        cls,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Operations: all that is not answered by the shape alone."""
        if func in (_ATEN.detach.default, _ATEN.alias.default):
            return args[0].with_strips(args[0].strips)
        if func is _ATEN.clone.default:
            return args[0].with_strips(args[0].strips.clone())
        if func.overloadpacket in (_ATEN.to, _ATEN._to_copy):  # noqa: SLF001 (its name)
            # What becomes of any tensor by these arguments.
            example = func(args[0].strips.new_empty(0), *args[1:], **(kwargs or {}))
            if example.device.type == "cpu" and example.dtype in DTYPE_NAMES:
                return args[0].with_strips(args[0].strips.to(example.dtype))
        if func._schema.is_mutable and isinstance(args[0], Packed):  # noqa: SLF001 (has no public name)
            raise _write_error(str(func))
        return func(*tree_map(_unpack, args), **tree_map(_unpack, kwargs or {}))


class PackedWeight(Packed):
    """A matrix [outputs, inputs].

    Attributes:
        array: The strips as the kernel takes them.
    """

    array: SharedArray

    @classmethod
    def of_strips(cls, strips: torch.Tensor, num_outputs: int) -> Self:
        """The matrix whose strips [outputs / 16, inputs * 16] they are."""
        self = cls._wrap(strips, num_outputs, (num_outputs, strips.shape[1] // STRIP))
        self.array = shared_array(strips)
        return self

    @classmethod
    def pack(cls, weight: torch.Tensor) -> Self:
        """Copies ``weight`` [outputs, inputs]."""
        return cls.of_strips(_pack(weight.detach()), weight.shape[0])

    @classmethod
    def join(cls, weights: Sequence[PackedWeight]) -> Self:
        """One below the other, each from a new strip on."""
        strips = torch.cat([weight.strips for weight in weights])
        *others, last = weights
        num_others = sum(weight.strips.shape[0] for weight in others)
        return cls.of_strips(strips, num_others * STRIP + last.num_outputs)

    def part(self, first: int, num_outputs: int) -> Self:
        """Rows from ``first``, a multiple of 16, on; in the same memory."""
        strips = self.strips[first // STRIP : -(-(first + num_outputs) // STRIP)]
        return self.of_strips(strips, num_outputs)

    def unpacked(self) -> torch.Tensor:
        """A copy in torch's order."""
        self.num_unpackings += 1
        return _unpack_strips(self.strips, self.num_outputs)

    def with_strips(self, strips: torch.Tensor) -> Self:
        """The same weights in other memory."""
        return self.of_strips(strips, self.num_outputs)

    def look_up(self, indices: torch.Tensor) -> torch.Tensor:
        """Rows of the matrix: [..., inputs] for indices [...].

        Raises:
            IndexError: an index of no row.
        """
        if indices.numel():
            lowest, highest = (int(index) for index in torch.aminmax(indices))
            if lowest < 0 or highest >= self.num_outputs:
                wrong = lowest if lowest < 0 else highest
                msg = f"index {wrong} is out of range for {self.num_outputs} embeddings"
                raise IndexError(msg)
        by_strip = self.strips.view(self.strips.shape[0], self.num_inputs, STRIP)
        return by_strip[indices // STRIP, :, indices % STRIP]


class PackedExperts(Packed):
    """A matrix for each expert: [experts, outputs, inputs], or transposed [experts, inputs, outputs].

    Attributes:
        experts: The matrix of each, [outputs, inputs].
    """

    experts: list[PackedWeight]
    _is_transposed: bool

    @classmethod
    def of_strips(cls, strips: torch.Tensor, num_outputs: int, *, is_transposed: bool) -> Self:
        """The matrices whose strips [experts, outputs / 16, inputs * 16] they are."""
        matrix = (num_outputs, strips.shape[2] // STRIP)
        shape = (strips.shape[0], *(matrix[::-1] if is_transposed else matrix))
        self = cls._wrap(strips, num_outputs, shape)
        self.experts = [PackedWeight.of_strips(of_expert, num_outputs) for of_expert in strips]
        self._is_transposed = is_transposed
        return self

    @classmethod
    def pack(cls, weights: torch.Tensor, *, is_transposed: bool) -> Self:
        """Copies ``weights``, of which each is transposed or not."""
        matrices = weights.detach().mT if is_transposed else weights.detach()
        strips = torch.stack([_pack(matrix) for matrix in matrices])
        return cls.of_strips(strips, matrices.shape[1], is_transposed=is_transposed)

    def unpacked(self) -> torch.Tensor:
        """A copy in torch's order."""
        self.num_unpackings += 1
        matrices = torch.stack([_unpack_strips(one, self.num_outputs) for one in self.strips])
        return matrices.mT.contiguous() if self._is_transposed else matrices

    def with_strips(self, strips: torch.Tensor) -> Self:
        """The same weights in other memory."""
        return self.of_strips(strips, self.num_outputs, is_transposed=self._is_transposed)


def _pack(weight: torch.Tensor) -> torch.Tensor:
    num_outputs, num_inputs = weight.shape
    whole, num_left = divmod(num_outputs, STRIP)
    strips = weight.new_zeros(whole + bool(num_left), num_inputs, STRIP)
    strips[:whole] = weight[: whole * STRIP].view(whole, STRIP, num_inputs).mT
    if num_left:
        strips[whole, :, :num_left] = weight[whole * STRIP :].T
    return strips.flatten(1)


def _unpack_strips(strips: torch.Tensor, num_outputs: int) -> torch.Tensor:
    num_strips, num_inputs = strips.shape[0], strips.shape[1] // STRIP
    by_strip = strips.view(num_strips, num_inputs, STRIP).mT
    return by_strip.reshape(num_strips * STRIP, num_inputs)[:num_outputs]


def _unpack(value: Any) -> Any:
    return value.unpacked() if isinstance(value, Packed) else value


def _write_error(what: str) -> RuntimeError:
    return RuntimeError(
        f"{what} would write to a packed weight: give the layer a new parameter, or load the model "
        "with cpu_kernels=False"
    )


def _linear(
    hidden_states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    if isinstance(weight, PackedWeight) and not isinstance(hidden_states, Packed):
        return linear(hidden_states, weight, bias)
    return functional.linear(_unpack(hidden_states), _unpack(weight), bias)


def _embedding(
    input: torch.Tensor,  # noqa: A002 (torch's name)
    weight: torch.Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    *others: Any,
    **more: Any,
) -> torch.Tensor:
    if max_norm is None and isinstance(weight, PackedWeight) and not torch.is_grad_enabled():
        return weight.look_up(input)
    return functional.embedding(input, _unpack(weight), padding_idx, max_norm, *others, **more)


def _item(packed: Packed, indices: Any) -> torch.Tensor:
    # Reached as an operation, it could not make views in inference mode.
    return packed.unpacked()[indices]


_FUNCTIONS: dict[Function, Function] = {
    torch.Tensor.__getitem__: _item,
    functional.linear: _linear,
    functional.embedding: _embedding,
}
