"""The batched sampler against a naive one that does a row at a time."""

import math

import numpy as np
import pytest
import torch

from pagedkv import SamplingParams
from pagedkv.sampling.philox import gumbel_noise
from sampling.rows import fill, make_sampler, targets


def naive_token(logits, params, *, seed, index, position, ending_ids, prompt, output):
    """One row, straight from the definition, in Python floats."""
    x = [float(v) for v in logits]
    if position < params.min_tokens:
        for token in ending_ids:
            x[token] = -math.inf
    x = penalised(x, params, prompt, output)
    if params.temperature < 1e-5:
        return max(range(len(x)), key=lambda i: (x[i], -i))
    x = [v / params.temperature for v in x]
    noise = gumbel_noise(
        seeds=np.array([seed], dtype=np.uint64),
        sample_index=np.array([index], dtype=np.int32),
        positions=np.array([position], dtype=np.int32),
        token_ids=np.arange(len(x), dtype=np.int32),
    )
    return max(kept_tokens(x, params), key=lambda i: x[i] + float(noise[i]))


def penalised(x, params, prompt, output):
    for token in set(prompt) | set(output):
        factor = params.repetition_penalty
        x[token] = x[token] / factor if x[token] > 0 else x[token] * factor
    for token in set(output):
        x[token] -= params.frequency_penalty * output.count(token) + params.presence_penalty
    return x


def kept_tokens(x, params):
    kept = list(range(len(x)))
    top = max(x)
    if params.min_p > 0:
        kept = [i for i in kept if x[i] >= top + math.log(params.min_p)]
    if params.top_k > 0:
        kth = sorted((x[i] for i in kept), reverse=True)[: params.top_k][-1]
        kept = [i for i in kept if x[i] >= kth]
    if params.top_p == 1:
        return kept
    total = sum(math.exp(x[i] - top) for i in kept)
    running, nucleus = 0.0, []
    for i in sorted(kept, key=lambda i: -x[i]):
        nucleus.append(i)
        running += math.exp(x[i] - top) / total
        if running >= params.top_p:
            break
    return nucleus


PARAMS = [
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.3, top_k=5),
    SamplingParams(temperature=1.5, top_p=0.8),
    SamplingParams(temperature=1.2, min_p=0.1),
    SamplingParams(temperature=0.9, top_k=20, top_p=0.7, min_p=0.02),
    SamplingParams(temperature=0.8, repetition_penalty=1.3, frequency_penalty=0.4),
    SamplingParams(temperature=0.0, presence_penalty=1.5, repetition_penalty=0.7),
    SamplingParams(temperature=1.0, min_tokens=3, top_k=1000),
    SamplingParams(temperature=0.0, min_tokens=3),
]


def drawn_batch(generator, vocab_size, num_rows):
    """Random rows: (params, state) and their positions and logits."""
    rows, positions = [], []
    for _ in range(num_rows):
        params = PARAMS[generator.integers(len(PARAMS))]
        output = generator.integers(vocab_size, size=generator.integers(8)).tolist()
        state = {
            "seed": int(generator.integers(2**63)),
            "index": int(generator.integers(4)),
            "ending_ids": generator.integers(vocab_size, size=generator.integers(1, 4)).tolist(),
            "prompt": generator.integers(vocab_size, size=5).tolist(),
            "output": output,
        }
        rows.append((params, state))
        positions.append(len(output))
    logits = torch.from_numpy(generator.normal(scale=3.0, size=(num_rows, vocab_size)))
    return rows, positions, logits.float()


