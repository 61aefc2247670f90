"""KV groups have equally many layers, share storages, and a block has the same bytes in each."""

import pytest
import torch

from models.tiny import tiny_model
from pagedkv.kv_cache import KvCache
from pagedkv.models import KvGroup, StorageShape, prepare_model
from pagedkv.models.geometry import plan_geometry
from pagedkv.models.probe import ProbedLayer

CPU = torch.device("cpu")


def layer(layer_idx, window=None, *, kind="sliding", num_kv_heads=2, k_dim=16, v_dim=16, same=None):
    return ProbedLayer(
        layer_idx=layer_idx,
        num_query_heads=4,
        num_kv_heads=num_kv_heads,
        k_dim=k_dim,
        v_dim=v_dim,
        scale=1.0,
        softcap=None,
        has_sinks=False,
        kind="full" if window is None else kind,
        window=window,
        same_kv_as=same,
    )


def plan(windows, max_model_len=4096):
    return plan_geometry(
        [layer(i, window) for i, window in enumerate(windows)], max_model_len=max_model_len
    )


def test_a_uniform_model_has_one_group_and_a_storage_per_layer():
    geometry = plan([None] * 5)
    assert geometry.groups == (KvGroup("full", None),)
    assert [spec.storage for spec in geometry.layers] == [0, 1, 2, 3, 4]
    assert geometry.scheduler_groups == [("full", 0)]


@pytest.mark.parametrize(
    ("windows", "num_groups", "num_storages"),
    [
        ([128, None] * 12, 2, 12),  # gpt_oss 20b
        (([512] * 5 + [None]) * 4 + [512] * 2, 7, 4),  # gemma3 1b: 22 sliding in six groups, 4 full
        (([1024] * 5 + [None]) * 10 + [1024] * 2, 7, 10),  # gemma3 27b
        ([4096] * 3 + [None], 4, 1),
    ],
)
def test_mixed_models_have_few_groups_and_no_padding_in_full_ones(
    windows, num_groups, num_storages
):
    geometry = plan(windows, max_model_len=32_768)
    assert len(geometry.groups) == num_groups
    assert len(geometry.storages) == num_storages
    full_layers = [spec for spec in geometry.layers if spec.kind == "full"]
    full_groups = [group for group in geometry.groups if group.kind == "full"]
    assert len(full_layers) == len(full_groups) * num_storages


@pytest.mark.parametrize("windows", [[None] * 3, [8, None] * 3, [8, 8, 8, None, 16, 16, None]])
def test_no_two_layers_of_a_group_share_a_storage(windows):
    geometry = plan(windows)
    places = [(spec.group, spec.storage) for spec in geometry.layers]
    assert len(set(places)) == len(places)
    assert all(
        geometry.groups[spec.group] == KvGroup(spec.kind, spec.window) for spec in geometry.layers
    )


def test_chunks_and_windows_of_equal_width_do_not_share_a_group():
    geometry = plan_geometry([layer(0, 8), layer(1, 8, kind="chunked")], max_model_len=64)
    assert geometry.layers[0].group != geometry.layers[1].group


def test_a_layer_is_no_alias_when_it_masks_otherwise():
    shared = plan_geometry([layer(0, 8), layer(1, 8, same=0)], max_model_len=64)
    assert shared.layers[1].alias_of == 0
    different = plan_geometry([layer(0, 8), layer(1, None, same=0)], max_model_len=64)
    assert different.layers[1].alias_of is None


def test_bytes_per_block_count_keys_and_values_of_every_storage():
    geometry = plan_geometry([layer(0, k_dim=24), layer(1, k_dim=24)], max_model_len=64)
    per_token = 2 * (2 * 24 + 2 * 16)
    assert geometry.bytes_per_block(block_size=16, dtype=torch.bfloat16) == per_token * 16 * 2
    assert geometry.num_blocks_for(10 * per_token * 64, block_size=16, dtype=torch.float32) == 10


def test_head_sizes_that_differ_between_groups_share_blocks_of_the_larger_size():
    geometry = plan_geometry(
        [layer(0, 8), layer(1, num_kv_heads=1, k_dim=64, v_dim=64)], max_model_len=64
    )
    assert geometry.storages == (StorageShape(key_size=64, value_size=64),)
    cache = KvCache(geometry, num_blocks=4, block_size=8, dtype=torch.float32, device=CPU)
    assert cache.nbytes == 4 * geometry.bytes_per_block(block_size=8, dtype=torch.float32)
    assert cache.layers[0].key.shape == (4, 2, 8, 16)
    assert cache.layers[1].key.shape == (4, 1, 8, 64)
    assert cache.layers[0].key.stride(0) == cache.layers[1].key.stride(0) == 64 * 8


def test_a_block_of_one_layer_never_reaches_into_the_next_block():
    model = tiny_model("gemma4_text")
    geometry = prepare_model(model, folder=None, max_model_len=64).geometry
    cache = KvCache(geometry, num_blocks=5, block_size=8, dtype=torch.float32, device=CPU)
    for storage in [*cache.keys, *cache.values]:
        storage.zero_()
    for spec in geometry.layers:
        cache.layers[spec.layer_idx].key[2] = 1.0
        cache.layers[spec.layer_idx].value[2] = 1.0
    for storage in [*cache.keys, *cache.values]:
        assert storage[2].any()
        assert not storage[[0, 1, 3, 4]].any()


def test_keys_in_columns_lie_in_the_memory_of_their_block():
    geometry = plan_geometry(
        [layer(0, 8), layer(1, num_kv_heads=1, k_dim=64, v_dim=64)], max_model_len=64
    )
    cache = KvCache(
        geometry, num_blocks=4, block_size=16, dtype=torch.float32, device=CPU, keys_in_columns=True
    )
    key = cache.layers[0].key
    assert key.shape == (4, 2, 16, 16)
    key[1, 1] = torch.arange(256.0).reshape(16, 16)
    (storage,) = cache.keys
    in_block = storage[1, 256:512].reshape(16, 16)
    assert torch.equal(in_block, torch.arange(256.0).reshape(16, 16).T)


def test_a_sequence_needs_its_length_in_full_groups_and_its_window_in_sliding_ones():
    geometry = plan([512, None])
    # 4096 tokens: 256 blocks; 512 + 64 in flight, beginning anywhere in a block: 37 blocks.
    assert geometry.blocks_for_sequence(4096, block_size=16, query_len=64) == 256 + 37
    assert geometry.blocks_for_sequence(100, block_size=16, query_len=64) == 7 + 7


def test_a_pool_without_a_block_beside_the_null_block_is_refused():
    with pytest.raises(ValueError, match="num_blocks must be at least 2"):
        KvCache(plan([None]), num_blocks=1, block_size=8, dtype=torch.float32, device=CPU)
