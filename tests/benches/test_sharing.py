"""What sharing saves is what the tokens allow: no block is held twice."""

import importlib
import sys

import pytest

from tidy.sources import ROOT


@pytest.fixture(scope="module")
def sharing():
    sys.path.insert(0, str(ROOT / "benches"))
    yield importlib.import_module("sharing")
    sys.path.remove(str(ROOT / "benches"))


@pytest.mark.parametrize("is_beam", [False, True])
@pytest.mark.parametrize(("prompt_len", "max_tokens"), [(5, 40), (32, 33), (40, 9)])
def test_the_saving_equals_the_closed_form(sharing, is_beam, prompt_len, max_tokens):
    run = sharing.Run(max_num_seqs=12)
    for first in (3, 100):
        prompt = [first + place for place in range(prompt_len)]
        run.add({"prompt_token_ids": prompt, "max_tokens": max_tokens}, n=6, is_beam=is_beam)
    run.finish()
    stats = run.scheduler.stats()
    assert stats["mean_sharing"] == pytest.approx(run.closed_form, abs=1e-12)
    assert run.closed_form > 0.0
    assert stats["num_used_blocks"] == 0
