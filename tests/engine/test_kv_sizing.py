"""How the KV cache gets its size."""

import logging

import pytest
import torch

from pagedkv import LLM
from pagedkv.config import EngineConfig
from pagedkv.kv_sizing import available_memory_bytes, size_kv_cache


@pytest.fixture(scope="module")
def loaded():
    from pagedkv.models.loading import load_model
    from pagedkv.startup import demo_folder

    return load_model(
        demo_folder(),
        revision=None,
        dtype="auto",
        device=torch.device("cpu"),
        max_model_len=None,
        trust_remote_code=False,
    )


def size(loaded, **arguments):
    config = EngineConfig(model="demo", **arguments)
    return size_kv_cache(loaded, config, max_num_batched_tokens=2048)


def test_given_memory_is_used_and_not_exceeded(loaded):
    block_bytes = loaded.geometry.bytes_per_block(block_size=16, dtype=loaded.dtype)
    found = size(loaded, kv_cache_memory_bytes=20_000_000)
    assert found.num_bytes == found.num_blocks * block_bytes
    assert 20_000_000 - block_bytes < found.num_bytes <= 20_000_000
    assert found.num_tokens == (found.num_blocks - 1) * 16
    assert found.max_concurrency == pytest.approx(found.num_tokens / 2048)


def test_by_default_a_cpu_gets_what_its_sequences_need(loaded):
    found = size(loaded, max_num_seqs=4)
    assert found.num_blocks == 4 * 128 + 1
    assert found.max_concurrency == 4.0


def test_by_default_a_cpu_gets_at_most_a_quarter_of_what_is_free(loaded, monkeypatch):
    monkeypatch.setattr("pagedkv.kv_sizing.available_memory_bytes", lambda: 64 << 20)
    found = size(loaded, max_num_seqs=256)
    assert found.num_bytes <= 16 << 20
    assert found.num_bytes > 15 << 20


def test_free_memory_is_a_sensible_number():
    assert 1 << 20 < available_memory_bytes() < 1 << 50


def test_the_lines_that_people_search_for_are_logged(caplog):
    with caplog.at_level(logging.INFO, logger="pagedkv"):
        LLM("demo", max_num_seqs=4, max_model_len=1024).close()
    assert "KV cache size: 4,096 tokens" in caplog.text
    assert "Maximum concurrency for 1,024 tokens per request: 4.00x" in caplog.text
