"""The best continuations of beams against a plain sort, and against the processors of Hugging Face."""

import math

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from sampling.rows import greedy, make_sampler, targets


def random_logits(num_rows, vocab_size, *, seed=0):
    return torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * 3


def plain_best(logprobs, count):
    """(ids, numbers) of one row, sorted in Python."""
    order = sorted(range(len(logprobs)), key=lambda token: (-logprobs[token], token))[:count]
    return order, [logprobs[token] for token in order]


@pytest.mark.parametrize("count", [1, 2, 7, 64, 500])
@pytest.mark.parametrize("vocab_size", [500, 5000])
def test_candidates_are_the_most_likely_tokens_best_first(vocab_size, count):
    logits = random_logits(5, vocab_size)
    sampler = make_sampler(vocab_size, [(greedy(), {})] * 5)
    best = sampler.beam_candidates(logits.clone(), targets(range(5)), count)
    assert best.token_ids.dtype == np.int32
    assert best.logprobs.dtype == np.float32
    for row, logprobs in enumerate(logits.double().log_softmax(dim=1).tolist()):
        ids, numbers = plain_best(logprobs, count)
        assert best.token_ids[row].tolist() == ids
        assert best.logprobs[row].tolist() == pytest.approx(numbers, rel=2e-7, abs=2e-7)


def test_of_equal_candidates_the_lower_ids_come_first():
    logits = torch.zeros(2, 3000)
    logits[1, 1000::7] = 1.0
    sampler = make_sampler(3000, [(greedy(), {})] * 2)
    best = sampler.beam_candidates(logits, targets([0, 1]), 20)
    assert best.token_ids[0].tolist() == list(range(20))
    assert best.token_ids[1].tolist() == list(range(1000, 1140, 7))


def test_edits_act_on_log_probabilities_as_those_of_hugging_face_do():
    vocab_size, prompt, output = 40, [3, 9, 3], [7, 12]
    params = greedy(
        repetition_penalty=1.4,
        logit_bias={5: 2.5, 6: -1.0},
        bad_words_token_ids=[[11], [12, 13], [9, 14]],
    )
    logits = random_logits(1, vocab_size, seed=4)
    sampler = make_sampler(vocab_size, [(params, {"prompt": prompt, "output": output})])
    best = sampler.beam_candidates(logits.clone(), targets([0], positions=[2]), vocab_size)
    scores = logits.log_softmax(dim=1)
    ids = torch.tensor([prompt + output])
    for process in (
        NoBadWordsLogitsProcessor([[11], [12, 13], [9, 14]], eos_token_id=torch.tensor([39])),
        SequenceBiasLogitsProcessor({(5,): 2.5, (6,): -1.0}),
        RepetitionPenaltyLogitsProcessor(1.4),
    ):
        scores = process(ids, scores)
    expected_ids, expected = plain_best(scores[0].tolist(), vocab_size)
    assert best.token_ids[0].tolist() == expected_ids
    assert best.logprobs[0].tolist() == expected
    assert best.logprobs[0].tolist().count(-math.inf) == 2


def test_candidates_of_a_beam_do_not_depend_on_the_other_beams_bit_for_bit():
    logits = random_logits(9, 4099, seed=2)
    rows = [
        (greedy(repetition_penalty=1.1 if row % 2 else 1.0), {"prompt": [row]}) for row in range(9)
    ]
    sampler = make_sampler(4099, rows)
    together = sampler.beam_candidates(logits.clone(), targets(range(9)), 12)
    for row in range(9):
        alone = sampler.beam_candidates(logits[row : row + 1].clone(), targets([row]), 12)
        assert alone.token_ids[0].tolist() == together.token_ids[row].tolist()
        assert alone.logprobs[0].tobytes() == together.logprobs[row].tobytes()


def test_many_beams_are_worked_on_in_chunks_with_the_same_result(monkeypatch):
    logits = random_logits(7, 300)
    logits[5, 3] = math.nan
    sampler = make_sampler(300, [(greedy(), {})] * 7)
    whole = sampler.beam_candidates(logits.clone(), targets(range(7)), 9)
    monkeypatch.setattr("pagedkv.sampling.sampler._MAX_CHUNK_ELEMENTS", 900)
    sampler = make_sampler(300, [(greedy(), {})] * 7)
    parts = sampler.beam_candidates(logits.clone(), targets(range(7)), 9)
    good = [0, 1, 2, 3, 4, 6]
    assert parts.token_ids[good].tolist() == whole.token_ids[good].tolist()
    assert parts.logprobs[good].tobytes() == whole.logprobs[good].tobytes()
    assert list(parts.failures) == list(whole.failures) == [5]


def test_a_batch_without_samples_has_no_tokens():
    sampler = make_sampler(50, [(greedy(), {})])
    assert sampler.sample(torch.zeros(0, 50), targets([])).token_ids.tolist() == []
    assert sampler.beam_candidates(torch.zeros(0, 50), targets([]), 4).token_ids.shape == (0, 4)


def test_logits_that_are_not_a_number_fail_their_own_beam():
    logits = random_logits(3, 50)
    logits[1, 17] = math.nan
    sampler = make_sampler(50, [(greedy(), {})] * 3)
    best = sampler.beam_candidates(logits, targets(range(3)), 4)
    assert list(best.failures) == [1]
    assert "NaN" in best.failures[1]
    assert np.isfinite(best.logprobs[[0, 2]]).all()
