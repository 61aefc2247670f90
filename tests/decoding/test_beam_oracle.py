"""Beam search is that of transformers: token ids and scores of `generate(num_beams=...)`."""

import pytest
import torch

from models.tiny import random_prompts, save_tiny_model
from pagedkv import LLM, BeamSearchParams, SamplingParams

# Two by default; `make test-long` runs the others, too.
ARCHITECTURES = [
    "llama",
    "gemma2",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2", "opt", "qwen2")),
]
MODES = [(True, 1.0), (False, 1.0), ("never", 1.0), (False, 0.0), (False, 2.0), ("never", -0.5)]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def pair(request, tmp_path_factory):
    """A tiny model in transformers, and behind an engine with little room."""
    folder = tmp_path_factory.mktemp(request.param)
    model = save_tiny_model(request.param, folder)
    arguments = {"dtype": "float32", "max_num_seqs": 24, "max_num_batched_tokens": 64}
    with LLM(folder, skip_tokenizer_init=True, kv_cache_memory_bytes=4 << 20, **arguments) as llm:
        yield model, llm
        llm.llm_engine.check_invariants()
        assert llm.stats()["num_used_blocks"] == 0


def expected_beams(model, prompt, *, width, eos, max_tokens, **arguments):
    """(ids, score) of each beam, cut behind its ending id."""
    output = model.generate(
        torch.tensor([prompt]),
        num_beams=width,
        num_return_sequences=width,
        do_sample=False,
        max_new_tokens=max_tokens,
        eos_token_id=eos,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
        **arguments,
    )
    beams = []
    for sequence, score in zip(output.sequences, output.sequences_scores, strict=True):
        ids = sequence[len(prompt) :].tolist()
        ends = [place for place, token in enumerate(ids) if token in (eos or [])]
        beams.append((ids[: ends[0] + 1] if ends else ids, score.item()))
    return beams


def assert_equal(completions, expected):
    assert [completion.token_ids for completion in completions] == [ids for ids, _ in expected]
    scores = [completion.score for completion in completions]
    assert scores == pytest.approx([score for _, score in expected], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(("early_stopping", "length_penalty"), MODES)
def test_ids_and_scores_are_those_of_transformers(pair, early_stopping, length_penalty):
    model, llm = pair
    prompts = random_prompts([3, 17, 40])
    # Common tokens as ending ids, so that beams end at all lengths.
    eos = list(range(20, 60))
    for width in (2, 5):
        params = SamplingParams(
            use_beam_search=True,
            n=width,
            best_of=width,
            max_tokens=20,
            early_stopping=early_stopping,
            length_penalty=length_penalty,
            stop_token_ids=eos,
        )
        outputs = llm.generate(prompts, params, use_tqdm=False)
        for prompt, output in zip(prompts, outputs, strict=True):
            expected = expected_beams(
                model,
                prompt,
                width=width,
                eos=eos,
                max_tokens=20,
                early_stopping=early_stopping,
                length_penalty=length_penalty,
            )
            assert_equal(output.outputs, expected)


def test_beams_without_an_ending_run_to_the_last_token(pair):
    model, llm = pair
    prompt = random_prompts([11])[0]
    expected = expected_beams(model, prompt, width=7, eos=None, max_tokens=16)
    (output,) = llm.beam_search(
        [prompt], BeamSearchParams(beam_width=7, max_tokens=16), use_tqdm=False
    )
    assert [beam.tokens[len(prompt) :] for beam in output.sequences] == [ids for ids, _ in expected]
    assert {beam.finish_reason for beam in output.sequences} == {"length"}


def test_a_repetition_penalty_acts_on_log_probabilities_as_in_transformers(pair):
    model, llm = pair
    prompt = random_prompts([9])[0]
    expected = expected_beams(
        model, prompt, width=4, eos=None, max_tokens=14, repetition_penalty=1.7
    )
    params = SamplingParams(
        use_beam_search=True, n=4, best_of=4, max_tokens=14, repetition_penalty=1.7
    )
    (output,) = llm.generate([prompt], params, use_tqdm=False)
    assert_equal(output.outputs, expected)
