"""A packed weight is the matrix that it was, wherever a model has it and whatever a function does with it."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from pagedkv.models.packed_weight import PackedExperts, PackedWeight
from pagedkv.models.packing import pack_weights, unpack_weights

SHAPES = [(1, 1), (16, 3), (17, 5), (64, 20), (90, 7)]


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tied_model():
    model = nn.ModuleDict({"embedding": nn.Embedding(37, 20), "head": nn.Linear(20, 37)})
    model["head"].weight = model["embedding"].weight
    return model


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_packing_loses_nothing(shape, dtype):
    weight = numbers(*shape).to(dtype)
    packed = PackedWeight.pack(weight)
    assert (packed.shape, packed.dtype, packed.device) == (weight.shape, dtype, weight.device)
    assert torch.equal(packed.unpacked(), weight)


def test_strips_have_the_weights_of_sixteen_outputs_beside_each_other_and_zeros_at_the_end():
    weight = numbers(20, 3)
    strips = PackedWeight.pack(weight).strips
    assert strips.shape == (2, 48)
    for output in range(32):
        for number in range(3):
            expected = weight[output, number] if output < 20 else 0.0
            assert strips[output // 16, number * 16 + output % 16] == expected


def test_weights_whose_rows_lie_apart_are_packed():
    wide = numbers(40, 30)
    for view in (wide[:, 3:9], wide[::2], wide.T, wide[5:6].expand(18, 30)):
        assert torch.equal(PackedWeight.pack(view).unpacked(), view)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("is_transposed", [False, True])
def test_each_expert_has_the_matrix_that_it_had(shape, is_transposed):
    weights = numbers(3, *shape)
    packed = PackedExperts.pack(weights, is_transposed=is_transposed)
    assert packed.shape == weights.shape
    assert torch.equal(packed.unpacked(), weights)
    for expert, weight in zip(packed.experts, weights, strict=True):
        assert torch.equal(expert.unpacked(), weight.T if is_transposed else weight)


@pytest.mark.parametrize(
    "function",
    [
        lambda weight: weight.T,
        lambda weight: weight[3],
        lambda weight: weight[[1, 30], 2:],
        lambda weight: numbers(4, 20, seed=1) @ weight.mT,
        lambda weight: torch.stack([weight, weight]),
        lambda weight: weight.double(),
        functional.normalize,
        lambda weight: functional.embedding(torch.tensor([2]), weight, max_norm=0.1),
        lambda weight: functional.linear(weight, numbers(5, 20, seed=1)),
        lambda weight: torch.where(weight > 0, weight, 0.0).sum(),
    ],
)
def test_any_function_of_torch_sees_the_matrix(function):
    weight = numbers(37, 20)
    packed = PackedWeight.pack(weight)
    with torch.inference_mode():
        torch.testing.assert_close(function(packed), function(weight.clone()))
    assert packed.num_unpackings > 0


def test_copies_and_aliases_stay_packed():
    layer = nn.Linear(20, 37)
    expected = layer.weight.detach().clone()
    pack_weights(layer)
    twin = copy.deepcopy(layer)
    assert type(twin.weight) is PackedWeight
    assert twin.weight.strips.data_ptr() != layer.weight.strips.data_ptr()
    assert layer.weight.detach().strips.data_ptr() == layer.weight.strips.data_ptr()
    assert torch.equal(twin.weight.unpacked(), expected)
    assert layer.weight.num_unpackings == 0


def test_a_router_that_multiplies_in_float32_stays_packed():
    """``functional.linear(rows.float(), self.weight.float())``, in whatever dtype the weight is."""
    rows = numbers(5, 20, seed=1)
    for dtype in (torch.float32, torch.bfloat16):
        weight = numbers(4, 20).to(dtype)
        packed = PackedWeight.pack(weight)
        with torch.inference_mode():
            for wide in (packed.float(), packed.type(torch.float32), packed.to(torch.float32)):
                expected = functional.linear(rows, weight.float())
                torch.testing.assert_close(functional.linear(rows, wide), expected)
        assert packed.num_unpackings == 0


def test_a_write_is_refused():
    layer = nn.Linear(20, 37)
    expected = layer.weight.detach().clone()
    pack_weights(layer)

    def write(number):
        layer.weight[number] = 0.0

    def replace(memory):
        layer.weight.data = memory

    for attempt in (
        lambda: write(3),
        lambda: replace(torch.zeros(37, 20)),
        lambda: layer.weight.mul_(2),
        lambda: nn.init.zeros_(layer.weight),
        lambda: layer.weight.copy_(torch.zeros(37, 20)),
    ):
        with (
            torch.inference_mode(),
            pytest.raises(RuntimeError, match=r"packed weight.*cpu_kernels"),
        ):
            attempt()
    assert torch.equal(layer.weight.unpacked(), expected)


def test_layers_use_a_packed_weight_as_it_is():
    model, indices, rows = tied_model(), torch.tensor([[0, 36], [17, 15]]), numbers(3, 20)
    with torch.inference_mode():
        expected = model["embedding"](indices), model["head"](rows)
        assert pack_weights(model) == 1
        weight = model["head"].weight
        assert weight is model["embedding"].weight
        torch.testing.assert_close((model["embedding"](indices), model["head"](rows)), expected)
    assert weight.num_unpackings == 0


@pytest.mark.parametrize("index", [-1, 37, 47])
def test_an_index_of_no_row_is_an_error(index):
    model = tied_model()
    pack_weights(model)
    with torch.inference_mode(), pytest.raises(IndexError, match=f"{index} is out of range for 37"):
        model["embedding"](torch.tensor([3, index]))


def test_names_shapes_and_ties_survive_and_unpacking_undoes():
    model = tied_model()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    shapes = {name: weight.shape for name, weight in before.items()}
    pack_weights(model)
    assert {name: weight.shape for name, weight in model.state_dict().items()} == shapes
    assert sum(parameter.nbytes for parameter in model.parameters()) == 4 * 37 * 21
    assert unpack_weights(model) == 1
    assert model["head"].weight is model["embedding"].weight
    after = model.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_only_weights_that_were_read_are_unpacked_on_demand():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(3, 4))
    assert pack_weights(model) == 2
    assert unpack_weights(model, only_if_read=True) == 0
    _ = model[1].weight.T
    assert unpack_weights(model, only_if_read=True) == 1
    assert type(model[0].weight) is PackedWeight
    assert type(model[1].weight) is nn.Parameter


def test_a_weight_that_is_replaced_later_is_the_one_that_counts():
    model, rows = nn.Sequential(nn.Linear(6, 4, bias=False)), numbers(2, 6)
    pack_weights(model)
    with torch.inference_mode():
        model(rows)
        model[0].weight = nn.Parameter(numbers(4, 6, seed=3))
        torch.testing.assert_close(model(rows), functional.linear(rows, model[0].weight))


def test_a_layer_of_a_derived_class_keeps_its_own_code():
    class Doubled(nn.Linear):
        def forward(self, *rows):
            return 2 * super().forward(*rows)

    model, rows = nn.Sequential(Doubled(3, 3)), numbers(2, 3)
    with torch.inference_mode():
        expected = model(rows)
        assert pack_weights(model) == 1
        torch.testing.assert_close(model(rows), expected)


def test_gradients_of_the_input_go_through_torch():
    layer, rows = nn.Linear(6, 4), numbers(2, 6).requires_grad_()
    (expected,) = torch.autograd.grad(layer(rows).sum(), rows)
    pack_weights(layer)
    (actual,) = torch.autograd.grad(layer(rows).sum(), rows)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8])
def test_other_dtypes_are_left_alone(dtype):
    layer = nn.Linear(6, 4)
    layer.weight = nn.Parameter(torch.ones(4, 6, dtype=dtype), requires_grad=False)
    assert pack_weights(layer) == 0