@pytest.mark.parametrize("case", range(30))
def test_a_batch_samples_what_the_definition_says_row_by_row(case):
    generator = np.random.default_rng(case)
    vocab_size = int(generator.choice([8, 97, 1500]))
    rows, positions, logits = drawn_batch(generator, vocab_size, int(generator.integers(1, 12)))
    sampler = make_sampler(vocab_size, rows)
    sampled = sampler.sample(
        logits.clone(),
        targets(range(len(rows)), index=[s["index"] for _, s in rows], positions=positions),
    )
    expected = [
        naive_token(logits[i].tolist(), params, position=positions[i], **state)
        for i, (params, state) in enumerate(rows)
    ]
    assert sampled.token_ids.tolist() == expected
    own = logits.log_softmax(dim=1)[torch.arange(len(rows)), torch.tensor(expected)]
    assert sampled.logprobs == pytest.approx(own.numpy(), rel=2e-6, abs=2e-6)


@pytest.mark.parametrize("vocab_size", [61, 1024, 5003, 50_257])
def test_a_rows_result_does_not_depend_on_the_other_rows_bit_for_bit(vocab_size):
    generator = np.random.default_rng(vocab_size)
    rows, positions, logits = drawn_batch(generator, vocab_size, 13)
    rows = [(_with_logprobs(params, i % 4), state) for i, (params, state) in enumerate(rows)]
    sampler = make_sampler(vocab_size, rows)
    index = [state["index"] for _, state in rows]
    together = sampler.sample(
        logits.clone(), targets(range(len(rows)), index=index, positions=positions)
    )
    reports = {report.sample: report for report in together.top}
    for i in range(len(rows)):
        alone = sampler.sample(
            logits[i : i + 1].clone(), targets([i], index=[index[i]], positions=[positions[i]])
        )
        assert alone.token_ids[0] == together.token_ids[i]
        assert alone.logprobs[0].tobytes() == together.logprobs[i].tobytes()
        for report in alone.top:
            assert report.token_ids == reports[i].token_ids
            assert report.logprobs == reports[i].logprobs
            assert report.rank == reports[i].rank


def _with_logprobs(params, count):
    copy = params.clone()
    copy.logprobs = count or None
    return copy


def test_a_result_does_not_depend_on_how_many_threads_torch_uses():
    generator = np.random.default_rng(3)
    rows, positions, logits = drawn_batch(generator, 40_000, 3)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            sampled = make_sampler(40_000, rows).sample(
                logits.clone(), targets(range(3), positions=positions)
            )
            results.append((sampled.token_ids.tolist(), sampled.logprobs.tobytes()))
    finally:
        torch.set_num_threads(before)
    assert results[0] == results[1]


def test_large_batches_are_worked_on_in_chunks_with_the_same_result(monkeypatch):
    generator = np.random.default_rng(11)
    rows, positions, logits = drawn_batch(generator, 300, 10)
    rows = [(_with_logprobs(params, 3), state) for params, state in rows]
    where = targets(range(10), positions=positions)
    whole = make_sampler(300, rows).sample(logits.clone(), where)
    monkeypatch.setattr("pagedkv.sampling.sampler._MAX_CHUNK_ELEMENTS", 1000)
    parts = make_sampler(300, rows).sample(logits.clone(), where)
    assert parts.token_ids.tolist() == whole.token_ids.tolist()
    assert sorted(parts.top, key=lambda r: r.sample) == sorted(whole.top, key=lambda r: r.sample)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.7),
        SamplingParams(temperature=1.0, top_k=4),
        SamplingParams(temperature=1.0, top_p=0.75),
        SamplingParams(temperature=2.0, min_p=0.3),
    ],
    ids=["plain", "top_k", "top_p", "min_p"],
)
def test_samples_follow_the_filtered_softmax(params):
    """Chi-square over 20,000 draws with a fixed seed; 40 is far beyond the 99.99 % quantile of 9 degrees."""
    logits = torch.tensor([2.0, 1.7, 1.1, 0.9, 0.2, 0.0, -0.4, -1.0, -1.5, -2.5])
    num_draws, chunk = 20_000, 1_000
    counts = np.zeros(10)
    sampler = make_sampler(10, [(params, {"seed": 123})])
    for start in range(0, num_draws, chunk):
        sampled = sampler.sample(
            logits.repeat(chunk, 1),
            targets([0] * chunk, positions=list(range(start, start + chunk))),
        )
        counts += np.bincount(sampled.token_ids, minlength=10)
    expected = _filtered_softmax(logits.double(), params) * num_draws
    assert counts[expected == 0].sum() == 0
    kept = expected > 0
    chi_square = ((counts[kept] - expected[kept]) ** 2 / expected[kept]).sum()
    assert chi_square < 40


