"""The probe reads geometry and masks off the calls, whatever configurations and arguments say."""

import pytest
import torch
from transformers import masking_utils

from models.tiny import CHUNK, WINDOW, tiny_model
from pagedkv.attention.interface import ProbedMask
from pagedkv.models import prepare_model
from pagedkv.models.masks import MaskShape, classify_mask


def layers_of(model_type, tmp_path, *, max_model_len=256, **overrides):
    model = tiny_model(model_type, **overrides)
    return prepare_model(model, folder=tmp_path, max_model_len=max_model_len).geometry.layers


@pytest.mark.parametrize("width", [1, 2, 7, 128, 4096])
@pytest.mark.parametrize("kind", ["sliding", "chunked"])
def test_a_window_is_recognised_at_its_real_width_without_building_a_mask(kind, width):
    if kind == "sliding":
        predicate = masking_utils.sliding_window_causal_mask_function(width)
    else:
        no_padding = torch.zeros(1, dtype=torch.long)
        predicate = masking_utils.chunked_causal_mask_function(width, no_padding)
    expected = MaskShape("sliding" if width == 1 else kind, width)
    assert classify_mask(predicate, 131_072) == expected


def test_a_causal_mask_is_full_and_a_window_as_wide_as_the_context_is_too():
    assert classify_mask(masking_utils.causal_mask_function, 4096) == MaskShape("full", None)
    wide = masking_utils.sliding_window_causal_mask_function(4096)
    assert classify_mask(wide, 4096) == MaskShape("full", None)
    assert classify_mask(wide, 4097) == MaskShape("sliding", 4096)


@pytest.mark.parametrize(
    "predicate",
    [
        lambda b, h, q, k: q >= 0,
        lambda b, h, q, k: (k <= q) & (k % 2 == 0),
        lambda b, h, q, k: (k <= q) & ((q - k < 16) | (k < 4)),
        lambda b, h, q, k: k < q,
        lambda b, h, q, k: (k <= q) & (q - k < 16) & ((q != 40) | (k != 38)),
    ],
    ids=["bidirectional", "strided", "window with sinks", "strictly causal", "one hole"],
)
def test_a_mask_that_no_backend_computes_is_not_recognised(predicate):
    assert classify_mask(predicate, 4096) is None


def test_a_probed_mask_loses_its_predicate_when_a_model_changes_it():
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool).as_subclass(ProbedMask)
    assert not isinstance(mask & mask, ProbedMask)
    assert not isinstance(mask[:, :, :2], ProbedMask)


@pytest.mark.parametrize(
    ("model_type", "kinds"),
    [
        ("llama", ["full"] * 4),
        ("mistral", ["sliding"] * 4),
        # Both mask a window that their attention call does not mention.
        ("phimoe", ["sliding"] * 4),
        ("qwen2_moe", ["sliding", "full"] * 2),
        ("gemma3_text", ["sliding"] * 3 + ["full"]),
        ("llama4_text", ["chunked"] * 3 + ["full"]),
    ],
)
def test_masks_come_from_the_mask_functions(model_type, kinds, tmp_path):
    layers = layers_of(model_type, tmp_path)
    assert [layer.kind for layer in layers] == kinds
    widths = {"full": None, "sliding": WINDOW, "chunked": CHUNK}
    assert [layer.window for layer in layers] == [widths[kind] for kind in kinds]


def test_a_window_not_shorter_than_the_context_costs_no_group(tmp_path):
    layers = layers_of("gemma3_text", tmp_path, max_model_len=WINDOW)
    assert {(layer.kind, layer.group) for layer in layers} == {("full", 0)}


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [
        ("gemma2", {"softcap": 50.0, "scale": 0.25}),
        ("granite", {"scale": 1.0}),
        ("opt", {"scale": 1.0}),
        ("gpt_oss", {"has_sinks": True, "num_kv_heads": 2, "k_dim": 16}),
        ("deepseek_v3", {"k_dim": 24, "v_dim": 16, "num_kv_heads": 1, "is_latent": True}),
        ("gpt2", {"num_kv_heads": 4, "k_dim": 16, "scale": 0.25}),
    ],
)
def test_geometry_comes_from_the_call(model_type, expected, tmp_path):
    layer = layers_of(model_type, tmp_path)[0]
    assert {name: getattr(layer, name) for name in expected} == expected


def test_layers_that_reuse_keys_of_another_layer_store_none(tmp_path):
    layers = layers_of("gemma3n_text", tmp_path)
    assert [layer.alias_of for layer in layers] == [None, None, 0, 1]
    assert [layer.group for layer in layers] == [0, 1, 0, 1]
    assert [layer.storage for layer in layers] == [0, 0, 0, 0]
