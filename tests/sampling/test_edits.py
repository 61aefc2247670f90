"""What requests do to their logits: each edit, their order, and that other rows notice nothing."""

import math

import numpy as np
import pytest
import torch

from pagedkv import SamplingParams
from pagedkv.sampling.bad_words import BarredEnds
from pagedkv.sampling.row_state import needs_token_ids
from sampling.rows import fill, greedy, make_sampler, targets

VOCAB = 12


def edited_logits(logits, params, *, position=0, **state):
    """What one row's edits make of its logits, and the failure if there is one."""
    sampler = make_sampler(len(logits), [(params, state)])
    edited = sampler.edits.apply(torch.tensor([logits]), targets([0], positions=[position]))
    return edited.logits[0].tolist(), edited.failures.get(0)


def ramp():
    return [float(token) for token in range(VOCAB)]


def test_rows_that_ask_for_nothing_are_not_copied():
    sampler = make_sampler(VOCAB, [(greedy(), {}), (SamplingParams(top_p=0.5), {})])
    assert sampler.edits.apply(torch.zeros(2, VOCAB), targets([0, 1])) is None


def test_only_rows_that_ask_are_edited_and_the_logits_stay_as_they_are():
    rows = [(greedy(), {}), (greedy(logit_bias={3: 1.0}), {}), (greedy(), {})]
    sampler = make_sampler(VOCAB, rows)
    logits = torch.zeros(3, VOCAB)
    edited = sampler.edits.apply(logits, targets(range(3)))
    assert edited.samples.tolist() == [1]
    assert edited.logits.tolist() == [[0.0] * 3 + [1.0] + [0.0] * 8]
    assert not logits.any()


def test_allowed_tokens_are_all_that_is_left():
    got, _ = edited_logits(ramp(), greedy(allowed_token_ids=[2, 7, 2]))
    expected = [-math.inf] * VOCAB
    expected[2], expected[7] = 2.0, 7.0
    assert got == expected


def test_biases_are_added_and_do_not_bring_back_what_is_barred():
    params = greedy(logit_bias={1: -2.5, 4: 100.0}, bad_words_token_ids=[[4]])
    got, _ = edited_logits(ramp(), params)
    expected = ramp()
    expected[1], expected[4] = -1.5, -math.inf
    assert got == expected


def test_the_last_token_of_a_bad_word_is_barred_after_its_beginning_alone():
    words = [[3], [5, 6], [1, 5, 7], [2, 5, 8], [9, 9]]
    for output, barred in [
        ([], {3}),
        ([4], {3}),
        ([5], {3, 6}),
        ([1, 5], {3, 6, 7}),
        ([5, 1], {3}),
        ([2, 5], {3, 6, 8}),
        ([9], {3, 9}),
    ]:
        params = greedy(bad_words_token_ids=words)
        got, _ = edited_logits(ramp(), params, output=output, prompt=[5, 1])
        assert {token for token in range(VOCAB) if got[token] == -math.inf} == barred


def test_barred_ends_are_those_of_a_look_at_every_word():
    generator = np.random.default_rng(1)
    words = [generator.integers(4, size=generator.integers(1, 5)).tolist() for _ in range(40)]
    ends = BarredEnds(words)
    for length in range(8):
        output = generator.integers(4, size=length).tolist()
        plain = {
            word[-1]
            for word in words
            if output[len(output) - len(word) + 1 :] == word[:-1] and len(word) <= length + 1
        }
        assert set(ends.barred(output)) == plain


def test_a_bad_word_is_followed_through_sampled_tokens():
    params = greedy(bad_words_token_ids=[[11, 10]])
    sampler = make_sampler(VOCAB, [(params, {})])
    tokens = []
    for position in range(3):
        where = targets([0], positions=[position])
        sampled = sampler.sample(torch.tensor([ramp()]) + torch.eye(VOCAB)[10] * 2, where)
        sampler.count(where, sampled.token_ids)
        tokens += sampled.token_ids.tolist()
    assert tokens == [10, 10, 10]
    fill(sampler, 0, params, output=[11])
    logits = torch.tensor([ramp()]) + torch.eye(VOCAB)[10] * 2
    assert sampler.sample(logits, targets([0], positions=[1])).token_ids.tolist() == [11]


