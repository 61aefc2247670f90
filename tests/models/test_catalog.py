"""The table of models is true: it lists the types of transformers, its page is its rendering, and the sweep gives its lines."""

from types import SimpleNamespace

import pytest
import torch
import transformers

from models.sweep import TYPES, Reference, difference, sweep_type
from pagedkv.catalog import Catalog
from pagedkv.model_runner import ModelRunner
from tidy.sources import ROOT

CATALOG = Catalog.read()
ENTRIES = {entry.model_type: entry for entry in CATALOG.entries}

# Every status and scope: windows, sinks, experts, positions of their own, adapters, the slow path, each way to be refused.
SAMPLE = [
    *("bert", "granite_swa", "cohere2_moe", "roberta", "gptj"),
    *("bloom", "doge", "diffllama"),
    *("bart", "gemma3", "mamba", "deepseek_v32", "openai-gpt"),
]
# Transformers' own warnings about odd configurations are of no interest here.
pytestmark = pytest.mark.filterwarnings("ignore")


def test_the_table_lists_the_types_of_the_installed_transformers():
    installed = transformers.__version__
    assert CATALOG.transformers_version == installed, (
        f"the table of models was made with transformers {CATALOG.transformers_version}, "
        f"{installed} is installed: run `make models` and read what has changed"
    )
    assert sorted(ENTRIES) == sorted(TYPES), "run `make models`"


def test_the_page_is_the_rendered_table():
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    assert page == CATALOG.as_markdown(), "run `make models`, which writes both"


def test_no_type_is_wrong_and_most_of_those_that_keep_only_keys_and_values_run():
    assert not [entry for entry in CATALOG.entries if entry.status == "wrong"]
    plain = [entry for entry in CATALOG.entries if entry.scope == "text"]
    assert sum(entry.runs for entry in plain) >= 0.85 * len(plain)


def test_types_of_a_state_are_refused_by_the_layer_or_the_state_that_they_keep():
    reasons = [entry.notes for entry in CATALOG.entries if entry.scope == "state"]
    assert len(reasons) > 25
    assert all("layer" in reason or "state" in reason for reason in reasons)


@pytest.mark.parametrize("model_type", SAMPLE)
def test_the_sweep_gives_the_line_of_the_table(model_type):
    assert sweep_type(model_type) == ENTRIES[model_type]


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [name for name in TYPES if name not in SAMPLE])
def test_the_sweep_gives_every_other_line_of_the_table(model_type):
    assert sweep_type(model_type) == ENTRIES[model_type]


def test_the_sweep_sees_a_model_that_runs_on_wrong_positions(monkeypatch):
    padded_inputs = ModelRunner._padded_inputs

    def doubled(runner, step):
        input_ids, positions = padded_inputs(runner, step)
        return input_ids, 2 * positions

    monkeypatch.setattr(ModelRunner, "_padded_inputs", doubled)
    entry = sweep_type("llama")
    assert entry.status == "wrong"
    assert "log-probability" in entry.notes


def test_the_sweep_sees_an_engine_that_fails(monkeypatch):
    def fail(runner, step):
        raise RuntimeError("no memory")

    monkeypatch.setattr(ModelRunner, "forward", fail)
    entry = sweep_type("llama")
    assert entry.status == "wrong"


def completion(token_ids, logprobs):
    steps = [
        {token_id: SimpleNamespace(logprob=logprob)}
        for token_id, logprob in zip(token_ids, logprobs, strict=True)
    ]
    return SimpleNamespace(token_ids=token_ids, logprobs=steps)


@pytest.mark.parametrize(
    ("token_ids", "logprobs", "found"),
    [
        ([0, 1], [-0.5, -0.5], None),
        # A tie: from there on the texts differ rightly, whatever the log-probabilities are.
        ([2, 1], [-0.50001, -9.0], None),
        ([1, 1], [-1.0, -0.5], "0.5000 below the best"),
        ([0, 1], [-0.5, -0.6], "instead of -0.5000 at output token 1"),
        ([0, 1], [float("nan"), -0.5], "log-probability nan"),
        ([0], [-0.5], "1 tokens instead of 2"),
    ],
)
def test_a_difference_is_a_token_below_the_best_or_another_logprob(token_ids, logprobs, found):
    expected = torch.tensor([[-0.5, -1.0, -0.50001], [-1.0, -0.5, -2.0]])
    reference = Reference([0, 1], expected, expected[0])
    said = difference(reference, completion(token_ids, logprobs))
    assert said is None if found is None else found in said
