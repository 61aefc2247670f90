"""An engine whose pool is too small for its requests: sequences are preempted, a prompt is longer than a step."""

import torch

from pagedkv import LLM, SamplingParams
from pagedkv.models import prepare_model

# Three that begin in one block each and grow out of it together, then one that is cut into chunks, and the shortest.
PROMPT_LENGTHS = [6, 7, 5, 30, 1]
MAX_TOKENS = 18
BLOCK_SIZE = 8
MAX_MODEL_LEN = 56
# Smaller than the longest prompt, so that it is cut.
MAX_NUM_BATCHED_TOKENS = 16


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
