"""A model whose modules were exchanged is the same model, and can be had back."""

import pytest
import torch

from models.tiny import tiny_model
from pagedkv.models.surgery import use_kernels, use_torch


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "mixtral", "gpt2", "phi", "qwen3_moe"])
def test_a_model_on_kernels_gives_the_logits_of_the_model_on_torch(model_type):
    model = tiny_model(model_type)
    input_ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        expected = model(input_ids).logits
        assert use_kernels(model) > 0
        actual = model(input_ids).logits
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_everything_exchanged_can_be_put_back():
    model = tiny_model("mixtral")
    before = {name: type(module) for name, module in model.named_modules()}
    parameters = set(model.state_dict())
    num_exchanged = use_kernels(model)
    # Per layer: an activation, two norms, four projections and the experts' two; then the last norm and the head.
    assert num_exchanged >= 4 * 9 + 2
    assert set(model.state_dict()) == parameters
    assert use_torch(model) == num_exchanged
    assert not any("forward" in vars(module) for module in model.modules())
    assert {name: type(module) for name, module in model.named_modules()} == before
