"""The comparison of greedy ids tells equal, tie and different apart."""

import copy
import json
import sys

import pytest
import torch

from tidy.sources import ROOT


@pytest.fixture
def benches(monkeypatch):
    """The modules of benches/, imported as its scripts import each other."""
    names = ("engines", "greedy_check", "workloads")
    monkeypatch.syspath_prepend(str(ROOT / "benches"))
    import greedy_check

    yield greedy_check
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def run_once(tmp_path_factory):
    """A tiny random model with a workload, and the ids that transformers gives it."""
    tmp_path = tmp_path_factory.mktemp("greedy")
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, eos_token_id=1, pad_token_id=2,
        initializer_range=0.5,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    # Each token has a twin with the same logit, 32 further on.
    with torch.no_grad():
        model.lm_head.weight[32:] = model.lm_head.weight[:32]
    model.save_pretrained(tmp_path / "model")
    requests = [{"prompt_token_ids": [3 + i, 5, 7 + i], "max_tokens": 8 + i} for i in range(24)]
    workload = tmp_path / "workload.json"
    workload.write_text(json.dumps({"name": "tiny", "seed": 0, "requests": requests}))
    expected = []
    for request in requests:
        prompt = torch.tensor([request["prompt_token_ids"]])
        num_tokens = request["max_tokens"]
        output = model.generate(
            prompt, max_new_tokens=num_tokens, do_sample=False, eos_token_id=None
        )
        expected.append(output[0, 3:].tolist())
    return str(tmp_path / "model"), workload, expected


@pytest.fixture
def run(run_once):
    """The same with ids that a test may change."""
    model, workload, expected = run_once
    return model, workload, copy.deepcopy(expected)


def test_the_same_ids_are_equal(benches, run):
    """An engine that does as transformers does passes."""
    model, workload, ids = run
    report = benches.compare(model, workload, ids, dtype="float32")
    assert (report.num_requests, report.ties, report.different) == (24, [], [])


def test_a_wrong_token_is_a_difference(benches, run):
    """One token of one request is enough, and the report says where."""
    model, workload, ids = run
    ids[3][5] = (ids[3][5] + 1) % 32
    report = benches.compare(model, workload, ids, dtype="float32")
    assert [(d.request, d.position) for d in report.different] == [(3, 5)]
    assert not report.ties


def test_a_choice_between_equal_logits_is_a_tie(benches, run):
    """Rounding decides there, and what follows differs rightly."""
    model, workload, ids = run
    ids[6][4] = (ids[6][4] + 32) % 64
    report = benches.compare(model, workload, ids, dtype="float32")
    assert [(d.request, d.position) for d in report.ties] == [(6, 4)]
    assert not report.different


def test_a_request_with_too_few_tokens_is_refused(benches, run):
    """A shorter run is a faster one; figures would lie."""
    model, workload, ids = run
    ids[0].pop()
    with pytest.raises(ValueError, match="request 0 must get 8 tokens, got 7"):
        benches.compare(model, workload, ids, dtype="float32")
