"""Rotary embeddings by the kernel: the bits of the model's own function, in place of it and of no other model's."""

import inspect

import pytest
import torch
from transformers.models.llama import modeling_llama

from models.tiny import tiny_model
from pagedkv.models.rotary import KernelRotary, has_rotary_forward, rotary_forward
from pagedkv.models.surgery import use_kernels, use_torch

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def attention(model_type="llama"):
    return tiny_model(model_type).model.layers[0].self_attn


def kernel_of(module):
    forward = rotary_forward(module, {})
    return None if forward is None else forward.__func__.__globals__["apply_rotary_pos_emb"]


def arguments(dtype, *, num_tokens=7, head_dim=48):
    generator = torch.Generator().manual_seed(1)

    def random(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    heads = [random(1, num_tokens, count, head_dim).transpose(1, 2) for count in (6, 3)]
    return [*heads, *(random(1, num_tokens, head_dim) for _ in range(2))]


@pytest.mark.parametrize("dtype", DTYPES)
@torch.inference_mode()
def test_queries_and_keys_have_the_bits_of_the_models_own_function(dtype):
    kernel = kernel_of(attention())
    for num_tokens, head_dim in [(1, 2), (7, 48), (300, 64), (2, 80)]:
        given = arguments(dtype, num_tokens=num_tokens, head_dim=head_dim)
        got, expected = kernel(*given), kernel.own(*given)
        for one, other in zip(got, expected, strict=True):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)


@torch.inference_mode()
def test_calls_that_the_kernel_does_not_know_go_to_the_models_own_function():
    seen = []

    def own(*arguments, **keywords):
        seen.append((len(arguments), sorted(keywords)))
        return modeling_llama.apply_rotary_pos_emb(*arguments, **keywords)

    kernel = KernelRotary(own, frozenset(DTYPES))
    query, key, cos, sin = arguments(torch.float32)
    kernel(query, key, cos, sin)
    assert seen == []
    kernel(query, key, cos, sin, unsqueeze_dim=1)
    kernel(query.expand(2, -1, -1, -1), key.expand(2, -1, -1, -1), cos, sin)
    kernel(query, key, cos.double(), sin.double())
    strided = torch.randn(1, 6, 7, 96)[..., ::2]
    kernel(strided, key, cos, sin)
    with torch.inference_mode(mode=False), torch.enable_grad():
        kernel(*(tensor.clone() for tensor in (query, key, cos, sin)))
    assert seen == [(4, ["unsqueeze_dim"]), *[(4, [])] * 4]


def test_functions_that_compute_something_else_are_left_alone():
    assert kernel_of(attention("cohere2")) is None
    assert kernel_of(tiny_model("gpt2").transformer.h[0].attn) is None
    assert kernel_of(torch.nn.Linear(2, 2)) is None


def test_one_models_forward_is_exchanged_and_put_back_and_transformers_stays_as_it_is():
    function, forward = modeling_llama.apply_rotary_pos_emb, modeling_llama.LlamaAttention.forward
    model, other = tiny_model("llama"), tiny_model("llama")
    ids = torch.arange(3, 12)[None]
    with torch.inference_mode():
        before = model(ids).logits
    assert use_kernels(model) > 0
    layers = [layer.self_attn for layer in model.model.layers]
    assert all(has_rotary_forward(layer) for layer in layers)
    assert inspect.signature(layers[0].forward) == inspect.signature(
        other.model.layers[0].self_attn.forward
    )
    assert not any(has_rotary_forward(module) for module in other.modules())
    assert modeling_llama.apply_rotary_pos_emb is function
    assert modeling_llama.LlamaAttention.forward is forward
    use_torch(model)
    assert not any(has_rotary_forward(module) for module in model.modules())
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, before)
