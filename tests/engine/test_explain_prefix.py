"""Sharing made visible: what is cached of a prompt, what a request held and lost, and the figures of it all."""

import pytest

from pagedkv import LLM, SamplingParams

PROMPT = list(range(100, 150))
ONE = SamplingParams(max_tokens=1, ignore_eos=True)


@pytest.fixture
def cached(llm):
    """An engine with PROMPT cached: three blocks of 16, and two tokens in none."""
    llm.reset_prefix_cache()
    llm.generate([PROMPT], ONE, use_tqdm=False)
    return llm


def num_cached(llm, prompt):
    (output,) = llm.generate([prompt], ONE, use_tqdm=False)
    return output.num_cached_tokens


def test_a_prompt_that_was_seen_lacks_only_the_block_that_is_not_full(cached):
    report = cached.explain_prefix(PROMPT)
    assert (report.num_tokens, report.num_cached_tokens, report.num_cached_blocks) == (50, 48, 3)
    assert (report.first_missing_block, report.missing_range) == (3, range(48, 50))
    assert report.missing_token_ids == (148, 149)
    assert report.cached_token_ids == ()
    assert report.first_difference is None
    assert "nothing is cached after" in report.reason
    assert num_cached(cached, PROMPT) == report.num_cached_tokens


def test_the_last_token_of_a_prompt_that_is_cached_whole_still_runs(cached):
    report = cached.explain_prefix(PROMPT[:32])
    assert (report.num_cached_tokens, report.num_cached_blocks) == (31, 1)
    assert report.first_missing_block is report.missing_range is report.reason is None
    assert "the whole prompt is cached" in str(report)
    assert num_cached(cached, PROMPT[:32]) == 31


def test_the_first_token_that_differs_is_named_with_both_blocks(cached):
    changed = [*PROMPT[:21], 7, *PROMPT[22:]]
    report = cached.explain_prefix(changed)
    assert (report.num_cached_tokens, report.num_cached_blocks) == (21, 1)
    assert (report.first_missing_block, report.missing_range) == (1, range(16, 32))
    assert report.first_difference == 21
    assert report.missing_token_ids == tuple(changed[16:32])
    assert report.cached_token_ids == tuple(PROMPT[16:32])
    tokenizer = cached.llm_engine.tokenizer
    assert report.missing_text == tokenizer.decode(changed[16:32], skip_special_tokens=False)
    assert report.cached_text == tokenizer.decode(PROMPT[16:32], skip_special_tokens=False)
    assert "block 1 (tokens 16 to 31) is missing: other tokens" in str(report)
    assert num_cached(cached, changed) == 21


def test_texts_are_explained_as_they_are_encoded(llm):
    text = (
        "Once upon a time there was a fox who lived in a small house by the river with his friend."
    )
    llm.reset_prefix_cache()
    llm.generate(text, ONE, use_tqdm=False)
    report = llm.explain_prefix(text + " The end")
    assert report.num_cached_blocks == len(llm.llm_engine.tokenizer.encode(text)) // 16 > 0
    assert report.num_cached_tokens == num_cached(llm, text + " The end")


def test_another_salt_is_another_root(cached):
    report = cached.explain_prefix({"prompt_token_ids": PROMPT, "cache_salt": "tenant"})
    assert (report.num_cached_tokens, report.first_missing_block) == (0, 0)
    assert "nothing is cached under cache_salt 'tenant'" in report.reason
    cached.reset_prefix_cache()
    assert "nothing is cached without a cache_salt" in cached.explain_prefix(PROMPT).reason


def test_an_explanation_changes_nothing(cached):
    figures = {"uptime_seconds", "busy_seconds", "tokens_per_second"}
    before = cached.stats()
    for prompt in (PROMPT, [1, 2, 3], {"prompt_token_ids": PROMPT, "cache_salt": "new"}):
        cached.explain_prefix(prompt)
    after = cached.stats()
    assert {name: after[name] for name in after if name not in figures} == {
        name: before[name] for name in before if name not in figures
    }
    cached.llm_engine.check_invariants()


