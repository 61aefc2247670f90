"""EngineConfig: what LLM(...) takes, refuses and answers."""

import pytest

from pagedkv import EngineConfig


def config(**arguments):
    return EngineConfig.from_arguments("demo", arguments)


def test_defaults_are_the_documented_ones():
    settings = config()
    assert (settings.block_size, settings.max_num_seqs) == (16, 256)
    assert (settings.gpu_memory_utilization, settings.enable_prefix_caching) == (0.9, True)
    assert (settings.scheduling_policy, settings.seed, settings.dtype) == ("fcfs", 0, "auto")


@pytest.mark.parametrize("block_size", [8, 16, 32, 64, 128, 256])
def test_every_documented_block_size_is_taken(block_size):
    assert config(block_size=block_size).block_size == block_size


@pytest.mark.parametrize("block_size", [0, -16, 1, 4, 12, 24, 512])
def test_another_block_size_is_answered_with_the_list(block_size):
    message = f"block_size must be one of 8, 16, 32, 64, 128, 256, got {block_size}"
    with pytest.raises(ValueError, match=message):
        config(block_size=block_size)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gpu_memory_utilization": 0}, r"gpu_memory_utilization must be in \(0, 1\], got 0"),
        ({"gpu_memory_utilization": 1.5}, r"gpu_memory_utilization must be in \(0, 1\], got 1.5"),
        ({"max_num_seqs": 0}, "max_num_seqs must be from 1 to 65536, got 0"),
        ({"max_model_len": 1}, "max_model_len must be from 2 to"),
        ({"kv_cache_memory_bytes": -5}, "kv_cache_memory_bytes must be from 1 to .*, got -5"),
        ({"kv_cache_memory": 0}, "kv_cache_memory_bytes must be from 1 to .*, got 0"),
        (
            {"scheduling_policy": "lifo"},
            "scheduling_policy must be 'fcfs' or 'priority', got 'lifo'",
        ),
        (
            {"max_num_batched_tokens": 8},
            r"max_num_batched_tokens \(8\) must be at least max_num_seqs",
        ),
        ({"seed": 2**64}, "seed must be from"),
        ({"kv_cache_memory": 1, "kv_cache_memory_bytes": 1}, "were both given; keep one"),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_bound(arguments, message):
    with pytest.raises(ValueError, match=message):
        config(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"block_size": True}, "block_size must be an int, got True"),
        ({"latent_kv_cache": 1}, "latent_kv_cache must be True or False, got 1"),
        ({"fuse_projections": "on"}, "fuse_projections must be True, False or 'auto', got 'on'"),
        ({"block_size": 16.0}, "block_size must be an int, got 16.0"),
        ({"max_num_seqs": "8"}, "max_num_seqs must be an int, got '8'"),
        ({"max_model_len": 1.5}, "max_model_len must be an int or None, got 1.5"),
        ({"enable_prefix_caching": 1}, "enable_prefix_caching must be True or False, got 1"),
        ({"gpu_memory_utilization": "0.9"}, "gpu_memory_utilization must be a number, got '0.9'"),
        ({"scheduling_policy": None}, "scheduling_policy must be a str, got None"),
        ({"tokenizer": 5}, "tokenizer must be a folder, a hub id or None, got 5"),
    ],
)
def test_a_setting_of_the_wrong_type_is_named(arguments, message):
    with pytest.raises(TypeError, match=message):
        config(**arguments)


@pytest.mark.parametrize("model", ["", None, 5])
def test_a_model_must_have_a_name(model):
    with pytest.raises((ValueError, TypeError), match="model must be a folder, a hub id or 'demo'"):
        EngineConfig.from_arguments(model, {})


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("gpu_mem_utilization", "gpu_memory_utilization"),
        ("max_num_seq", "max_num_seqs"),
        ("kv_cache_memory_byte", "kv_cache_memory_bytes"),
        ("blocksize", "block_size"),
    ],
)
def test_an_unknown_argument_is_answered_with_the_nearest_known_one(name, nearest):
    with pytest.raises(TypeError, match=f"LLM has no parameter '{name}'; did you mean '{nearest}'"):
        config(**{name: 1})


@pytest.mark.parametrize(
    "arguments",
    [
        {"tensor_parallel_size": 2},
        {"pipeline_parallel_size": 2},
        {"quantization": "awq"},
        {"enable_lora": True},
        {"kv_cache_dtype": "fp8"},
        {"speculative_config": {"method": "ngram"}},
    ],
)
def test_a_classic_argument_that_comes_later_is_refused_by_name(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"{name}=.* is not supported yet"):
        config(**arguments)


def test_classic_arguments_that_ask_for_nothing_are_accepted():
    config(
        tensor_parallel_size=1,
        quantization=None,
        enable_lora=False,
        swap_space=0,
        enforce_eager=True,
        enable_chunked_prefill=True,
        disable_log_stats=True,
        seed=None,
    )
