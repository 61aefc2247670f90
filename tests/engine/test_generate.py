"""What generate() returns."""

import numpy as np
import pytest
import torch

from pagedkv import LLM, SamplingParams

PROMPTS = ["Once upon a time", "Tell me a story about a fox.", "One windy day,", "Hello"]


def greedy(**arguments):
    return SamplingParams(**{"temperature": 0.0, "max_tokens": 24, **arguments})


def generate(llm, prompts, params, **arguments):
    return llm.generate(prompts, params, use_tqdm=False, **arguments)


def texts(outputs):
    return [completion.text for output in outputs for completion in output.outputs]


def ids(outputs):
    return [completion.token_ids for output in outputs for completion in output.outputs]


def test_greedy_ids_are_those_of_transformers():
    """In float32: in the model's own bfloat16 two tokens can be as likely as each other."""
    from transformers import AutoModelForCausalLM

    with LLM("demo", dtype="float32", kv_cache_memory_bytes=16 << 20) as llm:
        folder = llm.llm_engine.parts.loaded.folder
        reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for output in generate(llm, PROMPTS, greedy()):
            prompt = torch.tensor([output.prompt_token_ids])
            expected = reference.generate(prompt, max_new_tokens=24, do_sample=False)
            assert output.outputs[0].token_ids == expected[0, prompt.shape[1] :].tolist()


def test_outputs_come_in_the_order_of_the_prompts_whatever_ends_first(llm):
    lengths = [30, 2, 17, 1, 9] * 5
    params = [greedy(max_tokens=length, ignore_eos=True) for length in lengths]
    outputs = generate(llm, [[3 + i] for i in range(25)], params)
    assert [output.prompt_token_ids for output in outputs] == [[3 + i] for i in range(25)]
    assert [len(output.outputs[0].token_ids) for output in outputs] == lengths


def test_an_output_has_the_fields_of_the_classic_api(llm):
    (output,) = generate(llm, "Once upon a time", greedy())
    (completion,) = output.outputs
    assert output.prompt == "Once upon a time"
    assert output.prompt_token_ids == llm.get_tokenizer().encode("Once upon a time")
    assert output.finished
    assert output.prompt_logprobs is None
    assert (completion.index, completion.finish_reason, completion.stop_reason) == (
        0,
        "length",
        None,
    )
    assert completion.finished()
    assert completion.text == llm.get_tokenizer().decode(completion.token_ids)
    assert completion.cumulative_logprob < 0
    assert completion.logprobs is None


def test_five_samples_of_one_prompt_differ_and_share_its_blocks(llm):
    before = llm.stats()
    (output,) = generate(
        llm, "Tell me a story", SamplingParams(n=5, temperature=0.9, max_tokens=40)
    )
    assert len(set(texts([output]))) == 5
    assert [completion.index for completion in output.outputs] == [0, 1, 2, 3, 4]
    assert llm.stats()["num_forks"] - before["num_forks"] == 4


def test_a_seed_repeats_and_another_does_not(llm):
    def run(seed):
        return texts(generate(llm, "Once", SamplingParams(n=2, seed=seed, max_tokens=20)))

    assert run(3) == run(3)
    assert run(3) != run(4)


def test_a_sampled_request_is_the_same_alone_and_in_a_batch(llm):
    params = [
        SamplingParams(seed=1, max_tokens=30, temperature=0.9),
        SamplingParams(seed=2, max_tokens=30, top_p=0.8, logprobs=2),
        SamplingParams(seed=3, max_tokens=30, top_k=7, n=3),
        SamplingParams(seed=4, max_tokens=30, min_p=0.05, repetition_penalty=1.2),
        greedy(max_tokens=30, presence_penalty=0.5),
    ]
    prompts = [*PROMPTS, "Mia"]
    together = generate(llm, prompts, params)
    for i, prompt in enumerate(prompts):
        (alone,) = generate(llm, prompt, params[i])
        assert alone.outputs == together[i].outputs


def test_requests_without_a_seed_differ_and_repeat_with_the_engines_seed():
    def run(seed):
        with LLM("demo", kv_cache_memory_bytes=8 << 20, seed=seed, max_num_seqs=4) as llm:
            outputs = generate(llm, ["Once"] * 3, SamplingParams(max_tokens=20, temperature=1.2))
            return texts(outputs)

    first = run(5)
    assert len(set(first)) == 3
    assert run(5) == first
    assert run(6) != first


