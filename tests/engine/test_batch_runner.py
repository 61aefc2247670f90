"""Running a batch in parts after a failure."""

import dataclasses

import numpy as np
import pytest
import torch

from pagedkv import SamplingParams
from pagedkv.attention.base import StepInputs
from pagedkv.batch_runner import BatchRunner, select_rows
from pagedkv.prompt_logprobs import PromptScorer
from pagedkv.sampling.masks import MaskSource
from pagedkv.sampling.named_tokens import NamedTokens
from pagedkv.sampling.sampler import Sampler
from pagedkv.swap_space import SwapSpace

VOCAB = 50


def make_step(lengths, *, copies=0):
    """A step whose tokens are numbered, with two samples of the last row (one of a sequence to be forked)."""
    num_tokens = sum(lengths)
    starts = np.cumsum([0, *lengths])
    ends = [*(starts[1:] - 1), starts[-1] - 1]

    def ints(values, dtype=torch.int32):
        return torch.tensor(np.asarray(values), dtype=dtype)

    return StepInputs(
        row_ids=ints(range(10, 10 + len(lengths))),
        query_start_loc=ints(starts),
        seq_lens=ints(np.asarray(lengths) + 5),
        input_ids=ints(np.arange(num_tokens) % VOCAB),
        positions=ints(np.arange(num_tokens) + 100),
        slot_mapping=ints(np.arange(num_tokens)[None] + 1000, torch.int64),
        block_tables=torch.zeros(1, 16, 4, dtype=torch.int32),
        logits_indices=ints(ends),
        block_copies=torch.zeros(copies, 3, dtype=torch.int32),
        num_tokens_padded=-(-num_tokens // 4) * 4,
    )


def test_selected_rows_keep_their_tokens_slots_and_samples():
    step = make_step([3, 1, 4, 2], copies=2)
    part, samples = select_rows(step, [1, 3], row_multiple=4)
    assert part.row_ids.tolist() == [11, 13]
    assert part.query_start_loc.tolist() == [0, 1, 3]
    assert part.input_ids.tolist() == [3, 8, 9]
    assert part.positions.tolist() == [103, 108, 109]
    assert part.slot_mapping.tolist() == [[1003, 1008, 1009]]
    assert part.seq_lens.tolist() == [6, 7]
    assert part.logits_indices.tolist() == [0, 2, 2]
    assert samples.tolist() == [1, 3, 4]
    assert part.block_copies.shape == (0, 3)
    assert part.num_tokens_padded == 4


def test_all_rows_selected_are_the_step_itself():
    step = make_step([2, 5, 1])
    part, samples = select_rows(step, [0, 1, 2], row_multiple=4)
    assert samples.tolist() == [0, 1, 2, 3]
    for field in dataclasses.fields(StepInputs):
        mine, whole = getattr(part, field.name), getattr(step, field.name)
        if isinstance(mine, torch.Tensor) and field.name != "block_copies":
            assert torch.equal(mine, whole), field.name


class Arena:
    """A step and its samples in place of the arrays that the core fills."""

    def __init__(self, step):
        self.step = step
        count = step.logits_indices.shape[0]
        rows = [*step.row_ids.tolist(), 15][:count]
        self.arrays = {
            "sample_rows": np.array(rows, dtype=np.int32),
            "sample_index": np.array([0] * (count - 1) + [1], dtype=np.int32),
            "sample_positions": np.zeros(count, dtype=np.int32),
            "num_candidates": np.ones(count, dtype=np.int32),
        }

    def swaps(self, batch):
        return np.zeros((0, 3), np.int32), np.zeros((0, 3), np.int32)

    def inputs(self, batch, *, num_tokens_padded):
        return self.step


class NoCache:
    keys = values = ()


class Batch:
    num_tokens = 10
    num_samples = 5
    num_candidates = 1
    num_constrained = 0


class Runner:
    """Logits that name their token; fails for some tokens, and remembers the copies it was given."""

    def __init__(self, *, bad_tokens=(), max_rows=100):
        self.bad_tokens, self.max_rows = set(bad_tokens), max_rows
        self.copies, self.succeeded = [], []

    def forward(self, step):
        self.copies.append(step.block_copies.shape[0])
        ids = step.input_ids.tolist()
        if self.bad_tokens & set(ids) or step.num_rows > self.max_rows:
            raise RuntimeError("bad")
        self.succeeded.append(step.block_copies.shape[0])
        chosen = step.input_ids[step.logits_indices.long()].long()
        return torch.nn.functional.one_hot(chosen, VOCAB).float()


def run(runner, step, *, params=None):
    sampler = Sampler(max_num_seqs=16, vocab_size=VOCAB, device=torch.device("cpu"))
    for row in range(16):
        sampler.fill_row(
            row,
            (params or {}).get(row, SamplingParams(temperature=0.0)),
            index=0,
            seed=0,
            ending_ids=[],
            prompt_token_ids=np.zeros(0, np.int32),
            output_token_ids=np.zeros(0, np.int32),
        )
    batches = BatchRunner(
        runner=runner,
        sampler=sampler,
        scorer=PromptScorer(max_num_seqs=16, vocab_size=VOCAB, logprobs_mode="raw_logprobs"),
        names=NamedTokens(max_num_seqs=16, reports_logits=False),
        arena=Arena(step),
        device=torch.device("cpu"),
        masks=MaskSource(None, vocab_size=VOCAB),
        swap=SwapSpace(NoCache(), num_blocks=0),
        row_multiple=4,
    )
    return batches.run(Batch())


@pytest.mark.parametrize("bad_row", [0, 1, 2, 3])
def test_the_row_that_fails_alone_is_named_and_the_others_have_their_tokens(bad_row):
    step = make_step([3, 1, 4, 2])
    first = int(step.query_start_loc[bad_row])
    outcome = run(Runner(bad_tokens=[first]), step)
    assert outcome.failures == {10 + bad_row: "RuntimeError: bad"}
    expected = np.array([2, 3, 7, 9, 9])
    lost = [bad_row] if bad_row < 3 else [3, 4]
    expected[lost] = 0
    assert outcome.token_ids.tolist() == expected.tolist()


@pytest.mark.parametrize("bad_tokens", [[], [3]], ids=["whole", "in parts"])
def test_a_logits_processor_that_fails_ends_its_row_alone(bad_tokens):
    """Also in a batch that is run in parts because of another row."""
    params = SamplingParams(temperature=0.0)
    params.logits_processors = [lambda _, logits: logits[1:]]
    outcome = run(Runner(bad_tokens=bad_tokens), make_step([3, 1, 4, 2]), params={12: params})
    failed = {12, 11} if bad_tokens else {12}
    assert set(outcome.failures) == failed
    assert "logits processor failed: TypeError" in outcome.failures[12]
    expected = np.array([2, 0 if bad_tokens else 3, 0, 9, 9])
    assert outcome.token_ids.tolist() == expected.tolist()
    assert outcome.logprobs[2] == 0.0
    assert (outcome.logprobs[[0, 3, 4]] < 0).all()


def test_several_rows_that_fail_are_all_named():
    step = make_step([3, 1, 4, 2])
    outcome = run(Runner(bad_tokens=[0, 5]), step)
    assert set(outcome.failures) == {10, 12}


def test_copies_are_made_until_a_part_succeeded_and_never_after():
    """Before that nothing of the step is kept; after it a copy would overwrite what was written."""
    step = make_step([3, 1, 4, 2], copies=2)
    runner = Runner(bad_tokens=[0])
    run(runner, step)
    first_success = runner.copies.index(2, len(runner.copies) - len(runner.succeeded) - 1)
    assert runner.succeeded[0] == 2
    assert set(runner.succeeded[1:]) == {0}
    assert first_success >= 0


def test_a_failure_that_halves_do_not_repeat_costs_no_row():
    outcome = run(Runner(max_rows=2), make_step([3, 1, 4, 2]))
    assert outcome.failures == {}
    assert outcome.token_ids.tolist() == [2, 3, 7, 9, 9]
