"""On a CPU a result is a function of the prompt, the parameters and the seed: not of what else runs, chunks, cache or threads."""

import random

import pytest

from pagedkv import LLM, SamplingParams, _core

NUM_PROMPTS = 200
WORDS = [
    "the",
    "fox",
    "saw",
    "a",
    "small",
    "red",
    "boat",
    "on",
    "its",
    "way",
    "home",
    "and",
    "said",
    "hello",
    "to",
    "every",
    "bird",
    "it",
    "met",
]
ARGUMENTS = {"kv_cache_memory_bytes": 32 << 20, "max_num_seqs": 32}


def make_requests():
    """Prompts of 1 to 60 words, half of them with beginnings in common, greedy and seeded in turns."""
    rng = random.Random(7)
    requests = []
    for index in range(NUM_PROMPTS):
        words = [rng.choice(WORDS) for _ in range(rng.randint(1, 60))]
        if index % 2:
            words = WORDS[: rng.randint(3, len(WORDS))] + words
        temperature = 0.0 if index % 3 == 0 else 0.9
        params = SamplingParams(
            temperature=temperature, seed=index, max_tokens=rng.randint(1, 8), logprobs=2
        )
        requests.append((" ".join(words), params))
    return requests


def results(llm, requests):
    """Ids, and log-probabilities to the last bit."""
    prompts, params = zip(*requests, strict=True)
    outputs = llm.generate(list(prompts), list(params), use_tqdm=False)
    return [
        (
            completion.token_ids,
            completion.cumulative_logprob,
            [
                {token: logprob.logprob.hex() for token, logprob in position.items()}
                for position in completion.logprobs
            ],
        )
        for output in outputs
        for completion in output.outputs
    ]


@pytest.fixture(scope="module")
def alone():
    """Each request by itself, with nothing to find in a cache."""
    with LLM("demo", enable_prefix_caching=False, **ARGUMENTS) as llm:
        return [results(llm, [request])[0] for request in make_requests()]


@pytest.mark.parametrize(
    "settings",
    [
        {"max_num_batched_tokens": 512},
        {"max_num_batched_tokens": 33, "enable_prefix_caching": False},
        pytest.param({"block_size": 8, "max_num_batched_tokens": 64}, marks=pytest.mark.slow),
    ],
    ids=["large steps", "small chunks, no cache", "small blocks"],
)
def test_company_chunks_blocks_and_cache_hits_change_no_bit(alone, settings):
    order = list(range(NUM_PROMPTS))
    random.Random(str(settings)).shuffle(order)
    requests = make_requests()
    with LLM("demo", **ARGUMENTS | settings) as llm:
        for attempt in range(2):
            # The second time most prompts are found in the cache.
            mixed = results(llm, [requests[index] for index in order])
            assert mixed == [alone[index] for index in order], f"attempt {attempt}"
        cached = llm.stats()["num_cached_prompt_tokens"]
    assert (cached > 0) == settings.get("enable_prefix_caching", True)


def test_preemption_changes_no_bit():
    requests = make_requests()[:24]
    for _, params in requests:
        params.max_tokens = 40
        params.ignore_eos = True
    with LLM("demo", max_model_len=256, **ARGUMENTS) as llm:
        ample = results(llm, requests)
        block_bytes = ARGUMENTS["kv_cache_memory_bytes"] // llm.stats()["num_blocks"]
    tight = ARGUMENTS | {"kv_cache_memory_bytes": 40 * block_bytes, "max_model_len": 256}
    with LLM("demo", enable_prefix_caching=False, **tight) as llm:
        assert results(llm, requests) == ample
        assert llm.stats()["num_preemptions"] > 0


def test_threads_change_no_bit(alone):
    before = _core.num_threads()
    try:
        with LLM("demo", num_threads=2 if before == 1 else 1, **ARGUMENTS) as llm:
            assert results(llm, make_requests()) == alone
    finally:
        _core.set_num_threads(before)
