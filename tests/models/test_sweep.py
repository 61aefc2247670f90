"""The architecture sweep through the engine: every promised model on a pool that is too small for its requests.

Each case shows, beside equal ids, that what makes it hard has happened: sequences were preempted, a prompt was longer than
a step, a context passed its window, and the pool held NaN wherever nothing was written.
"""

import pytest
import torch

from models.tiny import SWEEP, generate_greedy, random_prompts, save_tiny_model, with_wider_windows
from pagedkv import LLM, SamplingParams
from pagedkv.attention import resolve_backend
from pagedkv.models import prepare_model

# Three that begin in one block each and grow out of it together, then one that is cut into chunks, and the shortest.
PROMPT_LENGTHS = [6, 7, 5, 30, 1]
MAX_TOKENS = 18
BLOCK_SIZE = 8
MAX_MODEL_LEN = 56
# Smaller than the longest prompt, so that it is cut.
MAX_NUM_BATCHED_TOKENS = 16
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


def smallest_pool(model):
    """Bytes of a KV cache that holds one sequence of the longest context and not a block more."""
    geometry = prepare_model(model, folder=None, max_model_len=MAX_MODEL_LEN).geometry
    num_blocks = 1 + geometry.blocks_for_sequence(
        MAX_MODEL_LEN, block_size=BLOCK_SIZE, query_len=MAX_NUM_BATCHED_TOKENS
    )
    return num_blocks * geometry.bytes_per_block(block_size=BLOCK_SIZE, dtype=model.dtype)


def run_engine(folder, backend, prompts, *, kv_cache_memory_bytes):
    """Token ids of every prompt, what the engine counted, and its KV groups."""
    with LLM(
        str(folder),
        skip_tokenizer_init=True,
        attention_backend=backend,
        max_model_len=MAX_MODEL_LEN,
        block_size=BLOCK_SIZE,
        max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS,
        max_num_seqs=len(prompts),
        kv_cache_memory_bytes=kv_cache_memory_bytes,
    ) as llm:
        parts = llm.llm_engine.parts
        for storage in [*parts.kv_cache.keys, *parts.kv_cache.values]:
            storage.fill_(torch.nan)
        outputs = llm.generate(
            prompt_token_ids=prompts,
            sampling_params=SamplingParams(
                temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True, detokenize=False
            ),
            use_tqdm=False,
        )
        llm.llm_engine.check_invariants()
        token_ids = [list(output.outputs[0].token_ids) for output in outputs]
        return token_ids, llm.stats(), parts.loaded.geometry.groups


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