def test_a_tail_that_was_given_to_others_is_no_longer_promised():
    with LLM("demo", kv_cache_memory_bytes=1 << 20, max_num_seqs=2, max_model_len=64) as llm:
        llm.generate([PROMPT], ONE, use_tqdm=False)
        for token_id in range(200, 200 + llm.stats()["num_blocks"]):
            llm.generate([[token_id] * 16], ONE, use_tqdm=False)
            report = llm.explain_prefix(PROMPT)
            if report.num_cached_tokens < 48:
                break
        assert 0 < report.first_missing_block < 3
        assert report.num_cached_tokens == num_cached(llm, PROMPT)


def test_without_prefix_caching_the_setting_is_the_reason():
    with LLM("demo", kv_cache_memory_bytes=8 << 20, enable_prefix_caching=False) as llm:
        llm.generate([PROMPT], ONE, use_tqdm=False)
        report = llm.explain_prefix(PROMPT)
    assert (report.num_cached_tokens, report.first_missing_block) == (0, 0)
    assert "enable_prefix_caching=False" in report.reason


def test_without_a_tokenizer_there_are_ids_alone():
    with LLM("demo", kv_cache_memory_bytes=8 << 20, skip_tokenizer_init=True) as llm:
        llm.generate([PROMPT], ONE, use_tqdm=False)
        report = llm.explain_prefix([*PROMPT[:20], 7])
        assert (report.missing_text, report.cached_text) == (None, None)
        assert "cached: [116, 117" in str(report)
        with pytest.raises(ValueError, match="no tokenizer"):
            llm.explain_prefix("a text")


def test_a_prompt_that_cannot_be_generated_from_is_refused(llm):
    with pytest.raises(TypeError):
        llm.explain_prefix(3.5)
    with pytest.raises(ValueError, match="empty"):
        llm.explain_prefix([])


def test_a_request_tells_the_slots_that_it_held(llm):
    params = SamplingParams(n=3, max_tokens=5, seed=1, ignore_eos=True)
    (output,) = llm.generate([PROMPT], params, use_tqdm=False)
    metrics = output.metrics
    # Three blocks are shared; each sequence has two tokens of the prompt and four of its own in another.
    assert metrics.num_held_slots == (3 + 3) * 16
    assert metrics.num_used_slots == 3 * 16 + 3 * 6
    assert (metrics.num_swaps, metrics.num_tokens_lost) == (0, 0)


@pytest.mark.parametrize("swap_space", [0, 1])
def test_preemptions_add_up_over_requests_by_kind(swap_space):
    prompts = [[10 + i, 20, 30] for i in range(4)]
    params = SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True)
    arguments = {"block_size": 8, "max_model_len": 64, "max_num_seqs": 4, "dtype": "float32"}
    with LLM("demo", kv_cache_memory_bytes=8 << 20, **arguments) as llm:
        block_bytes = (8 << 20) // llm.stats()["num_blocks"]
    with LLM(
        "demo", kv_cache_memory_bytes=16 * block_bytes, swap_space=swap_space, **arguments
    ) as llm:
        outputs = llm.generate(prompts, params, use_tqdm=False)
        stats = llm.stats()
    metrics = [output.metrics for output in outputs]
    for name in ("num_preemptions", "num_swaps", "num_tokens_lost"):
        assert sum(getattr(entry, name) for entry in metrics) == stats[name]
    assert stats["num_recomputes"] == stats["num_preemptions"] - stats["num_swaps"]
    if swap_space:
        assert stats["num_swaps"] > 0
    else:
        assert stats["num_recomputes"] > 0
        assert stats["num_tokens_lost"] > 0


def test_the_figures_of_sharing_follow_the_formula_while_a_request_runs(engine):
    params = SamplingParams(n=4, max_tokens=8, seed=1, ignore_eos=True)
    engine.add_request("a", list(range(200, 250)), params)
    engine.step()
    engine.step()
    stats = engine.stats()
    # Four tables of four columns; the first three columns are one block each.
    assert (stats["num_used_blocks"], stats["num_saved_blocks"]) == (7, 9)
    assert stats["sharing"] == 9 / 16
    assert stats["slot_use"] == stats["num_used_slots"] / (7 * 16)
    assert stats["num_used_slots"] == 3 * 16 + 4 * 3
    while engine.has_unfinished_requests():
        engine.step()
    stats = engine.stats()
    assert (stats["sharing"], stats["slot_use"]) == (0, 0)
    assert stats["mean_sharing"] > 0
