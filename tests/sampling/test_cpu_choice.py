"""The sampling kernel against its twin in torch."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pagedkv import SamplingParams, _core
from pagedkv.sampling.cpu_choice import choose_on_cpu
from pagedkv.sampling.edits import EditedRows
from pagedkv.sampling.rows import SamplingRows
from pagedkv.sampling.targets import SampleTargets
from pagedkv.sampling.torch_choice import choose_with_torch
from sampling.rows import with_attributes

MODES = ["raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits"]


def parameters_of(params, vocab_size):
    rows = SamplingRows(max_num_seqs=len(params), vocab_size=vocab_size)
    for row, each in enumerate(params):
        rows.fill(row, each, seed=row * 7919 + 1)
    where = SampleTargets(
        rows=np.arange(len(params), dtype=np.int32),
        sample_index=np.arange(len(params), dtype=np.int32) % 3,
        positions=np.arange(len(params), dtype=np.int32),
    )
    return rows, where


@st.composite
def requests(draw):
    """Parameters of one row."""
    if draw(st.booleans()) and draw(st.booleans()):
        params = SamplingParams(temperature=0.0)
    else:
        params = SamplingParams(
            temperature=draw(st.sampled_from([0.05, 0.5, 0.8, 1.0, 1.7])),
            top_k=draw(st.sampled_from([-1, -1, 1, 3, 50, 400, 10_000])),
            top_p=draw(st.sampled_from([1.0, 1e-4, 0.3, 0.5, 0.95, 0.9999])),
            min_p=draw(st.sampled_from([0.0, 0.0, 0.02, 0.5, 1.0])),
        )
    return with_attributes(params, logprobs=draw(st.sampled_from([None, 0, 1, 5])))


@st.composite
def batches(draw):
    """(parameters, logits, edited rows)."""
    params = draw(st.lists(requests(), min_size=1, max_size=6))
    vocab_size = draw(st.sampled_from([1, 5, 16, 100, 1023, 3000]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.sampled_from([1e-3, 1.0, 4.0, 30.0]))
    logits = torch.randn(len(params), vocab_size, generator=generator) * scale
    if draw(st.booleans()):
        logits = logits.round()
    edited = None
    samples = draw(st.sets(st.integers(0, len(params) - 1)))
    if samples:
        places = np.array(sorted(samples), dtype=np.int64)
        part = logits[torch.from_numpy(places)]
        barred = torch.rand(part.shape, generator=generator) < draw(
            st.sampled_from([0.0, 0.5, 1.0])
        )
        edited = EditedRows(samples=places, logits=part.masked_fill(barred, -math.inf), failures={})
    return params, logits, edited


@settings(max_examples=300, deadline=None)
@given(batches(), st.sampled_from(MODES))
@example(([SamplingParams(temperature=1.0, top_p=0.5)], torch.zeros(1, 64), None), MODES[0])
def test_ids_and_reports_are_those_of_the_twin(batch, mode):
    params, logits, edited = batch
    rows, where = parameters_of(params, logits.shape[1])
    got = choose_on_cpu(logits, edited, rows, where, mode=mode)
    expected = choose_with_torch(logits, edited, rows, where, mode=mode)
    assert got.failures == expected.failures
    alive = [sample for sample in range(len(params)) if sample not in got.failures]
    assert got.token_ids[alive].tolist() == expected.token_ids[alive].tolist()
    assert got.logprobs[alive] == pytest.approx(expected.logprobs[alive], rel=2e-6, abs=4e-6)
    reports = {report.sample: report for report in expected.top}
    assert sorted(reports) == [report.sample for report in got.top]
    for report in got.top:
        if report.sample in got.failures:
            continue
        twin = reports[report.sample]
        assert report.rank == twin.rank
        # Which of equals are named is the twin's own.
        assert np.array(report.logprobs) == pytest.approx(
            np.array(twin.logprobs), rel=2e-6, abs=4e-6
        )


def test_of_equal_logits_the_lowest_id_wins_and_is_named_first():
    logits = torch.zeros(1, 500)
    logits[0, [7, 300, 450]] = 2.0
    params = with_attributes(SamplingParams(temperature=0.0), logprobs=3)
    rows, where = parameters_of([params], 500)
    sampled = choose_on_cpu(logits, None, rows, where, mode="raw_logits")
    assert sampled.token_ids.tolist() == [7]
    assert sampled.top[0].token_ids == [7, 300, 450]


@pytest.mark.parametrize(
    ("params", "vocab_size"),
    [
        (SamplingParams(temperature=0.8, top_p=0.95), 200),
        (SamplingParams(temperature=1.3, top_k=40), 200),
        (SamplingParams(temperature=1.0), 50),
    ],
    ids=["top_p", "top_k", "plain"],
)
def test_a_hundred_thousand_draws_follow_the_filtered_softmax(params, vocab_size):
    """Chi-square with fixed seeds; the bound is the mean plus six deviations of its distribution."""
    num_draws, chunk = 100_000, 5_000
    logits = torch.randn(1, vocab_size, generator=torch.Generator().manual_seed(9)) * 1.5
    rows, where = parameters_of([params], vocab_size)
    many = logits.expand(chunk, -1).contiguous()
    counts = np.zeros(vocab_size)
    for start in range(0, num_draws, chunk):
        where = SampleTargets(
            rows=np.zeros(chunk, dtype=np.int32),
            sample_index=np.zeros(chunk, dtype=np.int32),
            positions=np.arange(start, start + chunk, dtype=np.int32),
        )
        sampled = choose_on_cpu(many, None, rows, where, mode="raw_logprobs")
        counts += np.bincount(sampled.token_ids, minlength=vocab_size)
    expected = num_draws * filtered_softmax(logits[0].double().numpy(), params)
    assert counts[expected == 0].sum() == 0
    # Cells of few expected draws are taken together, as the test asks for.
    common = expected >= 10
    observed = np.append(counts[common], counts[~common].sum())
    wanted = np.append(expected[common], expected[~common].sum())
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    chi_square = ((observed - wanted) ** 2 / wanted).sum()
    freedom = observed.size - 1
    assert abs(chi_square - freedom) < 6 * math.sqrt(2 * freedom)


def filtered_softmax(logits, params):
    """Probabilities in f64, by sorting."""
    p = np.exp(logits / params.temperature - (logits / params.temperature).max())
    order = np.argsort(-p)
    if params.top_k > 0:
        p[order[params.top_k :]] = 0
    sums = np.cumsum(p[order]) / p.sum()
    p[order[np.searchsorted(sums, params.top_p) + 1 :]] = 0
    return p / p.sum()


def test_results_do_not_depend_on_how_many_threads_the_kernel_uses():
    params = [SamplingParams(temperature=0.9, top_p=0.9), SamplingParams(temperature=0.0)] * 3
    logits = torch.randn(6, 60_000, generator=torch.Generator().manual_seed(1))
    rows, where = parameters_of(params, 60_000)
    before = _core.num_threads()
    results = []
    try:
        for threads in (1, 2):
            _core.set_num_threads(threads)
            sampled = choose_on_cpu(logits, None, rows, where, mode="raw_logprobs")
            results.append((sampled.token_ids.tolist(), sampled.logprobs.tobytes()))
    finally:
        _core.set_num_threads(before)
    assert results[0] == results[1]


def test_arrays_that_do_not_fit_are_refused_before_anything_is_written():
    rows, where = parameters_of([SamplingParams(temperature=0.0)] * 2, 10)
    with pytest.raises(ValueError, match="logits must have 2 dimensions"):
        choose(np.zeros(10, np.float32), rows, where, mode="raw_logits")
    with pytest.raises(TypeError, match="logits must be an array of float32"):
        choose(np.zeros((2, 10)), rows, where, mode="raw_logits")
    with pytest.raises(ValueError, match="reported must be 'raw_logprobs'"):
        choose(np.zeros((2, 10), np.float32), rows, where, mode="logits")


def choose(logits, rows, where, *, mode):
    """The bare kernel."""
    token_ids = np.zeros((2, 1), np.int32)
    _core.sample_tokens(
        logits,
        None,
        token_ids=token_ids,
        numbers=np.zeros((2, 1), np.float32),
        ranks=np.zeros((2, 1), np.int32),
        edited_rows=np.full(2, -1, np.int32),
        seeds=rows.seeds,
        sample_index=where.sample_index,
        positions=where.positions,
        temperature=rows.temperature,
        log_min_p=rows.log_min_p,
        top_k=rows.top_k,
        top_p=rows.top_p,
        num_top=rows.num_logprobs,
        reported=mode,
    )
    return token_ids
