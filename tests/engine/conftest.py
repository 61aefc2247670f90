"""One bundled model for the tests of the engine, and the check that each leaves it empty and whole."""

import pytest

from pagedkv import LLM, LLMEngine

MEMORY = 32 << 20


@pytest.fixture(scope="session")
def shared_llm():
    with LLM(
        "demo", kv_cache_memory_bytes=MEMORY, max_num_seqs=16, max_num_batched_tokens=64
    ) as llm:
        yield llm


@pytest.fixture
def llm(shared_llm):
    """The shared engine; afterwards it must be idle, hold no block, keep its books and still answer."""
    yield shared_llm
    check_usable(shared_llm)


@pytest.fixture(scope="session")
def shared_engine():
    engine = LLMEngine("demo", kv_cache_memory_bytes=8 << 20, max_num_seqs=8)
    yield engine
    engine.close()


@pytest.fixture
def engine(shared_engine):
    """An engine for loops of one's own; afterwards it must be idle, hold no block and keep its books."""
    yield shared_engine
    assert not shared_engine.has_unfinished_requests()
    shared_engine.check_invariants()
    assert shared_engine.stats()["num_used_blocks"] == 0


def check_usable(llm):
    engine = llm.llm_engine
    assert not engine.has_unfinished_requests()
    engine.check_invariants()
    assert llm.stats()["num_used_blocks"] == 0
    (output,) = llm.generate([[5, 6, 7]], use_tqdm=False)
    assert output.finished
    assert output.error is None
    engine.check_invariants()