def test_endings_are_barred_before_min_tokens():
    params = greedy(min_tokens=2)
    for position, barred in [(0, True), (1, True), (2, False)]:
        sampler = make_sampler(VOCAB, [(params, {"ending_ids": [11, 4]})])
        edited = sampler.edits.apply(torch.tensor([ramp()]), targets([0], positions=[position]))
        assert (edited is not None) is barred
        if barred:
            assert edited.logits[0, [4, 11]].tolist() == [-math.inf] * 2
            assert torch.isfinite(edited.logits[0]).sum() == VOCAB - 2


def test_a_users_processor_sees_raw_logits_first_and_gets_the_tokens_it_asks_for():
    seen = []

    def by_output(output, logits):
        seen.append((output, logits.tolist()))
        return logits + 1

    def by_prompt_and_output(prompt, output, logits):
        seen.append((prompt, output, logits.tolist()))
        return logits * 2

    params = greedy(
        logits_processors=[by_output, by_prompt_and_output],
        logit_bias={0: 5.0},
        allowed_token_ids=[0, 3],
    )
    got, failure = edited_logits(ramp(), params, prompt=[1, 2], output=[7])
    assert failure is None
    plus_one = [number + 1 for number in ramp()]
    assert seen == [([7], ramp()), ([1, 2], [7], plus_one)]
    assert got == [7.0, -math.inf, -math.inf, 8.0] + [-math.inf] * 8


def test_what_a_processor_does_to_its_arguments_stays_its_own():
    def greedy_vandal(output, logits):
        output.clear()
        logits.zero_()
        return logits + 1

    params = greedy(logits_processors=[greedy_vandal, greedy_vandal])
    sampler = make_sampler(VOCAB, [(params, {"output": [5, 6]})])
    logits = torch.tensor([ramp()])
    edited = sampler.edits.apply(logits, targets([0]))
    assert edited.logits.tolist() == [[1.0] * VOCAB]
    assert logits.tolist() == [ramp()]
    assert sampler.edits._histories.output(0) == [5, 6]


def raises(_output, _logits):
    msg = "no such table"
    raise KeyError(msg)


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (raises, "KeyError: 'no such table'"),
        (lambda _, logits: logits[:-1], r"shape (12,), got a tensor of shape (11,)"),
        (lambda _, logits: logits.unsqueeze(0), r"got a tensor of shape (1, 12)"),
        (lambda _, logits: logits.int(), "dtype torch.int32"),
        (lambda _, logits: logits.tolist(), "got list"),
        (lambda _, _logits: None, "got NoneType"),
        (lambda: None, "TypeError"),
    ],
    ids=["raises", "short", "deep", "int", "list", "none", "no arguments"],
)
def test_a_processor_that_goes_wrong_fails_its_own_row(processor, message):
    rows = [(greedy(), {}), (greedy(logits_processors=[processor]), {}), (greedy(), {})]
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(2))
    sampler = make_sampler(VOCAB, rows)
    sampled = sampler.sample(logits, targets(range(3)))
    assert list(sampled.failures) == [1]
    assert "logits processor" in sampled.failures[1]
    assert message in sampled.failures[1]
    best = logits.argmax(dim=1)
    assert sampled.token_ids[[0, 2]].tolist() == best[[0, 2]].tolist()


@pytest.mark.parametrize("number", [math.nan, -math.inf])
def test_a_row_that_nothing_is_left_of_fails_alone(number):
    params = greedy(logits_processors=[lambda _, logits: logits.fill_(number)])
    sampler = make_sampler(VOCAB, [(greedy(), {}), (params, {})])
    sampled = sampler.sample(torch.zeros(2, VOCAB), targets([0, 1]))
    assert list(sampled.failures) == [1]
    assert "no token is left" in sampled.failures[1]


def test_a_narrower_floating_point_result_is_taken():
    got, failure = edited_logits(
        ramp(), greedy(logits_processors=[lambda _, logits: logits.to(torch.bfloat16)])
    )
    assert failure is None
    assert got == ramp()


