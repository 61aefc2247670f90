"""Fused sibling projections give the result of separate ones, hold nothing after a forward pass, and can be undone."""

import gc
import sys
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from models.naive_engine import NaiveEngine
from models.tiny import CONFIGS, generate_greedy, random_prompts, tiny_model
from pagedkv.models import prepare_model
from pagedkv.models.fusion import (
    FusedProjections,
    SiblingLinear,
    Siblings,
    choose_siblings,
    fuse_if_equal,
    watch_linears,
)
from pagedkv.models.probe import ProbeResult

CPU = torch.device("cpu")
# Their projections are one already, or convolutions of width one.
WITHOUT_SIBLINGS = {"phi3", "gpt2", "gpt_neox"}


class Block(nn.Module):
    """Two siblings, a third one that reads another tensor, and a bias in one of them."""

    def __init__(self):
        super().__init__()
        self.left = nn.Linear(8, 12)
        self.right = nn.Linear(8, 4, bias=False)
        self.other = nn.Linear(8, 4)
        self.scale = 1.0
        self.fails = False

    def forward(self, rows):
        left = self.left(rows)
        if self.fails:
            raise ValueError
        right = self.right(rows if self.scale == 1.0 else rows * self.scale)
        return left.sum(-1), right.sum(-1), self.other(rows + 0).sum(-1)


@pytest.fixture
def block():
    torch.manual_seed(0)
    return Block().eval()


@pytest.fixture
def rows():
    return torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def find(model, *arguments, num_rows=4):
    with watch_linears(model) as calls:
        model(*arguments)
    return calls.siblings(model, num_rows=num_rows)


def siblings_of(model):
    return [module for module in model.modules() if isinstance(module, SiblingLinear)]


def test_siblings_are_found_by_the_tensor_that_they_are_given(block, rows):
    assert [group.names for group in find(block, rows)] == [("left", "right")]


def test_a_tied_weight_is_left_alone(block, rows):
    block.right.weight = block.other.weight
    assert find(block, rows) == []


def test_experts_and_layers_that_see_a_part_of_the_rows_are_left_alone(block, rows):
    assert find(block, rows, num_rows=8) == []
    model = nn.Sequential()
    model.add_module("experts", block)
    assert find(model, rows) == []


@torch.inference_mode()
def test_a_sibling_without_bias_beside_one_with_a_bias_gets_the_same_result(block, rows):
    before = block(rows)
    FusedProjections(block, find(block, rows))
    for expected, actual in zip(before, block(rows), strict=True):
        torch.testing.assert_close(actual, expected)
    assert block.right.bias is None


@torch.inference_mode()
def test_a_sibling_called_with_another_tensor_computes_on_its_own(block, rows):
    FusedProjections(block, find(block, rows))
    doubled = block(rows)[1] * 2
    block.scale = 2.0
    torch.testing.assert_close(block(rows)[1], doubled)


@torch.inference_mode()
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_held_after_a_forward_pass_even_one_that_fails(block, rows, fails):
    FusedProjections(block, find(block, rows))
    block.scale, block.fails = 2.0, fails
    own = rows.clone()
    gone = weakref.ref(own)
    try:
        block(own)
    except ValueError:
        assert fails
    del own
    gc.collect()
    assert gone() is None


@torch.inference_mode()
def test_a_tensor_changed_in_place_between_two_passes_is_computed_anew(block, rows):
    FusedProjections(block, find(block, rows))
    first = block(rows)
    expected = block(rows * 3)
    rows *= 3
    second = block(rows)
    assert not torch.equal(first[0], second[0])
    for actual, wanted in zip(second, expected, strict=True):
        torch.testing.assert_close(actual, wanted)


@torch.inference_mode()
def test_weights_keep_their_names_and_are_held_once(block, rows):
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    FusedProjections(block, find(block, rows))
    after = block.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    left, right = block.left.weight, block.right.weight
    assert left.untyped_storage().data_ptr() == right.untyped_storage().data_ptr()
    assert left.untyped_storage().nbytes() == (left.numel() + right.numel()) * 4


