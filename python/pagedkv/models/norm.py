"""Root-mean-square norms in one pass instead of six.

Every model family of transformers has a class of its own for this norm. They differ in three ways: the weight may be
stored as its difference from 1, the normalised numbers may be rounded before the weight is applied, and the epsilon has
two names. Which of them a module is, is found by running it: it is exchanged if a kernel gives its results.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from pagedkv import _core
from pagedkv.arrays import DTYPE_NAMES, as_rows, kernel_dtype, new_output, shared_array

_TRIAL_ROWS = 8
# Differences to the module that are rounding: the last bits of a mean over a row, summed in another order.
_TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
# Of the numbers in a 16-bit format few are rounded the other way; another order of roundings shows in a third of them.
_MAX_DIFFERING_FRACTION = 0.02


@dataclass(frozen=True, slots=True)
class NormForm:
    """How a norm applies its weight.

    Attributes:
        weight_offset: Added to every weight.
        rounds_twice: The normalised numbers are rounded before the weight is applied.
    """

    weight_offset: float
    rounds_twice: bool


_FORMS = (NormForm(0.0, True), NormForm(0.0, False), NormForm(1.0, False), NormForm(1.0, True))


class KernelRmsNorm:
    """The forward of a norm, computed by the kernel; any other device, dtype or gradient runs the norm's own code.

    Attributes:
        form: How the weight is applied.
    """

    def __init__(self, module: nn.Module, form: NormForm, *, epsilon: float) -> None:
        """Stands for the forward of ``module``, whose weight it reads at every call."""
        self._module = module
        self._own_forward = module.forward
        self.form = form
        self._epsilon = epsilon

    def __call__(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The norm of the last dimension; any shape."""
        dtype = kernel_dtype(hidden_states)
        weight: torch.Tensor = self._module.weight  # type: ignore[assignment] # found as its only parameter
        if dtype is None or weight.dtype != hidden_states.dtype or not hidden_states.numel():
            result: torch.Tensor = self._own_forward(hidden_states)
            return result
        output, output_array = new_output(hidden_states.shape, hidden_states.dtype)
        _core.rms_norm(
            shared_array(as_rows(hidden_states)),
            shared_array(weight),
            output_array,
            epsilon=self._epsilon,
            weight_offset=self.form.weight_offset,
            rounds_twice=self.form.rounds_twice,
            dtype=dtype,
        )
        return output


def norm_kernel(module: nn.Module) -> KernelRmsNorm | None:
    """The kernel that computes ``module``; None if it is no such norm, or one that no kernel computes."""
    epsilon = _epsilon(module)
    if epsilon is None:
        return None
    form = _find_form(module, epsilon=epsilon)
    return None if form is None else KernelRmsNorm(module, form, epsilon=epsilon)


def _epsilon(module: nn.Module) -> float | None:
    """The epsilon of what looks like a norm over rows with one weight; None for anything else."""
    if "RMSNorm" not in type(module).__name__ or next(module.children(), None) is not None:
        return None
    parameters = dict(module.named_parameters())
    if list(parameters) != ["weight"] or parameters["weight"].ndim != 1:
        return None
    for name in ("variance_epsilon", "eps"):
        value = getattr(module, name, None)
        if isinstance(value, float):
            return value
    return None


@torch.inference_mode()
def _find_form(module: nn.Module, *, epsilon: float) -> NormForm | None:
    """The form in which a kernel gives the module's results on random rows; None if none does."""
    weight = module.get_parameter("weight")
    if weight.dtype not in DTYPE_NAMES or weight.device.type != "cpu":
        return None
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(_TRIAL_ROWS, weight.shape[0], generator=generator)
    # Of very different sizes, so that a missing or misplaced epsilon shows.
    rows = (rows * torch.logspace(-4, 2, _TRIAL_ROWS).unsqueeze(1)).to(weight.dtype)
    try:
        expected = module(rows)
    except Exception:  # noqa: BLE001 (a module that wants other arguments is none of ours)
        return None
    if not isinstance(expected, torch.Tensor) or expected.shape != rows.shape:
        return None
    for form in _FORMS:
        if _is_equal(KernelRmsNorm(module, form, epsilon=epsilon)(rows), expected):
            return form
    return None


def _is_equal(got: torch.Tensor, expected: torch.Tensor) -> bool:
    tolerance = _TOLERANCE[expected.dtype]
    if got.dtype != expected.dtype or not torch.allclose(
        got, expected, rtol=tolerance, atol=tolerance * 1e-3
    ):
        return False
    if expected.dtype == torch.float32:
        return True
    return (got != expected).float().mean().item() <= _MAX_DIFFERING_FRACTION