def _filtered_softmax(logits, params):
    p = (logits / params.temperature).softmax(0).numpy()
    p[p < params.min_p * p.max()] = 0
    if params.top_k > 0:
        p[p < np.sort(p)[-params.top_k]] = 0
        p /= p.sum()
    if params.top_p < 1:
        order = np.argsort(-p)
        keep = np.searchsorted(np.cumsum(p[order]), params.top_p) + 1
        p[order[keep:]] = 0
    return p / p.sum()


def test_children_of_one_request_draw_different_streams_under_one_seed():
    sampler = make_sampler(500, [(SamplingParams(temperature=1.0, n=4), {"seed": 5})])
    logits = torch.zeros(4, 500)
    where = targets([0] * 4, index=[0, 1, 2, 3])
    first = sampler.sample(logits.clone(), where).token_ids.tolist()
    assert len(set(first)) == 4
    assert sampler.sample(logits.clone(), where).token_ids.tolist() == first


def test_counts_follow_sampled_tokens_and_a_refilled_row_counts_afresh():
    params = SamplingParams(temperature=0.0, frequency_penalty=1.0)
    sampler = make_sampler(4, [(params, {"prompt": [0], "output": []})])
    logits = torch.tensor([[3.0, 2.5, 2.2, 0.0]])
    tokens = []
    for position in range(4):
        where = targets([0], positions=[position])
        sampled = sampler.sample(logits.clone(), where)
        sampler.count(where, sampled.token_ids)
        tokens += sampled.token_ids.tolist()
    assert tokens == [0, 1, 2, 0]
    fill(sampler, 0, params, prompt=[0], output=[0, 0])
    assert sampler.sample(logits.clone(), targets([0])).token_ids.tolist() == [1]
    fill(sampler, 0, SamplingParams(temperature=0.0))
    assert sampler.sample(logits.clone(), targets([0])).token_ids.tolist() == [0]


def test_a_sample_without_a_row_of_its_own_does_not_touch_its_parents_counts():
    params = SamplingParams(temperature=1.0, n=2, presence_penalty=2.0)
    sampler = make_sampler(6, [(params, {"prompt": [0]})])
    where = targets([0, 0], index=[0, 1])
    sampler.count(where, np.array([2, 4], dtype=np.int32))
    counted = sampler.edits._penalties._output_counts.sum(dim=0)
    assert counted.tolist() == [0, 0, 1, 0, 0, 0]


def test_nan_logits_are_reported_and_leave_the_other_rows_alone():
    sampler = make_sampler(5, [(SamplingParams(temperature=t), {}) for t in (0.0, 1.0, 0.0, 1.0)])
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    clean = sampler.sample(logits.clone(), targets(range(4)))
    logits[0, 2] = logits[1, 3] = math.nan
    broken = sampler.sample(logits.clone(), targets(range(4)))
    assert np.isnan(broken.logprobs).tolist() == [True, True, False, False]
    assert broken.token_ids[2:].tolist() == clean.token_ids[2:].tolist()


def test_logprobs_report_rank_and_the_most_likely_tokens_before_penalties_and_temperature():
    params = SamplingParams(temperature=0.0, logprobs=2, presence_penalty=2.0)
    sampler = make_sampler(4, [(params, {"output": [1]})])
    logits = torch.tensor([[1.0, 1.5, 0.5, -1.0]])
    sampled = sampler.sample(logits.clone(), targets([0], positions=[1]))
    (report,) = sampled.top
    assert sampled.token_ids.tolist() == [0]
    assert report.rank == 2
    assert report.token_ids == [1, 0]
    assert report.logprobs == pytest.approx(logits.log_softmax(1)[0, [1, 0]].tolist())
