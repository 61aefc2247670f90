"""How many threads a model works with is one setting, for torch and the kernels alike."""

import pytest
import torch

from pagedkv import LLM, SamplingParams, _core


@pytest.fixture(autouse=True)
def _threads_as_before():
    before = torch.get_num_threads(), _core.num_threads()
    yield
    torch.set_num_threads(before[0])
    _core.set_num_threads(before[1])


def ids_with(num_threads):
    with LLM("demo", num_threads=num_threads) as llm:
        counts = torch.get_num_threads(), _core.num_threads()
        outputs = llm.generate("Once upon a time", SamplingParams(max_tokens=8, temperature=0))
    return counts, outputs[0].outputs[0].token_ids


def test_the_setting_holds_for_torch_and_the_kernels_and_changes_no_token():
    counts, one = ids_with(1)
    assert counts == (1, 1)
    counts, three = ids_with(3)
    assert counts == (3, 3)
    assert one == three


def test_without_the_setting_the_kernels_take_as_many_as_torch():
    torch.set_num_threads(2)
    _core.set_num_threads(5)
    assert ids_with(None)[0] == (2, 2)


@pytest.mark.parametrize("num_threads", [0, -1, 5000])
def test_a_count_out_of_range_is_refused_with_its_bounds(num_threads):
    with pytest.raises(ValueError, match=r"num_threads must be from 1 to 1024"):
        LLM("demo", num_threads=num_threads)
