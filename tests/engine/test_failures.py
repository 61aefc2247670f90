"""A step that fails or is interrupted: one request pays, the engine stays."""

import signal
import threading

import pytest
import torch

from pagedkv import EngineClosedError, PagedKVError, SamplingParams

PARAMS = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
POISON = 777


def plain_prompts():
    return [[10 + i, 20 + i, 30 + i] for i in range(6)]


@pytest.fixture
def runner(llm):
    return llm.llm_engine.parts.batches._runner


@pytest.fixture
def poisoned(runner, monkeypatch):
    """Forward passes that hold the token POISON fail."""
    forward = runner.forward

    def failing(step):
        if (step.input_ids == POISON).any():
            raise RuntimeError("poison in the batch")
        return forward(step)

    monkeypatch.setattr(runner, "forward", failing)


def test_the_request_that_fails_ends_with_its_error_and_the_others_return(llm, poisoned):
    expected = llm.generate(plain_prompts(), PARAMS, use_tqdm=False)
    prompts = plain_prompts()
    prompts.insert(2, [11, POISON, 12])
    outputs = llm.generate(prompts, PARAMS, use_tqdm=False)
    failed = outputs.pop(2)
    assert failed.error == "RuntimeError: poison in the batch"
    assert [completion.finish_reason for completion in failed.outputs] == ["error"]
    assert failed.finished
    assert [output.error for output in outputs] == [None] * 6
    assert [o.outputs for o in outputs] == [o.outputs for o in expected]


def test_all_samples_of_a_failing_request_end(llm, poisoned):
    params = SamplingParams(n=3, max_tokens=5)
    failed, fine = llm.generate([[POISON], [5]], params, use_tqdm=False)
    assert [completion.finish_reason for completion in failed.outputs] == ["error"] * 3
    assert [completion.finish_reason for completion in fine.outputs] == ["length"] * 3


def test_a_failing_stream_ends_with_an_error_delta(llm, poisoned):
    deltas = list(llm.stream([POISON], PARAMS))
    assert [(d.finish_reason, d.error) for d in deltas] == [
        ("error", "RuntimeError: poison in the batch")
    ]


def test_a_model_that_always_fails_ends_every_request(llm, runner, monkeypatch):
    def failing(step):
        raise RuntimeError("no kernel image")

    with monkeypatch.context() as patch:
        patch.setattr(runner, "forward", failing)
        outputs = llm.generate(plain_prompts(), PARAMS, use_tqdm=False)
    assert {output.error for output in outputs} == {"RuntimeError: no kernel image"}


def test_a_failure_of_the_batch_that_no_row_repeats_costs_nobody(llm, runner, monkeypatch):
    """Out of memory at the full batch: halves of it run."""
    expected = llm.generate(plain_prompts(), PARAMS, use_tqdm=False)
    forward = runner.forward

    def failing(step):
        if step.num_rows > 2:
            raise torch.OutOfMemoryError("too large")
        return forward(step)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "forward", failing)
        outputs = llm.generate(plain_prompts(), PARAMS, use_tqdm=False)
    assert [o.outputs for o in outputs] == [o.outputs for o in expected]


def test_failures_in_the_middle_keep_what_was_generated(llm, runner, monkeypatch):
    expected = llm.generate(plain_prompts()[:2], PARAMS, use_tqdm=False)
    forward, failing_row = runner.forward, []

    def failing(step):
        if step.seq_lens.max() >= 8:
            failing_row[:] = failing_row or [int(step.row_ids[0])]
            if failing_row[0] in step.row_ids.tolist():
                raise RuntimeError("late")
        return forward(step)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "forward", failing)
        outputs = llm.generate(plain_prompts()[:2], PARAMS, use_tqdm=False)
    (failed,) = [i for i in range(2) if outputs[i].error]
    partial = outputs[failed].outputs[0]
    assert partial.finish_reason == "error"
    assert partial.token_ids == expected[failed].outputs[0].token_ids[: len(partial.token_ids)]
    assert len(partial.token_ids) == 5
    assert outputs[1 - failed].outputs == expected[1 - failed].outputs


