"""prompt_logprobs: equal to the model run by transformers, however the prompt is computed."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from pagedkv import LLM, RequestOutputKind, SamplingParams, prompt_logprobs
from pagedkv.startup import demo_folder

PROMPTS = ["Once upon a time, there was a little fox.", list(range(100, 190)), [7]]


@pytest.fixture(scope="module")
def reference():
    return AutoModelForCausalLM.from_pretrained(demo_folder(), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def exact_llm():
    """In float32, as the reference is."""
    with LLM("demo", dtype="float32", kv_cache_memory_bytes=16 << 20, max_num_seqs=4) as llm:
        yield llm


def expected_logits(reference, token_ids):
    with torch.inference_mode():
        return reference(torch.tensor([token_ids])).logits[0].float()


def run(llm, prompt, **arguments):
    params = SamplingParams(**{"temperature": 0, "max_tokens": 2, "ignore_eos": True, **arguments})
    (output,) = llm.generate([prompt], params, use_tqdm=False)
    assert output.error is None
    return output


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("count", [0, 3])
def test_every_token_of_a_prompt_has_the_log_probability_that_transformers_gives_it(
    exact_llm, reference, prompt, count
):
    output = run(exact_llm, prompt, prompt_logprobs=count)
    token_ids = output.prompt_token_ids
    assert len(output.prompt_logprobs) == len(token_ids)
    assert output.prompt_logprobs[0] is None
    logprobs = expected_logits(reference, token_ids).log_softmax(dim=1)
    for position in range(1, len(token_ids)):
        entries, row = output.prompt_logprobs[position], logprobs[position - 1]
        own = entries[token_ids[position]]
        assert own.logprob == pytest.approx(row[token_ids[position]].item(), abs=2e-4)
        assert own.rank == pytest.approx(1 + (row > row[token_ids[position]]).sum().item(), abs=1)
        assert own.decoded_token == exact_llm.llm_engine.tokenizer.decode_token(token_ids[position])
        best = row.topk(count).values.tolist()
        ranked = sorted(entries.values(), key=lambda entry: entry.rank)
        assert [entry.logprob for entry in ranked[:count]] == pytest.approx(best, abs=2e-4)
        assert len(entries) in {max(count, 1), count + 1}


def test_chunks_of_a_prompt_and_of_its_logits_give_the_same_bits(llm, monkeypatch):
    """The shared engine runs 64 tokens a step, this one all of them; logits come 4 rows at a time."""
    prompt = list(range(100, 250))
    expected = run(llm, prompt, prompt_logprobs=2)
    monkeypatch.setattr(prompt_logprobs, "_MAX_CHUNK_ELEMENTS", 4 * 1024)
    with LLM("demo", kv_cache_memory_bytes=16 << 20, max_num_seqs=4) as other:
        assert run(other, prompt, prompt_logprobs=2).prompt_logprobs == expected.prompt_logprobs


def test_no_more_logits_of_a_prompt_exist_at_once_than_a_chunk(monkeypatch):
    seen = []
    take = prompt_logprobs.PromptReader.take
    monkeypatch.setattr(prompt_logprobs, "_MAX_CHUNK_ELEMENTS", 8 * 1024)
    monkeypatch.setattr(
        prompt_logprobs.PromptReader,
        "take",
        lambda reader, logits: (seen.append(logits.shape[0]), take(reader, logits)),
    )
    with LLM("demo", kv_cache_memory_bytes=16 << 20, max_num_seqs=4) as llm:
        run(llm, list(range(100, 130)), prompt_logprobs=0)
    assert seen == [8, 8, 8, 5]


def test_a_cached_prompt_is_computed_anew_and_reported_whole(llm):
    prompt = list(range(200, 264))
    expected = run(llm, prompt, prompt_logprobs=1)
    run(llm, prompt)
    assert run(llm, prompt).num_cached_tokens > 0
    again = run(llm, prompt, prompt_logprobs=1)
    assert again.num_cached_tokens == 0
    assert again.prompt_logprobs == expected.prompt_logprobs
    assert again.outputs[0].token_ids == run(llm, prompt).outputs[0].token_ids


def test_the_prefix_cache_is_not_read_where_a_request_says_so(llm):
    prompt = list(range(300, 364))
    run(llm, prompt)
    assert run(llm, prompt, skip_reading_prefix_cache=True).num_cached_tokens == 0
    assert run(llm, prompt, skip_reading_prefix_cache=False).num_cached_tokens > 0


def test_preempted_prompts_are_reported_like_any_other(llm):
    """A pool that cannot hold all of them at once: some give up their blocks in the middle of their prompt or after."""
    prompts = [[i + 3, *range(100, 180)] for i in range(6)]
    params = SamplingParams(
        seed=1, max_tokens=60, prompt_logprobs=1, ignore_eos=True, n=2, temperature=1.0
    )
    expected = llm.generate(prompts, params, use_tqdm=False)
    with LLM(
        "demo",
        max_model_len=192,
        kv_cache_memory_bytes=1 << 20,
        max_num_seqs=8,
        max_num_batched_tokens=32,
    ) as small:
        outputs = small.generate(prompts, params, use_tqdm=False)
        assert small.stats()["num_preemptions"] > 0
    for output, wanted in zip(outputs, expected, strict=True):
        assert output.prompt_logprobs == wanted.prompt_logprobs
        assert [o.token_ids for o in output.outputs] == [o.token_ids for o in wanted.outputs]


def test_requests_with_and_without_reports_share_a_batch(llm):
    prompts = [list(range(i, i + 40)) for i in range(10, 16)]
    params = [
        SamplingParams(temperature=0, max_tokens=4, prompt_logprobs=i % 3 or None) for i in range(6)
    ]
    together = llm.generate(prompts, params, use_tqdm=False)
    for i, output in enumerate(together):
        assert (
            output.prompt_logprobs
            == run(llm, prompts[i], prompt_logprobs=i % 3 or None).prompt_logprobs
        )
        assert (output.prompt_logprobs is None) == (i % 3 == 0)


def test_partial_outputs_carry_the_reports_and_deltas_carry_them_once(engine):
    for kind, expected in (
        (RequestOutputKind.CUMULATIVE, [True, True, True]),
        (RequestOutputKind.DELTA, [True, False, False]),
        (RequestOutputKind.FINAL_ONLY, [True]),
    ):
        params = SamplingParams(
            max_tokens=3, ignore_eos=True, prompt_logprobs=1, output_kind=kind, seed=1
        )
        engine.add_request("a", [5, 6, 7], params)
        outputs = []
        while engine.has_unfinished_requests():
            outputs += engine.step()
        assert [output.prompt_logprobs is not None for output in outputs] == expected
        assert len(outputs[0].prompt_logprobs) == 3


def test_the_whole_vocabulary_can_be_reported_where_the_settings_allow_it():
    arguments = {"kv_cache_memory_bytes": 8 << 20, "max_num_seqs": 2}
    with LLM("demo", max_logprobs=-1, **arguments) as llm:
        output = run(llm, [5, 6, 7], prompt_logprobs=-1, logprobs=-1)
        for entries in [*output.prompt_logprobs[1:], *output.outputs[0].logprobs]:
            assert sorted(entries) == list(range(1024))
            assert math.fsum(math.exp(e.logprob) for e in entries.values()) == pytest.approx(
                1, abs=1e-4
            )


def test_named_tokens_are_reported_at_every_position_whatever_is_sampled(exact_llm, reference):
    named = [2, 500, 7]
    for count in (None, 1):
        completion = run(
            exact_llm, [5, 6, 7], max_tokens=4, logprobs=count, logprob_token_ids=[2, 500, 7, 2]
        ).outputs[0]
        logprobs = expected_logits(reference, [5, 6, 7, *completion.token_ids]).log_softmax(dim=1)
        for position, entries in enumerate(completion.logprobs):
            row = logprobs[2 + position]
            assert {completion.token_ids[position], *named} == set(entries)
            assert [entries[token_id].logprob for token_id in named] == pytest.approx(
                row[named].tolist(), abs=2e-4
            )
            ranks = [1 + (row > row[token_id]).sum().item() for token_id in named]
            assert [entries[token_id].rank for token_id in named] == pytest.approx(ranks, abs=1)


def test_some_tokens_and_some_rows_of_a_prompt_can_be_asked_for(exact_llm, reference):
    prompt, named = list(range(100, 120)), [3, 900]
    for arguments in ({}, {"prompt_logprobs": 0}):
        output = run(
            exact_llm,
            prompt,
            prompt_logprob_token_ids=named,
            prompt_logprob_start=15,
            **arguments,
        )
        assert output.prompt_logprobs[:15] == [None] * 15
        assert len(output.prompt_logprobs) == 20
        logprobs = expected_logits(reference, prompt).log_softmax(dim=1)
        for position in range(15, 20):
            entries, wanted = output.prompt_logprobs[position], [prompt[position], *named]
            assert set(entries) == set(wanted)
            assert [entries[token_id].logprob for token_id in wanted] == pytest.approx(
                logprobs[position - 1, wanted].tolist(), abs=2e-4
            )
    beyond = run(exact_llm, prompt, prompt_logprobs=1, prompt_logprob_start=99)
    assert beyond.prompt_logprobs == [None] * 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt_logprob_token_ids": [1024]}, "prompt_logprob_token_ids holds token id 1024"),
        ({"prompt_logprob_start": -1}, "prompt_logprob_start must be non-negative, got -1"),
        ({"logprob_token_ids": [1024]}, "logprob_token_ids holds token id 1024 at position 0"),
        ({"logprob_token_ids": range(129)}, "logprob_token_ids takes at most 128 ids, got 129"),
        (
            {"logprob_token_ids": [1], "use_beam_search": True, "best_of": 2},
            "logprob_token_ids does not go with a beam search",
        ),
    ],
)
def test_named_tokens_that_cannot_be_reported_are_refused(llm, arguments, message):
    with pytest.raises(ValueError, match=message):
        run(llm, [5], **arguments)


@pytest.mark.parametrize("name", ["logprobs", "prompt_logprobs"])
def test_more_reports_than_the_settings_allow_are_refused(llm, name):
    with pytest.raises(ValueError, match=rf"{name} must be at most max_logprobs \(20\), got 21"):
        run(llm, [5], **{name: 21})
    with pytest.raises(ValueError, match=rf"{name} must be at most .*, got -1 \(the whole voc"):
        run(llm, [5], **{name: -1})


def test_logits_are_reported_where_the_settings_say_so(reference):
    with LLM(
        "demo",
        dtype="float32",
        logprobs_mode="raw_logits",
        kv_cache_memory_bytes=16 << 20,
        max_num_seqs=2,
    ) as llm:
        output = run(llm, [5, 6, 7], prompt_logprobs=0)
    logits = expected_logits(reference, [5, 6, 7])
    for position, token_id in ((1, 6), (2, 7)):
        assert output.prompt_logprobs[position][token_id].logprob == pytest.approx(
            logits[position - 1, token_id].item(), abs=2e-3
        )


def test_a_prompt_whose_logits_are_no_numbers_fails_alone(llm, monkeypatch):
    take = prompt_logprobs.PromptReader.take

    def spoil(reader, logits):
        logits[1] = math.nan
        take(reader, logits)

    monkeypatch.setattr(prompt_logprobs.PromptReader, "take", spoil)
    params = [SamplingParams(max_tokens=2, prompt_logprobs=1), SamplingParams(max_tokens=2)]
    failed, fine = llm.generate([[5, 6, 7], [5, 6, 7]], params, use_tqdm=False)
    assert failed.error == "the model's logits of the prompt are not a number (NaN)"
    assert fine.error is None


def test_samples_beside_beams_report_what_they_report_alone(llm):
    beams = SamplingParams(use_beam_search=True, best_of=4, max_tokens=6, logprobs=2)
    sampled = SamplingParams(n=2, seed=1, max_tokens=6, logprobs=2, prompt_logprobs=1)
    alone = [
        llm.generate([p], q, use_tqdm=False)[0] for p, q in (("Once", beams), ("Mia", sampled))
    ]
    together = llm.generate(["Once", "Mia"], [beams, sampled], use_tqdm=False)
    for output, expected in zip(together, alone, strict=True):
        assert output.error is None
        assert output.outputs == expected.outputs
        assert output.prompt_logprobs == expected.prompt_logprobs


def test_reports_are_whole_where_a_neighbour_makes_the_step_fail(llm, monkeypatch):
    """The batch is run again in halves, with prompts and samples of its own in each."""
    prompts = [[5, 6, 7], [999, 5], [8, 9, 10, 11], [12]]
    params = SamplingParams(
        temperature=0, max_tokens=2, ignore_eos=True, prompt_logprobs=1, logprob_token_ids=[9]
    )
    alone = [llm.generate([prompt], params, use_tqdm=False)[0] for prompt in prompts]
    runner = llm.llm_engine.parts.batches._runner
    forward = runner.forward

    def failing(step):
        if 999 in step.input_ids.tolist():
            msg = "broken"
            raise RuntimeError(msg)
        return forward(step)

    monkeypatch.setattr(runner, "forward", failing)
    outputs = llm.generate(prompts, params, use_tqdm=False)
    assert outputs[1].error == "RuntimeError: broken"
    assert outputs[1].prompt_logprobs is None
    for i in (0, 2, 3):
        assert outputs[i].prompt_logprobs == alone[i].prompt_logprobs
        assert outputs[i].outputs == alone[i].outputs
