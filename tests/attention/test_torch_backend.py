"""The reference backend against the formula, written out key by key in float64, on a pool full of NaN."""

import math

import pytest
import torch

from pagedkv.attention import LayerCache, LayerSpec, StepInputs
from pagedkv.attention.torch_backend import TorchBackend

BLOCK_SIZE = 4
NUM_BLOCKS = 40
# (context after the step, tokens of the step): a decode, a whole prefill, a chunk in the middle, a single first token.
ROWS = [(19, 1), (13, 13), (17, 6), (1, 1)]
ROW_IDS = [3, 0, 4, 1]


def layer_spec(**overrides):
    defaults = {
        "layer_idx": 0,
        "num_query_heads": 6,
        "num_kv_heads": 2,
        "k_dim": 8,
        "v_dim": 8,
        "scale": 0.3,
        "softcap": None,
        "has_sinks": False,
        "kind": "full",
        "window": None,
        "group": 1,
        "storage": 0,
        "alias_of": None,
    }
    return LayerSpec(**defaults | overrides)


class Scene:
    """Rows with known keys and values, of which only those that a mask lets be seen are in the pool."""

    def __init__(self, layer):
        generator = torch.Generator().manual_seed(0)
        self.layer = layer
        width = layer.k_dim + 3  # a block has a tail that is nobody's
        key_memory = torch.full((NUM_BLOCKS, layer.num_kv_heads * BLOCK_SIZE * width), math.nan)
        value_memory = torch.full(
            (NUM_BLOCKS, layer.num_kv_heads * BLOCK_SIZE * layer.v_dim), math.nan
        )
        self.cache = LayerCache(
            key=key_memory.as_strided(
                (NUM_BLOCKS, layer.num_kv_heads, BLOCK_SIZE, layer.k_dim),
                (key_memory.stride(0), BLOCK_SIZE * layer.k_dim, layer.k_dim, 1),
            ),
            value=value_memory.view(NUM_BLOCKS, layer.num_kv_heads, BLOCK_SIZE, layer.v_dim),
        )
        self.backend = TorchBackend(layers={0: layer}, caches={0: self.cache})
        self.keys, self.values, self.queries, slots = [], [], [], []
        free = (torch.randperm(NUM_BLOCKS - 1, generator=generator) + 1).tolist()
        tables = torch.zeros(2, 6, 8, dtype=torch.int32)
        for row_id, (seq_len, query_len) in zip(ROW_IDS, ROWS, strict=True):
            keys = torch.randn(seq_len, layer.num_kv_heads, layer.k_dim, generator=generator)
            values = torch.randn(seq_len, layer.num_kv_heads, layer.v_dim, generator=generator)
            queries = torch.randn(
                query_len, layer.num_query_heads, layer.k_dim, generator=generator
            )
            self.keys.append(keys)
            self.values.append(values)
            self.queries.append(queries)
            for position in range(seq_len):
                column, offset = divmod(position, BLOCK_SIZE)
                if tables[1, row_id, column] == 0:
                    tables[1, row_id, column] = free.pop()
                block = int(tables[1, row_id, column])
                if position >= seq_len - query_len:
                    slots.append(block * BLOCK_SIZE + offset)
                elif any(
                    self.allows(query, position) for query in range(seq_len - query_len, seq_len)
                ):
                    self.cache.key[block, :, offset] = keys[position]
                    self.cache.value[block, :, offset] = values[position]
        query_lens = [query_len for _, query_len in ROWS]
        num_tokens = sum(query_lens)

        def int32(values):
            return torch.tensor(values, dtype=torch.int32)

        self.step = StepInputs(
            row_ids=int32(ROW_IDS),
            query_start_loc=int32([sum(query_lens[:i]) for i in range(len(ROWS) + 1)]),
            seq_lens=int32([seq_len for seq_len, _ in ROWS]),
            input_ids=torch.zeros(num_tokens, dtype=torch.int32),
            positions=torch.zeros(num_tokens, dtype=torch.int32),
            slot_mapping=torch.stack([torch.full((num_tokens,), -1), torch.tensor(slots)]),
            block_tables=tables,
            logits_indices=int32([0]),
            block_copies=torch.empty(0, 3, dtype=torch.int32),
            num_tokens_padded=num_tokens + 3,
        )

    def allows(self, query, key):
        layer = self.layer
        if layer.kind == "sliding":
            return 0 <= query - key < layer.window
        if layer.kind == "chunked":
            return key <= query and query // layer.window == key // layer.window
        return key <= query

    def run(self, sinks):
        def flat(parts, padding):
            new = [part[-query_len:] for part, (_, query_len) in zip(parts, ROWS, strict=True)]
            tail = torch.full((3, *new[0].shape[1:]), padding)
            return torch.cat([*new, tail])

        self.backend.plan(self.step)
        self.backend.write_kv(self.layer, flat(self.keys, math.nan), flat(self.values, math.nan))
        return self.backend.attend(self.layer, flat(self.queries, 1.0), sinks)

    def expected(self, sinks):
        layer, outputs = self.layer, []
        heads_per_kv = layer.num_query_heads // layer.num_kv_heads
        for (seq_len, query_len), keys, values, queries in zip(
            ROWS, self.keys, self.values, self.queries, strict=True
        ):
            for i in range(query_len):
                position = seq_len - query_len + i
                for head in range(layer.num_query_heads):
                    kv_head, weights = head // heads_per_kv, {}
                    for key in filter(lambda k: self.allows(position, k), range(seq_len)):
                        score = layer.scale * float(
                            queries[i, head].double() @ keys[key, kv_head].double()
                        )
                        if layer.softcap is not None:
                            score = layer.softcap * math.tanh(score / layer.softcap)
                        weights[key] = math.exp(score)
                    total = sum(weights.values())
                    if sinks is not None:
                        total += math.exp(float(sinks[head]))
                    outputs.append(
                        sum(w / total * values[key, kv_head].double() for key, w in weights.items())
                    )
        return torch.stack(outputs).view(-1, layer.num_query_heads, layer.v_dim).float()


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"kind": "sliding", "window": 1},
        {"kind": "sliding", "window": 5},
        {"kind": "sliding", "window": 100},
        {"kind": "chunked", "window": 6},
        {"softcap": 0.5},
        {"has_sinks": True},
        {"has_sinks": True, "kind": "sliding", "window": 3, "softcap": 2.0},
        {"v_dim": 5, "k_dim": 12},
        {"num_kv_heads": 6},
        {"num_kv_heads": 1, "kind": "chunked", "window": 4},
    ],
    ids=str,
)
def test_attention_is_the_formula_and_reads_no_slot_outside_of_the_mask(overrides):
    scene = Scene(layer_spec(**overrides))
    sinks = torch.linspace(-1, 1, 6) if scene.layer.has_sinks else None
    output = scene.run(sinks)
    torch.testing.assert_close(output[:-3], scene.expected(sinks), rtol=1e-5, atol=1e-5)
    assert not output[-3:].any()


def test_only_the_blocks_of_the_named_group_are_copied():
    scene = Scene(layer_spec())
    scene.cache.key[5], scene.cache.value[5] = 1.0, 2.0
    scene.backend.copy_blocks(torch.tensor([[0, 5, 9]], dtype=torch.int32))
    assert not (scene.cache.key[9] == 1.0).all()
    scene.backend.copy_blocks(torch.tensor([[1, 5, 9]], dtype=torch.int32))
    assert (scene.cache.key[9] == 1.0).all()
    assert (scene.cache.value[9] == 2.0).all()
