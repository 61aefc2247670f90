"""A pool that is too small changes when things run, not what comes out: by swap, by recompute, for every kind of request."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pagedkv import LLM, SamplingParams
from pagedkv.swap_space import SwapSpace

PROMPTS = ["Once upon a time", "Tell me a story about a fox.", "One windy day,", "Hello", "The sun"]
ARGUMENTS = {"dtype": "float32", "max_num_seqs": 24, "block_size": 8, "max_model_len": 128}
GENEROUS = 32 << 20


def beams(width, **arguments):
    return SamplingParams(use_beam_search=True, n=width, best_of=width, **arguments)


PARAMS = [
    beams(5, max_tokens=60, ignore_eos=True),
    SamplingParams(temperature=0.8, seed=3, n=3, max_tokens=60, ignore_eos=True),
    SamplingParams(temperature=0.7, seed=4, n=2, best_of=4, max_tokens=40, ignore_eos=True),
    SamplingParams(temperature=0.0, max_tokens=70, ignore_eos=True, frequency_penalty=0.4),
    SamplingParams(
        temperature=0.9,
        seed=5,
        n=2,
        max_tokens=40,
        structured_outputs={"regex": r"[a-z]{3,8}( [a-z]{3,8}){4,9}"},
    ),
]


def results(outputs):
    return [
        [(c.token_ids, c.text, c.cumulative_logprob, c.score) for c in output.outputs]
        for output in outputs
    ]


def run(num_bytes, **arguments):
    """Results, and the figures afterwards."""
    with LLM("demo", kv_cache_memory_bytes=num_bytes, **ARGUMENTS, **arguments) as llm:
        outputs = results(llm.generate(PROMPTS, PARAMS, use_tqdm=False))
        llm.llm_engine.check_invariants()
        stats = llm.stats()
    assert stats["num_used_blocks"] == stats["num_used_swap_blocks"] == stats["num_running"] == 0
    assert stats["num_waiting"] == 0
    return outputs, stats


@pytest.fixture(scope="module")
def ample():
    outputs, stats = run(GENEROUS)
    assert stats["num_preemptions"] == 0
    return outputs, GENEROUS // stats["num_blocks"]


@pytest.mark.parametrize("enable_prefix_caching", [True, False])
def test_swap_and_recompute_give_what_an_ample_pool_gives(ample, enable_prefix_caching):
    expected, block_bytes = ample
    # Too little for all that is preempted, so that some of it is computed again.
    swap_space = 8 * block_bytes / (1 << 30)
    outputs, stats = run(
        47 * block_bytes, swap_space=swap_space, enable_prefix_caching=enable_prefix_caching
    )
    assert outputs == expected
    assert stats["num_swaps"] > 0
    assert stats["num_preemptions"] > stats["num_swaps"]
    assert stats["num_tokens_lost"] > 0


def test_without_swap_space_everything_is_computed_again(ample):
    expected, block_bytes = ample
    outputs, stats = run(47 * block_bytes)
    assert outputs == expected
    assert stats["num_preemptions"] > 0
    assert stats["num_swaps"] == stats["num_swap_blocks"] == 0


def test_each_request_gives_alone_what_it_gives_in_the_mix(ample):
    expected, _ = ample
    with LLM("demo", kv_cache_memory_bytes=GENEROUS, **ARGUMENTS) as llm:
        for prompt, params, own in zip(PROMPTS, PARAMS, expected, strict=True):
            assert results(llm.generate([prompt], params, use_tqdm=False)) == [own]


def test_blocks_are_moved_out_before_others_move_in():
    keys, values = torch.arange(12.0).reshape(4, 3), torch.arange(20.0).reshape(4, 5)
    space = SwapSpace(SimpleNamespace(keys=[keys], values=[values]), num_blocks=2)
    second, third = values[1].clone(), values[2].clone()
    none = np.zeros((0, 3), np.int32)
    space.move(np.array([[0, 1, 0], [0, 2, 1]], np.int32), none)
    keys.zero_()
    values.zero_()
    space.move(np.array([[0, 3, 1]], np.int32), np.array([[0, 0, 2]], np.int32))
    assert torch.equal(values[2], second)
    assert torch.equal(keys[2], torch.tensor([3.0, 4.0, 5.0]))
    space.move(none, np.array([[0, 1, 1]], np.int32))
    assert not torch.equal(values[1], third)
    assert space.nbytes == 2 * (3 + 5) * 4


def test_a_swap_space_out_of_range_names_the_bound():
    with pytest.raises(ValueError, match="swap_space must be from 0"):
        LLM("demo", swap_space=-1)
    with pytest.raises(TypeError, match="swap_space"):
        LLM("demo", swap_space="4 GiB")