def test_the_weights_before_are_freed_group_by_group(block, rows):
    gone = weakref.ref(block.left.weight)
    groups = find(block, rows)
    FusedProjections(block, groups)
    assert gone() is None


def resident_file_bytes():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssFile:"):
            return int(line.split()[1]) * 1024
    return None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@torch.inference_mode()
def test_pages_of_a_mapped_checkpoint_are_not_kept_beside_their_copy(tmp_path):
    numel = 1 << 21
    save_file({name: torch.randn(numel) for name in ("left", "right")}, tmp_path / "weights")
    weights = load_file(tmp_path / "weights")
    model = nn.ModuleDict({name: nn.Linear(2048, 1024, bias=False) for name in weights})
    for name, weight in weights.items():
        model[name].weight = nn.Parameter(weight.view(1024, 2048), requires_grad=False)
    sums = {name: weight.sum() for name, weight in weights.items()}
    before = resident_file_bytes()
    FusedProjections(model, [Siblings(parent=model, names=("left", "right"))])
    assert resident_file_bytes() < before - 0.8 * 2 * numel * 4
    # They are only out of memory, not lost.
    assert all(torch.equal(weight.sum(), sums[name]) for name, weight in weights.items())


@torch.inference_mode()
def test_undone_every_layer_is_plain_and_has_its_own_weight(block, rows):
    expected = block(rows)
    FusedProjections(block, find(block, rows)).undo()
    assert siblings_of(block) == []
    assert block.left.weight.untyped_storage().nbytes() == 12 * 8 * 4
    assert all(torch.equal(*pair) for pair in zip(block(rows), expected, strict=True))


@pytest.mark.parametrize("model_type", CONFIGS)
def test_fused_models_generate_what_transformers_does(model_type):
    model = tiny_model(model_type)
    prompts = random_prompts([3, 17, 30, 9])
    expected = generate_greedy(model, prompts, max_tokens=6)
    separate = prepare_model(
        tiny_model(model_type), folder=None, max_model_len=64, fuse_projections=False
    )
    loaded = prepare_model(model, folder=None, max_model_len=64, fuse_projections=True)
    assert loaded.batch_invariant == separate.batch_invariant
    assert bool(siblings_of(model)) == (model_type not in WITHOUT_SIBLINGS)
    engine = NaiveEngine(loaded, backend="torch")
    assert engine.generate(prompts, max_tokens=6)[0] == expected
    assert engine.num_chunked_prompts > 0


def test_every_projection_but_the_experts_takes_part_where_all_are_asked_for():
    model = tiny_model("mixtral")
    prepare_model(model, folder=None, max_model_len=64, fuse_projections=True)
    assert len(siblings_of(model)) == 4 * 3


def test_off_means_off():
    model = tiny_model("llama")
    prepare_model(model, folder=None, max_model_len=64, fuse_projections=False)
    assert siblings_of(model) == []


def test_auto_takes_the_sizes_that_measured_faster(monkeypatch):
    small, large = nn.Linear(64, 64), nn.Linear(512, 2048)

    class Group:
        def __init__(self, linear):
            self.linears = [linear, linear]

    groups = [Group(small), Group(large)]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert choose_siblings(groups, "auto", CPU) == groups[:1]
    assert choose_siblings(groups, True, CPU) == groups
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert choose_siblings(groups, "auto", CPU) == []


@torch.inference_mode()
def test_a_fusion_that_changes_the_result_is_taken_back(block, rows):
    def run(ids, positions):
        # A model that changes its input between two siblings.
        hidden_states = rows.clone()
        logits = block.left(hidden_states)
        hidden_states.zero_()
        return ProbeResult(layers={}, keys={}, logits=logits[0] + block.right(hidden_states).sum())

    positions = torch.arange(4)
    first = run(positions, positions)
    block.right.weight.fill_(9.0)
    fused = fuse_if_equal(
        block,
        find(block, rows),
        True,
        run,
        first,
        input_ids=positions,
        positions=positions,
        row_multiple=None,
    )
    assert fused is None
    assert siblings_of(block) == []
