"""An engine whose pool is too small for its requests: sequences are preempted, a prompt is longer than a step."""

from contextlib import contextmanager

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


@contextmanager
def crowded_llm(folder, backend, *, max_num_seqs, kv_cache_memory_bytes):
    """The engine over a checkpoint, with NaN in every slot of its pool; checked when the caller is done."""
    with LLM(
        str(folder),
        skip_tokenizer_init=True,
        attention_backend=backend,
        max_model_len=MAX_MODEL_LEN,
        block_size=BLOCK_SIZE,
        max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS,
        max_num_seqs=max_num_seqs,
        kv_cache_memory_bytes=kv_cache_memory_bytes,
    ) as llm:
        kv_cache = llm.llm_engine.parts.kv_cache
        for storage in [*kv_cache.keys, *kv_cache.values]:
            storage.fill_(torch.nan)
        yield llm
        llm.llm_engine.check_invariants()


def generate(llm, prompts, **parameters):
    """The greedy continuation of every prompt, to its full length."""
    params = SamplingParams(
        temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True, detokenize=False, **parameters
    )
    outputs = llm.generate(prompt_token_ids=prompts, sampling_params=params, use_tqdm=False)
    return [output.outputs[0] for output in outputs]


def run_engine(folder, backend, prompts, *, kv_cache_memory_bytes):
    """Token ids of every prompt, what the engine counted, and its KV groups."""
    with crowded_llm(
        folder, backend, max_num_seqs=len(prompts), kv_cache_memory_bytes=kv_cache_memory_bytes
    ) as llm:
        token_ids = [list(completion.token_ids) for completion in generate(llm, prompts)]
        return token_ids, llm.stats(), llm.llm_engine.parts.loaded.geometry.groups
