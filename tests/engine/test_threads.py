"""Threads that call one LLM share its batch."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pagedkv import LLM, EngineClosedError, SamplingParams


def params(seed):
    return SamplingParams(seed=seed, max_tokens=25, ignore_eos=True)


def test_each_thread_gets_what_it_would_alone(llm):
    prompts = [[[5 + i, 6, 7], [9, 9 + i]] for i in range(8)]
    alone = [llm.generate(pair, params(i), use_tqdm=False) for i, pair in enumerate(prompts)]
    with ThreadPoolExecutor(8) as pool:
        futures = [
            pool.submit(llm.generate, pair, params(i), use_tqdm=False)
            for i, pair in enumerate(prompts)
        ]
        together = [future.result(timeout=60) for future in futures]
    assert [[o.outputs for o in pair] for pair in together] == [
        [o.outputs for o in pair] for pair in alone
    ]


def test_two_threads_run_in_one_batch(llm):
    """A thread that arrives while another generates joins its steps: fewer steps than one after the other."""
    before = llm.stats()["num_steps"]
    started = threading.Barrier(2)

    def run(seed):
        started.wait()
        llm.generate(
            [[5, 6]], SamplingParams(seed=seed, max_tokens=100, ignore_eos=True), use_tqdm=False
        )

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, range(2)))
    assert llm.stats()["num_steps"] - before < 190


def test_a_bad_call_of_one_thread_does_not_touch_the_other(llm):
    (expected,) = llm.generate([[5, 6]], params(1), use_tqdm=False)

    def bad():
        for _ in range(50):
            with pytest.raises(ValueError, match="is empty"):
                llm.generate([""], use_tqdm=False)

    with ThreadPoolExecutor(2) as pool:
        good = pool.submit(llm.generate, [[5, 6]], params(1), use_tqdm=False)
        pool.submit(bad).result(timeout=60)
        (output,) = good.result(timeout=60)
    assert output.outputs == expected.outputs


def test_streams_in_threads_share_the_engine(llm):
    def run(seed):
        return "".join(delta.text for delta in llm.stream("Once upon", params(seed)))

    alone = [run(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, range(4))) == alone


def test_closing_wakes_the_threads_that_wait():
    llm = LLM("demo", kv_cache_memory_bytes=8 << 20, max_num_seqs=4)
    running = threading.Event()

    def run():
        for _ in llm.stream("Once", SamplingParams(max_tokens=1000, ignore_eos=True)):
            running.set()

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(run) for _ in range(2)]
        assert running.wait(timeout=30)
        llm.close()
        for future in futures:
            with pytest.raises(EngineClosedError):
                future.result(timeout=30)
