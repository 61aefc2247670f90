"""A kernel takes the place of a norm only where it gives the norm's results."""

import pytest
import torch

from models.tiny import tiny_model
from pagedkv.models.norm import KernelRmsNorm, NormForm, norm_kernel

# Of each family's norm: how the weight is applied.
FORMS = {
    "llama": NormForm(weight_offset=0.0, rounds_twice=True),
    "gemma2": NormForm(weight_offset=1.0, rounds_twice=False),
    "qwen3": NormForm(weight_offset=0.0, rounds_twice=True),
    "gemma3_text": NormForm(weight_offset=1.0, rounds_twice=False),
}
DTYPES = [(torch.float32, 2e-6), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)]


def norms_of(model_type, dtype):
    """The norms of a tiny model, their weights random."""
    model = tiny_model(model_type).to(dtype)
    norms = [module for module in model.modules() if "RMSNorm" in type(module).__name__]
    with torch.no_grad():
        for seed, norm in enumerate(norms):
            norm.weight.copy_(
                torch.randn(norm.weight.shape, generator=torch.Generator().manual_seed(seed))
            )
    assert norms
    return norms


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("model_type", FORMS)
def test_each_familys_norm_is_found_in_its_form_and_equals_it(model_type, dtype, tolerance):
    for norm in norms_of(model_type, dtype):
        kernel = norm_kernel(norm)
        assert isinstance(kernel, KernelRmsNorm)
        if dtype != torch.float32:
            # In float32 rounding between the two steps changes nothing.
            assert kernel.form == FORMS[model_type]
        numbers = torch.randn(
            3, 5, norm.weight.shape[0], generator=torch.Generator().manual_seed(9)
        )
        numbers = numbers.to(dtype)
        with torch.inference_mode():
            for view in (numbers, numbers.transpose(0, 1), numbers[:, ::2]):
                torch.testing.assert_close(kernel(view), norm(view), rtol=tolerance, atol=tolerance)


def test_a_row_of_a_norm_does_not_depend_on_the_row_count():
    kernel = norm_kernel(norms_of("llama", torch.float32)[0])
    rows = torch.randn(300, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        together = kernel(rows)
        for count in (1, 2, 7, 64, 299):
            assert torch.equal(kernel(rows[:count]), together[:count])


class OddRMSNorm(torch.nn.Module):
    """Called like the others, and computes something else."""

    def __init__(self, power):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(16))
        self.eps, self.power = 1e-6, power

    def forward(self, numbers):
        return (
            self.weight
            * numbers
            * (numbers.abs().pow(self.power).mean(-1, keepdim=True) + self.eps).rsqrt()
        )


def test_a_norm_by_name_alone_is_left_as_it_is():
    assert norm_kernel(OddRMSNorm(2.0)) is not None
    assert norm_kernel(OddRMSNorm(1.9)) is None
    assert norm_kernel(torch.nn.LayerNorm(16)) is None


def test_a_norm_with_a_gradient_or_another_dtype_is_the_original():
    norm = OddRMSNorm(2.0)
    kernel = norm_kernel(norm)
    kernel(torch.ones(2, 16)).sum().backward()
    assert norm.weight.grad is not None
    with torch.inference_mode():
        assert kernel(torch.ones(2, 16, dtype=torch.float64)).dtype == torch.float64