def test_failures_name_their_sample_in_a_batch_of_several_chunks(monkeypatch):
    monkeypatch.setattr("pagedkv.sampling.sampler._MAX_CHUNK_ELEMENTS", 2 * VOCAB)
    rows = [(greedy(logits_processors=[raises] if row in (1, 4) else None), {}) for row in range(5)]
    sampled = make_sampler(VOCAB, rows).sample(torch.zeros(5, VOCAB), targets(range(5)))
    assert sorted(sampled.failures) == [1, 4]


def test_a_refilled_row_forgets_the_edits_of_the_request_before():
    everything = greedy(
        allowed_token_ids=[1],
        bad_words_token_ids=[[1]],
        logit_bias={1: 1.0},
        presence_penalty=1.0,
        min_tokens=3,
        logits_processors=[lambda _, logits: logits],
    )
    sampler = make_sampler(VOCAB, [(everything, {"ending_ids": [3]})])
    assert sampler.edits.apply(torch.zeros(1, VOCAB), targets([0])) is not None
    fill(sampler, 0, greedy())
    assert sampler.edits.apply(torch.zeros(1, VOCAB), targets([0])) is None


def test_tokens_are_read_for_the_edits_that_look_at_them_alone():
    assert not needs_token_ids(greedy(logit_bias={1: 1.0}, allowed_token_ids=[1]))
    assert needs_token_ids(greedy(bad_words_token_ids=[[1]]))
    assert needs_token_ids(greedy(logits_processors=[raises]))
    assert needs_token_ids(greedy(presence_penalty=0.5))


@pytest.mark.parametrize(
    "mode", ["raw_logits", "raw_logprobs", "processed_logits", "processed_logprobs"]
)
def test_reports_are_taken_before_or_behind_the_edits_as_the_mode_says(mode):
    params = greedy(logit_bias={0: 50.0}, logprobs=2)
    sampler = make_sampler(VOCAB, [(params, {})], logprobs_mode=mode)
    sampled = sampler.sample(torch.tensor([ramp()]), targets([0]))
    basis = torch.tensor([ramp()])
    if mode.startswith("processed"):
        basis[0, 0] += 50.0
    numbers = basis.log_softmax(dim=1) if mode.endswith("logprobs") else basis
    assert sampled.token_ids.tolist() == [0]
    assert sampled.logprobs[0] == pytest.approx(float(numbers[0, 0]), abs=1e-5)
    best = numbers[0].topk(2)
    assert sampled.top[0].token_ids == best.indices.tolist()
    assert sampled.top[0].logprobs == pytest.approx(best.values.tolist(), abs=1e-5)
    assert sampled.top[0].rank == (1 if mode.startswith("processed") else VOCAB)


def test_a_row_with_edits_has_the_same_bits_in_any_company():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(8, 3000, generator=generator) * 2
    asked = [
        {"allowed_token_ids": list(range(0, 3000, 7))},
        {"bad_words_token_ids": [[5], [1, 2]]},
        {"logit_bias": dict.fromkeys(range(100), 0.5)},
        {"repetition_penalty": 1.3, "frequency_penalty": 0.2},
        {"logits_processors": [lambda _, logits: logits * 1.1]},
        {},
        {"min_tokens": 4},
        {"presence_penalty": 0.4, "logit_bias": {9: -3.0}},
    ]
    rows = []
    for row, attributes in enumerate(asked):
        params = SamplingParams(temperature=0.9, top_p=0.9, logprobs=3)
        for name, value in attributes.items():
            setattr(params, name, value)
        state = {"seed": row, "ending_ids": [4, 6], "prompt": [1, 2], "output": [7, 8, 9]}
        rows.append((params, state))
    sampler = make_sampler(3000, rows)
    together = sampler.sample(logits, targets(range(8), positions=[3] * 8))
    for row in range(8):
        alone = sampler.sample(logits[row : row + 1], targets([row], positions=[3]))
        assert alone.token_ids[0] == together.token_ids[row]
        assert alone.logprobs[0].tobytes() == together.logprobs[row].tobytes()
        assert alone.top[0].token_ids == together.top[row].token_ids
        assert alone.top[0].logprobs == together.top[row].logprobs