def test_preempted_requests_return_what_they_would_have(llm):
    """Penalty counts and keyed noise survive the loss of all blocks."""
    params = [
        SamplingParams(seed=i, max_tokens=60, ignore_eos=True, frequency_penalty=0.3, n=1 + i % 2)
        for i in range(6)
    ]
    prompts = [[7 + i] * 20 for i in range(6)]
    expected = generate(llm, prompts, params)
    block_bytes = llm.llm_engine.parts.kv_size.num_bytes // llm.llm_engine.parts.kv_size.num_blocks
    with LLM(
        "demo", kv_cache_memory_bytes=20 * block_bytes, max_num_seqs=16, max_model_len=256
    ) as tight:
        outputs = generate(tight, prompts, params)
        assert tight.stats()["num_preemptions"] > 0
        tight.llm_engine.check_invariants()
    assert [output.outputs for output in outputs] == [output.outputs for output in expected]


@pytest.mark.parametrize("chunk", [16, 33])
def test_chunked_prefill_changes_nothing(llm, chunk):
    prompt = np.random.default_rng(0).integers(3, 1000, size=100).tolist()
    params = greedy(max_tokens=10, ignore_eos=True)
    expected = ids(generate(llm, [prompt], params))
    with LLM(
        "demo", kv_cache_memory_bytes=8 << 20, max_num_seqs=4, max_num_batched_tokens=chunk
    ) as other:
        assert ids(generate(other, [prompt, prompt[:50]], params))[:1] == expected


def test_a_repeated_prompt_is_cached_and_says_so(llm):
    prompt = list(range(100, 150))
    llm.reset_prefix_cache()
    first, second = (generate(llm, [prompt], greedy())[0] for _ in range(2))
    assert first.num_cached_tokens == 0
    assert second.num_cached_tokens >= 48
    assert second.metrics.num_cached_tokens == second.num_cached_tokens
    assert second.outputs == first.outputs
    salted = generate(llm, {"prompt_token_ids": prompt, "cache_salt": "tenant"}, greedy())[0]
    assert salted.num_cached_tokens == 0
    assert salted.outputs == first.outputs
    assert llm.reset_prefix_cache()
    assert generate(llm, [prompt], greedy())[0].num_cached_tokens == 0


def test_metrics_are_in_order(llm):
    (output,) = generate(llm, "Once", greedy(max_tokens=8, ignore_eos=True))
    metrics = output.metrics
    times = [
        metrics.arrival_time,
        metrics.first_scheduled_time,
        metrics.first_token_time,
        metrics.finished_time,
    ]
    assert times == sorted(times)
    assert metrics.num_generated_tokens == 8
    assert 0 < metrics.time_to_first_token <= metrics.latency
    assert metrics.time_in_queue >= 0
    assert metrics.tokens_per_second > 0
    assert metrics.num_preemptions == 0


def test_logprobs_are_a_list_of_dicts_with_the_chosen_token_and_the_best(llm):
    for params in (
        greedy(max_tokens=6, logprobs=3),
        SamplingParams(max_tokens=6, logprobs=3, seed=1),
    ):
        (completion,) = generate(llm, "Once upon", params)[0].outputs
        assert len(completion.logprobs) == len(completion.token_ids)
        total = 0.0
        for token_id, entries in zip(completion.token_ids, completion.logprobs, strict=True):
            assert next(iter(entries)) == token_id
            assert len(entries) in (3, 4)
            assert {1, 2, 3} <= {entry.rank for entry in entries.values()}
            assert entries[token_id].logprob <= max(entry.logprob for entry in entries.values())
            assert entries[token_id].decoded_token == llm.llm_engine.tokenizer.decode_token(
                token_id
            )
            total += entries[token_id].logprob
        assert completion.cumulative_logprob == pytest.approx(total, rel=1e-5)


def test_logprobs_zero_reports_the_chosen_token_alone(llm):
    (completion,) = generate(llm, "Once", greedy(max_tokens=3, logprobs=0))[0].outputs
    assert [list(entries) for entries in completion.logprobs] == [[t] for t in completion.token_ids]


def test_a_stop_string_ends_the_text_across_token_borders(llm):
    full = texts(generate(llm, "Once upon a time", greedy(max_tokens=40)))[0]
    stop = full[10:16]
    (cut,) = generate(llm, "Once upon a time", greedy(max_tokens=40, stop=["never seen", stop]))
    assert cut.outputs[0].text == full[: full.index(stop)]
    assert (cut.outputs[0].finish_reason, cut.outputs[0].stop_reason) == ("stop", stop)
    (kept,) = generate(
        llm, "Once upon a time", greedy(max_tokens=40, stop=stop, include_stop_str_in_output=True)
    )
    assert kept.outputs[0].text == full[: full.index(stop) + len(stop)]