def test_nan_logits_end_the_request_that_has_them(llm, runner, monkeypatch):
    expected = llm.generate(plain_prompts(), PARAMS, use_tqdm=False)
    forward, calls = runner.forward, []

    def with_nan(step):
        logits = forward(step)
        calls.append(1)
        if len(calls) == 3:
            with torch.inference_mode():
                logits[4, 17] = torch.nan
        return logits

    with monkeypatch.context() as patch:
        patch.setattr(runner, "forward", with_nan)
        outputs = llm.generate(plain_prompts(), PARAMS, use_tqdm=False)
    (failed,) = [i for i in range(6) if outputs[i].error]
    assert outputs[failed].error == "the model's logits are not a number (NaN)"
    assert len(outputs[failed].outputs[0].token_ids) == 2
    for i in set(range(6)) - {failed}:
        assert outputs[i].outputs == expected[i].outputs


@pytest.mark.parametrize("at_step", [1, 2, 5])
def test_ctrl_c_in_a_forward_pass_frees_the_blocks_and_leaves_the_engine_usable(
    llm, runner, monkeypatch, at_step
):
    expected = llm.generate(plain_prompts(), PARAMS, use_tqdm=False)
    forward, calls = runner.forward, []

    def interrupted(step):
        calls.append(1)
        if len(calls) == at_step:
            signal.raise_signal(signal.SIGINT)
        return forward(step)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(plain_prompts(), PARAMS, use_tqdm=False)
    assert llm.stats()["num_used_blocks"] == 0
    assert not llm.llm_engine.has_unfinished_requests()
    again = llm.generate(plain_prompts(), PARAMS, use_tqdm=False)
    assert [o.outputs for o in again] == [o.outputs for o in expected]


def test_ctrl_c_at_any_moment_loses_nothing(llm):
    """Signals arrive at arbitrary bytecodes; each time the engine ends idle and keeps its books."""
    main = threading.main_thread().ident
    for delay in range(1, 25):
        timer = threading.Timer(delay / 1000, signal.pthread_kill, (main, signal.SIGINT))
        try:
            timer.start()
            llm.generate(plain_prompts(), SamplingParams(max_tokens=40), use_tqdm=False)
            # The signal comes in any case, so that none is left for the next test.
            timer.join()
            while True:
                threading.Event().wait(0.001)
        except KeyboardInterrupt:
            timer.join()
        assert not llm.llm_engine.has_unfinished_requests()
        assert llm.stats()["num_used_blocks"] == 0
        llm.llm_engine.check_invariants()


def test_ctrl_c_ends_the_interrupted_call_alone(llm, runner, monkeypatch):
    expected = [d.text for d in llm.stream("Once upon", PARAMS)]
    stream = llm.stream("Once upon", PARAMS)
    texts = [next(stream).text]
    forward = runner.forward

    def interrupted(step):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runner, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(plain_prompts(), PARAMS, use_tqdm=False)
    assert runner.forward == forward
    texts += [delta.text for delta in stream]
    assert "".join(texts) == "".join(expected)


def test_a_closed_engine_answers_every_call_in_the_same_words():
    from pagedkv import LLM

    llm = LLM("demo", kv_cache_memory_bytes=8 << 20, max_num_seqs=2)
    llm.close()
    llm.close()
    for call in (
        lambda: llm.generate("Once"),
        lambda: llm.chat([{"role": "user", "content": "Hi"}]),
        lambda: llm.stream("Once"),
        llm.stats,
        llm.get_tokenizer,
        llm.reset_prefix_cache,
        llm.llm_engine.step,
    ):
        with pytest.raises(EngineClosedError, match="the engine is closed; make a new one"):
            call()
    assert issubclass(EngineClosedError, PagedKVError)


def test_stepping_the_engine_behind_a_calls_back_is_an_error_and_not_a_hang(llm):
    stream = llm.stream("Once", PARAMS)
    while llm.llm_engine.has_unfinished_requests():
        llm.llm_engine.step()
    with pytest.raises(PagedKVError, match=r"llm\.llm_engine was stepped while a call was running"):
        next(stream)
