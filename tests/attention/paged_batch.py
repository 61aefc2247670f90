"""Batches over a paged pool for tests of attention backends: random, mixed, and poisoned where nothing may be read."""

from dataclasses import dataclass, replace

import torch

from pagedkv.attention.base import LayerCache, LayerSpec, StepInputs

# The layer under test is in the second of two groups; tables and slots of the first are nonsense.
GROUP = 1


def layer_spec(**changes):
    layer = LayerSpec(
        layer_idx=0,
        num_query_heads=4,
        num_kv_heads=2,
        k_dim=16,
        v_dim=16,
        scale=0.3,
        softcap=None,
        has_sinks=False,
        kind="full",
        window=None,
        group=GROUP,
        storage=0,
        alias_of=None,
    )
    return replace(layer, **changes)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A sequence: context length after the step, and how many tokens at its end are queries."""

    seq_len: int
    query_len: int


@dataclass(kw_only=True, repr=False)
class PagedBatch:
    """One step of one layer, with everything that its attention needs.

    Keys and values of tokens before the step are in the cache already, those of the step's tokens in ``key`` and ``value``.
    Queries, keys and values are views of [1, heads, T, dim], as a model passes them.
    """

    layer: LayerSpec
    cache: LayerCache
    step: StepInputs
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    sinks: torch.Tensor | None

    def __repr__(self):
        starts, seq_lens = self.step.query_start_loc.tolist(), self.step.seq_lens.tolist()
        storage = tuple(self.cache.key.shape)
        return f"{self.layer} {self.query.dtype} {starts=} {seq_lens=} {storage=}"

    def backend(self, kind):
        """A backend with a copy of the cache."""
        cache = LayerCache(key=clone(self.cache.key), value=clone(self.cache.value))
        return kind(layers={0: self.layer}, caches={0: cache}), cache

    def run(self, kind):
        """Output and cache after the step."""
        backend, cache = self.backend(kind)
        backend.plan(self.step)
        backend.write_kv(self.layer, self.key, self.value)
        return backend.attend(self.layer, self.query, self.sinks), cache


def make_batch(
    layer, rows, *, block_size=16, dtype=torch.float32, num_padding=0, seed=0, keys_in_columns=False
):
    """A batch whose pool is NaN but for the keys that some query attends, in shuffled blocks."""
    # Numbers and places are drawn apart, so that the same seed gives the same numbers for any block size.
    generator = torch.Generator().manual_seed(seed)
    places = torch.Generator().manual_seed(seed)
    num_columns = max(ceil_div(row.seq_len, block_size) for row in rows) + 1
    tables = torch.zeros(2, len(rows) + 2, num_columns, dtype=torch.int32)
    row_ids = torch.randperm(len(rows) + 2, generator=places)[: len(rows)].int()
    num_blocks = 1 + sum(ceil_div(row.seq_len, block_size) for row in rows)
    free = (torch.randperm(num_blocks - 1, generator=places) + 1).tolist()
    key = poisoned(num_blocks, layer.num_kv_heads, block_size, layer.k_dim, dtype)
    if keys_in_columns:
        key = in_columns(key)
    cache = LayerCache(
        key=key,
        value=poisoned(num_blocks, layer.num_kv_heads, block_size, layer.v_dim, dtype),
    )
    tables[0] = 2**30
    slots, positions, keys, values = [], [], [], []
    for row, row_id in zip(rows, row_ids.tolist(), strict=True):
        first_query = row.seq_len - row.query_len
        first_key = first_visible_key(layer, first_query)
        for column in range(first_key // block_size, ceil_div(row.seq_len, block_size)):
            tables[GROUP, row_id, column] = free.pop()
        own = torch.arange(first_key, row.seq_len)
        row_slots = tables[GROUP, row_id][own // block_size] * block_size + own % block_size
        row_keys = normal(generator, len(own), layer.num_kv_heads, layer.k_dim, dtype=dtype)
        row_values = normal(generator, len(own), layer.num_kv_heads, layer.v_dim, dtype=dtype)
        old = row_slots[: first_query - first_key].long()
        cache.key[old // block_size, :, old % block_size] = row_keys[: len(old)]
        cache.value[old // block_size, :, old % block_size] = row_values[: len(old)]
        slots.append(row_slots[len(old) :].long())
        positions.append(own[len(old) :].int())
        keys.append(row_keys[len(old) :])
        values.append(row_values[len(old) :])
    num_tokens = sum(row.query_len for row in rows)
    step = StepInputs(
        row_ids=row_ids,
        query_start_loc=torch.tensor([0, *(row.query_len for row in rows)]).cumsum(0).int(),
        seq_lens=torch.tensor([row.seq_len for row in rows], dtype=torch.int32),
        input_ids=torch.zeros(num_tokens, dtype=torch.int32),
        positions=torch.cat(positions),
        slot_mapping=torch.stack([torch.full((num_tokens,), 2**60), torch.cat(slots)]),
        block_tables=tables,
        logits_indices=torch.zeros(0, dtype=torch.int32),
        block_copies=torch.zeros(0, 3, dtype=torch.int32),
        num_tokens_padded=num_tokens + num_padding,
    )
    query = normal(
        generator, num_tokens + num_padding, layer.num_query_heads, layer.k_dim, dtype=dtype
    )
    # Scores of a few units, whatever the size of a head: their rounding stays far below the tests' tolerance.
    query *= 4 / layer.k_dim**0.5
    return PagedBatch(
        layer=layer,
        cache=cache,
        step=step,
        query=as_model_passes(query),
        key=as_model_passes(padded(torch.cat(keys), num_padding)),
        value=as_model_passes(padded(torch.cat(values), num_padding)),
        sinks=normal(generator, layer.num_query_heads, dtype=dtype) if layer.has_sinks else None,
    )


def part_of(batch, row, *, first=0, count=None):
    """The batch with one row only, and of it only queries ``first .. first + count``, over the same filled cache."""
    start, stop = batch.step.query_start_loc[row : row + 2].tolist()
    count = stop - start - first if count is None else count
    tokens = slice(start + first, start + first + count)
    seq_len = int(batch.step.seq_lens[row]) - (stop - start) + first + count
    step = replace(
        batch.step,
        row_ids=batch.step.row_ids[row : row + 1],
        query_start_loc=torch.tensor([0, count], dtype=torch.int32),
        seq_lens=torch.tensor([seq_len], dtype=torch.int32),
        input_ids=batch.step.input_ids[tokens],
        slot_mapping=batch.step.slot_mapping[:, tokens],
        num_tokens_padded=count,
    )
    return replace(
        batch,
        step=step,
        query=batch.query[tokens],
        key=batch.key[tokens],
        value=batch.value[tokens],
    )


def first_visible_key(layer, position):
    if layer.kind == "sliding":
        return max(0, position - layer.window + 1)
    if layer.kind == "chunked":
        return position // layer.window * layer.window
    return 0


def poisoned(num_blocks, num_heads, block_size, dim, dtype):
    """Storage of NaN in which each block is followed by a few elements of nobody."""
    per_block = num_heads * block_size * dim + 24
    memory = torch.full((num_blocks, per_block), torch.nan, dtype=dtype)
    strides = (per_block, block_size * dim, dim, 1)
    return memory.as_strided((num_blocks, num_heads, block_size, dim), strides)


def in_columns(keys):
    """The memory of keys, seen as keys of which the same number of all slots of a block lies side by side."""
    return keys.as_strided(keys.shape, (*keys.stride()[:2], 1, keys.shape[2]))


def clone(storage):
    """A copy with the same strides; ``Tensor.clone`` would close the gaps."""
    copy = poisoned(*storage.shape, storage.dtype).as_strided(storage.shape, storage.stride())
    copy.copy_(storage)
    return copy


def normal(generator, *shape, dtype):
    return torch.randn(*shape, generator=generator).to(dtype)


def padded(tokens, num_padding):
    """Tokens followed by rows of NaN, which nobody may store."""
    return torch.cat([tokens, tokens.new_full((num_padding, *tokens.shape[1:]), torch.nan)])


def as_model_passes(tokens):
    """The same [T, heads, dim] as a view of [1, heads, T, dim]."""
    return tokens.transpose(0, 1).contiguous().unsqueeze(0).squeeze(0).transpose(0, 1)


def ceil_div(number, divisor):
    return -(-number // divisor)