def test_a_stop_token_id_ends_and_is_named(llm):
    full = ids(generate(llm, "Once upon a time", greedy()))[0]
    stop = full[5]
    (output,) = generate(llm, "Once upon a time", greedy(stop_token_ids=[stop]))
    assert output.outputs[0].token_ids == full[: full.index(stop) + 1]
    assert output.outputs[0].stop_reason == stop


def test_the_models_end_stops_unless_ignored_and_not_before_min_tokens(llm, monkeypatch):
    full = ids(generate(llm, "Once upon a time", greedy(ignore_eos=True)))[0]
    eos = full[5]
    place = full.index(eos)
    monkeypatch.setattr(llm.llm_engine.parts, "eos_token_ids", (eos,))
    (output,) = generate(llm, "Once upon a time", greedy())
    assert output.outputs[0].token_ids == full[: place + 1]
    assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == ("stop", None)
    assert output.outputs[0].text == llm.get_tokenizer().decode(full[:place])
    (ignored,) = generate(llm, "Once upon a time", greedy(ignore_eos=True))
    assert ignored.outputs[0].token_ids == full
    (later,) = generate(llm, "Once upon a time", greedy(min_tokens=place + 3))
    assert eos not in later.outputs[0].token_ids[: place + 3]


def test_max_tokens_none_runs_to_the_end_of_the_context():
    with LLM("demo", max_model_len=64, kv_cache_memory_bytes=8 << 20, max_num_seqs=2) as llm:
        (output,) = generate(llm, "Once", greedy(max_tokens=None, ignore_eos=True))
        assert len(output.prompt_token_ids) + len(output.outputs[0].token_ids) == 64
        assert output.outputs[0].finish_reason == "length"


def test_detokenize_false_returns_ids_alone(llm):
    (output,) = generate(llm, "Once", greedy(detokenize=False))
    assert output.outputs[0].text == ""
    assert len(output.outputs[0].token_ids) == 24


def test_an_engine_without_a_tokenizer_takes_and_returns_ids():
    with LLM(
        "demo", skip_tokenizer_init=True, kv_cache_memory_bytes=8 << 20, max_num_seqs=2
    ) as llm:
        (output,) = generate(llm, [[5, 6, 7]], greedy(logprobs=1))
        assert output.prompt is None
        assert output.outputs[0].text == ""
        assert output.outputs[0].logprobs[0][output.outputs[0].token_ids[0]].decoded_token is None
        with pytest.raises(
            ValueError, match=r"prompts\[0\] is a text, but the engine has no token"
        ):
            generate(llm, "Once", greedy())
        with pytest.raises(ValueError, match="stop strings need a tokenizer"):
            generate(llm, [[5]], greedy(stop="x"))
        with pytest.raises(ValueError, match="the engine has no tokenizer"):
            llm.get_tokenizer()


def test_no_prompts_give_no_outputs(llm):
    assert generate(llm, [], None) == []


def test_chat_answers_through_the_models_template(llm):
    messages = [{"role": "user", "content": "What is the capital of Italy?"}]
    one = llm.chat(messages, greedy(), use_tqdm=False)
    several = llm.chat([messages, messages], greedy(), use_tqdm=False)
    assert one[0].prompt.startswith("<")
    assert [output.outputs[0].text for output in several] == [one[0].outputs[0].text] * 2
    with pytest.raises(ValueError, match="messages must hold at least one message"):
        llm.chat([], greedy())


def test_a_lower_priority_value_runs_first():
    with LLM(
        "demo", scheduling_policy="priority", max_num_seqs=1, kv_cache_memory_bytes=8 << 20
    ) as llm:
        outputs = generate(llm, [[5], [6], [7]], greedy(max_tokens=4), priority=[2, 0, 1])
        order = sorted(range(3), key=lambda i: outputs[i].metrics.finished_time)
        assert order == [1, 2, 0]


def test_the_progress_bar_shows_tokens_per_second_and_cache_use(llm, capsys):
    llm.generate(PROMPTS, greedy(max_tokens=60, ignore_eos=True))
    shown = capsys.readouterr().err
    assert "Generating" in shown
    assert "tokens/s, KV cache" in shown
