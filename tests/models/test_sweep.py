"""The architecture sweep through the engine: every promised model on a pool that is too small for its requests.

Each case shows, beside equal ids, that what makes it hard has happened: sequences were preempted, a prompt was longer than
a step, a context passed its window, and the pool held NaN wherever nothing was written.
"""

import pytest
import torch

from models.crowded import (
    MAX_NUM_BATCHED_TOKENS,
    MAX_TOKENS,
    PROMPT_LENGTHS,
    run_engine,
    smallest_pool,
)
from models.tiny import SWEEP, generate_greedy, random_prompts, save_tiny_model, with_wider_windows
from pagedkv.attention import resolve_backend

# More than two blocks, so that a sequence grows inside its window; less than the longest context.
WINDOW, CHUNK = 19, 24

# Every architecture on the backend that a CPU takes by default, one of each kind of attention on the reference.
DEFAULT_BACKEND = resolve_backend("auto", torch.device("cpu"))
REFERENCE_MODELS = ["llama", "mistral", "gemma2", "gpt_oss", "llama4_text", "deepseek_v3"]
CASES = [(model_type, DEFAULT_BACKEND) for model_type in SWEEP] + [
    (model_type, "torch") for model_type in REFERENCE_MODELS if DEFAULT_BACKEND != "torch"
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Saves an architecture once and knows what transformers generates with it and how small a pool may be."""
    known = {}

    def checkpoint(model_type):
        if model_type not in known:
            folder = tmp_path_factory.mktemp(model_type)
            model = save_tiny_model(
                model_type, folder, **with_wider_windows(model_type, window=WINDOW, chunk=CHUNK)
            )
            expected = generate_greedy(model, random_prompts(PROMPT_LENGTHS), max_tokens=MAX_TOKENS)
            known[model_type] = (folder, expected, smallest_pool(model))
        return known[model_type]

    return checkpoint


@pytest.mark.parametrize(("model_type", "backend"), CASES)
def test_ids_equal_those_of_generate_under_preemption(model_type, backend, checkpoints):
    folder, expected, pool_bytes = checkpoints(model_type)
    prompts = random_prompts(PROMPT_LENGTHS)
    token_ids, stats, groups = run_engine(
        folder, backend, prompts, kv_cache_memory_bytes=pool_bytes
    )
    assert token_ids == expected
    assert stats["num_preemptions"] > 0
    assert max(PROMPT_LENGTHS) > MAX_NUM_BATCHED_TOKENS
    longest = max(PROMPT_LENGTHS) + MAX_TOKENS
    assert all(group.window is None or group.window < longest for group in groups)
