"""Random batches for property tests of the `cpu` backend, and how far their results may be from the readable one."""

import torch
from hypothesis import strategies as st

from attention.paged_batch import Row, layer_spec, make_batch
from pagedkv.attention import prefers_columns

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def tolerances(batch, dtype=None):
    """What two orders of rounding may differ by.

    A score is a sum of k_dim products with an error of some sqrt(k_dim) roundings of |q| |k|. An error e of the scores
    changes weights by a factor of 1 + e, up or down, and outputs by up to 2 e times the largest value. Outputs themselves
    are rounded, perhaps to the other neighbour.
    """
    layer, epsilon = batch.layer, torch.finfo(torch.float32).eps
    cached = [batch.cache.key.float().nan_to_num(), batch.key.float().nan_to_num()]
    longest_key = max(keys.norm(dim=-1).max().item() for keys in cached)
    longest_query = batch.query.float().norm(dim=-1).max().item()
    values = [batch.cache.value.float().nan_to_num(), batch.value.float().nan_to_num()]
    largest_value = max(numbers.abs().max().item() for numbers in values)
    score_error = (layer.k_dim**0.5 + 4) * epsilon * layer.scale * longest_query * longest_key
    error = (2 * score_error + 16 * epsilon) * largest_value
    dtype = batch.query.dtype if dtype is None else dtype
    return {"atol": error, "rtol": 2 * torch.finfo(dtype).eps}


@st.composite
def layers(draw):
    num_kv_heads = draw(st.integers(1, 4))
    kind = draw(st.sampled_from(["full", "sliding", "chunked"]))
    return layer_spec(
        num_kv_heads=num_kv_heads,
        num_query_heads=num_kv_heads * draw(st.sampled_from([1, 2, 3, 8])),
        k_dim=draw(st.sampled_from([1, 7, 8, 24, 33, 64, 80, 128])),
        v_dim=draw(st.sampled_from([1, 5, 16, 17, 64, 72, 100])),
        scale=draw(st.sampled_from([1.0, 0.125, 0.37])),
        softcap=draw(st.sampled_from([None, 0.7, 30.0])),
        has_sinks=draw(st.booleans()),
        kind=kind,
        window=None if kind == "full" else draw(st.integers(1, 100)),
    )


@st.composite
def batches(draw, dtypes=DTYPES):
    rows = []
    for seq_len in draw(st.lists(st.integers(1, 200), min_size=1, max_size=5)):
        query_len = draw(st.one_of(st.just(1), st.integers(1, seq_len)))
        rows.append(Row(seq_len=seq_len, query_len=query_len))
    block_size = draw(st.sampled_from([8, 16, 32, 64]))
    return make_batch(
        draw(layers()),
        rows,
        block_size=block_size,
        keys_in_columns=prefers_columns("cpu", block_size=block_size) and draw(st.booleans()),
        dtype=draw(st.sampled_from(dtypes)),
        num_padding=draw(st.integers(0, 3)),
        seed=draw(st.integers(0, 2**32)),
    )
