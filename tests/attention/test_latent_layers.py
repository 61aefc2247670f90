"""A latent layer, whose values are the first numbers of its keys, attends as one that stores these values apart."""

from dataclasses import replace

import pytest
import torch

from attention.paged_batch import GROUP, Row, layer_spec, make_batch, poisoned
from pagedkv.attention import LayerCache
from pagedkv.attention.cpu_backend import CpuBackend
from pagedkv.attention.torch_backend import TorchBackend

BACKENDS = [TorchBackend, CpuBackend]
ROWS = [Row(seq_len=40, query_len=1), Row(seq_len=23, query_len=23), Row(seq_len=30, query_len=7)]


def latent_spec(**changes):
    sizes = {"num_kv_heads": 1, "k_dim": 40, "v_dim": 32}
    return layer_spec(is_latent=True, **sizes | changes)


def scenes(layer, dtype):
    """The same batch over a latent cache and over one with values of their own that equal the keys' first numbers."""
    latent = make_batch(layer, ROWS, dtype=dtype, num_padding=2)
    latent.value = latent.key[..., : layer.v_dim]
    apart = replace(latent, layer=replace(layer, is_latent=False))
    shape = (latent.cache.key.shape[0], 1, latent.cache.key.shape[2], layer.v_dim)
    value = poisoned(*shape, dtype)
    value.copy_(latent.cache.key[..., : layer.v_dim])
    apart.cache = LayerCache(key=latent.cache.key, value=value)
    return latent, apart


def run(batch, kind):
    key = batch.cache.key.clone()
    value = key[..., : batch.layer.v_dim] if batch.layer.is_latent else batch.cache.value.clone()
    cache = LayerCache(key=key, value=value)
    backend = kind(layers={0: batch.layer}, caches={0: cache})
    backend.plan(batch.step)
    backend.write_kv(batch.layer, batch.key, batch.value)
    return backend.attend(batch.layer, batch.query, None), cache


@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "sizes", [{}, {"k_dim": 576, "v_dim": 512, "num_query_heads": 16}, {"k_dim": 21, "v_dim": 13}]
)
def test_values_in_the_keys_give_the_bits_of_values_apart(kind, dtype, sizes):
    latent, apart = scenes(latent_spec(**sizes), dtype)
    output, cache = run(latent, kind)
    expected, _ = run(apart, kind)
    num_tokens = latent.step.num_tokens
    assert torch.equal(output[:num_tokens], expected[:num_tokens])
    assert not output[num_tokens:].any()
    assert torch.isfinite(output).all()
    block, offset = divmod(int(latent.step.slot_mapping[GROUP, -1]), cache.key.shape[2])
    assert torch.equal(cache.key[block, :, offset], latent.key[num_tokens - 1])


@pytest.mark.parametrize("kind", BACKENDS)
def test_a_copied_block_is_copied_once_and_whole(kind):
    layer = latent_spec()
    key = torch.randn(4, 1, 16, layer.k_dim, generator=torch.Generator().manual_seed(0))
    expected = key[1].clone()
    backend = kind(
        layers={0: layer}, caches={0: LayerCache(key=key, value=key[..., : layer.v_dim])}
    )
    backend.copy_blocks(torch.tensor([[GROUP, 1, 3], [0, 1, 2]], dtype=torch.int32))
    assert torch.equal(key[3], expected)
    assert not torch.equal(key[2], expected)
