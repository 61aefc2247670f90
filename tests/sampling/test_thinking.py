"""thinking_token_budget: which token must come, what becomes of its logits, and that other rows notice nothing."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from pagedkv.sampling.cpu_choice import choose_on_cpu
from pagedkv.sampling.thinking_section import ThinkingSection
from pagedkv.sampling.torch_choice import choose_with_torch
from pagedkv.thinking_markers import ThinkingMarkers
from sampling.plain_thinking import forced
from sampling.rows import fill, greedy, make_sampler, targets, with_attributes

VOCAB = 12
START, END = (1, 2), (3, 4, 5)
MARKERS = ThinkingMarkers(start=START, end=END)

few_ids = st.lists(st.integers(0, 2), max_size=25)
marker_ids = st.lists(st.integers(0, 2), min_size=1, max_size=4).map(tuple)


def section_of(markers, prompt, output):
    return ThinkingSection(
        markers, prompt=np.array(prompt, np.int32), output=np.array(output, np.int32)
    )


@given(few_ids, few_ids, marker_ids, marker_ids, st.integers(0, 6))
@example([0, 1], [2], (0, 1), (2, 2, 0), 0)
@example([0], [1, 1, 1, 2], (0,), (1, 1, 2), 2)
def test_a_section_read_at_once_or_token_by_token_is_the_definition(
    prompt, output, start, end, budget
):
    if start == end:
        return
    markers = ThinkingMarkers(start=start, end=end)
    grown = section_of(markers, prompt, [])
    for length in range(len(output) + 1):
        expected = forced(prompt, output[:length], start=start, end=end, budget=budget)
        assert section_of(markers, prompt, output[:length]).forced(budget) == expected
        assert grown.forced(budget) == expected
        grown.append(output[length] if length < len(output) else 0)


@given(few_ids, few_ids, marker_ids, marker_ids, st.integers(0, 3))
def test_what_is_forced_ends_the_section_and_nothing_is_said_twice(
    prompt, output, start, end, budget
):
    if start == end:
        return
    section = section_of(ThinkingMarkers(start=start, end=end), prompt, output)
    tokens = []
    while (token := section.forced(budget)) is not None and len(tokens) <= len(end):
        tokens.append(token)
        section.append(token)
        if not section._is_open:
            break
    assert tuple(tokens) == end[len(end) - len(tokens) :]


@pytest.mark.parametrize(
    ("prompt", "output", "budget", "expected"),
    [
        ([7], [8, 9], 0, None),
        ([7, 1, 2], [], 0, 3),
        ([7, 1, 2], [], 1, None),
        ([7, 1, 2, 8, 8, 8], [], 1, None),
        ([7, 1, 2, 8, 8, 8], [9], 1, 3),
        ([7, 1], [2], 0, 3),
        ([1, 2, 9, 3, 4, 5], [9], 0, None),
        ([1, 2, 9, 3, 4, 5], [9, 1, 2], 0, 3),
        ([1, 2], [9, 3], 2, 4),
        ([1, 2], [9, 3, 4], 2, 5),
        ([1, 2, 3], [4], 1, 5),
        ([1, 2], [9, 3, 4, 5], 2, None),
        ([1, 2], [9, 3, 9], 3, 3),
        ([1, 2], [8, 1, 2], 3, 3),
    ],
)
def test_one_story_at_a_time(prompt, output, budget, expected):
    """No thinking; a prompt inside it; a section of the output; an end begun already; a start within a section."""
    assert section_of(MARKERS, prompt, output).forced(budget) == expected
    assert forced(prompt, output, start=START, end=END, budget=budget) == expected


def budgeted(budget=0, **arguments):
    return greedy(thinking_token_budget=budget, **arguments)


def sampler_of(rows, **settings):
    return make_sampler(VOCAB, rows, thinking=MARKERS, **settings)


def test_rows_that_are_free_to_go_on_are_not_copied():
    rows = [(budgeted(), {"prompt": [9]}), (budgeted(2), {"prompt": [1, 2]}), (greedy(), {})]
    assert sampler_of(rows).edits.apply(torch.zeros(3, VOCAB), targets(range(3))) is None


def test_the_forced_id_is_all_that_is_left_whatever_else_is_asked_for():
    params = budgeted(
        allowed_token_ids=[7, 8],
        bad_words_token_ids=[[3]],
        logit_bias={3: -100.0},
        min_tokens=5,
        presence_penalty=2.0,
        logits_processors=[lambda _, logits: logits.fill_(-1.0)],
    )
    state = {"prompt": [1, 2], "ending_ids": [3]}
    sampler = sampler_of([(greedy(), {}), (params, state)])
    logits = torch.arange(2.0 * VOCAB).reshape(2, VOCAB)
    edited = sampler.edits.apply(logits, targets([0, 1]))
    assert edited.samples.tolist() == [1]
    expected = [-math.inf] * VOCAB
    expected[3] = 15.0
    assert edited.logits.tolist() == [expected]


@pytest.mark.parametrize("mode", ["raw_logprobs", "processed_logprobs"])
def test_both_choices_take_it_and_report_the_models_number(mode):
    params = [
        with_attributes(budgeted(), temperature=temperature, top_p=0.1, min_p=0.5, top_k=1)
        for temperature in (0.0, 1.5)
    ]
    sampler = sampler_of([(each, {"prompt": [1, 2]}) for each in params], logprobs_mode=mode)
    logits = torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(1))
    edited, where = sampler.edits.apply(logits, targets([0, 1])), targets([0, 1])
    for choose in (choose_on_cpu, choose_with_torch):
        sampled = choose(logits, edited, sampler._parameters, where, mode=mode)
        assert sampled.token_ids.tolist() == [3, 3]
        raw = logits.log_softmax(dim=1)[:, 3]
        expected = raw if mode == "raw_logprobs" else torch.zeros(2)
        assert torch.allclose(torch.from_numpy(sampled.logprobs), expected, atol=1e-6)


def test_a_beam_has_one_continuation_at_its_own_price():
    sampler = sampler_of([(budgeted(), {"prompt": [1, 2]}), (budgeted(), {"prompt": [9]})])
    logits = torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(1))
    best = sampler.beam_candidates(logits.clone(), targets([0, 1]), 4)
    assert best.token_ids[0, 0] == 3
    assert best.logprobs[0].tolist() == [logits.log_softmax(dim=1)[0, 3].item()] + [-math.inf] * 3
    assert np.isfinite(best.logprobs[1]).all()


def test_sampled_tokens_are_followed_and_a_refilled_row_forgets_them():
    sampler = sampler_of([(budgeted(2), {"prompt": [1, 2]})])
    logits = torch.zeros(1, VOCAB)
    logits[0, 9] = 1.0
    tokens = []
    for position in range(7):
        where = targets([0], positions=[position])
        sampled = sampler.sample(logits, where)
        sampler.count(where, sampled.token_ids)
        tokens += sampled.token_ids.tolist()
    assert tokens == [9, 9, 3, 4, 5, 9, 9]
    fill(sampler, 0, budgeted(2), prompt=[1, 2], output=[9, 9, 3])
    assert sampler.sample(logits, targets([0], positions=[3])).token_ids.tolist() == [4]
    fill(sampler, 0, greedy())
    assert sampler.edits.apply(logits, targets([0])) is None
