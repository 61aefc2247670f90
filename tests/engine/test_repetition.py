"""repetition_detection: a sequence ends where its last tokens are copies of one pattern, and nowhere else."""

import pytest

from pagedkv import LLM, BeamSearchParams, RepetitionDetectionParams, SamplingParams

PROMPTS = ["Once upon a time", "Tell me a story about a fox.", "One windy day,", "Hello"]
# A few ids alone soon repeat themselves.
FEW = {"allowed_token_ids": [290, 300, 310, 320], "temperature": 2.0, "max_tokens": 60}
DETECTION = RepetitionDetectionParams(max_pattern_size=4, min_pattern_size=2, min_count=3)


def end_of(token_ids, *, first=1, detection=DETECTION):
    """After how many tokens a sequence ends by a repetition; None if it does not."""
    sizes = range(detection.min_pattern_size, detection.max_pattern_size + 1)
    for end in range(first, len(token_ids)):
        for size in sizes:
            length = size * detection.min_count
            if end >= length:
                tail = token_ids[end - length : end]
                if tail == tail[:size] * detection.min_count:
                    return end
    return None


def expected(token_ids, **options):
    end = end_of(token_ids, **options)
    if end is None:
        return token_ids, "length", None
    return token_ids[:end], "repetition", "repetition_detected"


def found(output):
    return [(c.token_ids, c.finish_reason, c.stop_reason) for c in output.outputs]


@pytest.fixture(scope="module")
def free(shared_llm):
    """What five sequences of each prompt are when nothing ends them."""
    params = SamplingParams(n=5, seed=3, **FEW)
    outputs = shared_llm.generate(PROMPTS, params, use_tqdm=False)
    return [[c.token_ids for c in output.outputs] for output in outputs]


def test_each_of_several_sequences_ends_where_it_repeats_itself(llm, free):
    params = SamplingParams(n=5, seed=3, repetition_detection=DETECTION, **FEW)
    outputs = llm.generate(PROMPTS, params, use_tqdm=False)
    wanted = [[expected(token_ids) for token_ids in each] for each in free]
    assert [found(output) for output in outputs] == wanted
    reasons = [reason for each in wanted for _, reason, _ in each]
    assert reasons.count("repetition") > 5
    assert "length" in reasons


def test_min_tokens_comes_first(llm, free):
    params = SamplingParams(
        n=5, seed=3, min_tokens=30, ignore_eos=True, repetition_detection=DETECTION, **FEW
    )
    outputs = llm.generate(PROMPTS, params, use_tqdm=False)
    wanted = [[expected(token_ids, first=30) for token_ids in each] for each in free]
    assert [found(output) for output in outputs] == wanted
    ends = [len(token_ids) for each in wanted for token_ids, *_ in each]
    assert min(ends) >= 30
    assert min(ends) < 60


def test_text_and_stream_end_with_the_last_token(llm):
    params = SamplingParams(
        temperature=0,
        allowed_token_ids=[300],
        max_tokens=60,
        stream_interval=4,
        repetition_detection={"max_pattern_size": 1, "min_count": 7},
    )
    (output,) = llm.generate("Hello", params, use_tqdm=False)
    (completion,) = output.outputs
    assert completion.token_ids == [300] * 7
    assert completion.text == llm.get_tokenizer().decode([300] * 7)
    deltas = list(llm.stream("Hello", params))
    assert [delta.finish_reason for delta in deltas] == [None, None, "repetition"]
    assert "".join(delta.text for delta in deltas) == completion.text
    assert [token for delta in deltas for token in delta.token_ids] == completion.token_ids


def test_a_stop_string_and_the_last_token_allowed_come_first(llm):
    piece = llm.get_tokenizer().decode([300])
    given = {
        "temperature": 0,
        "allowed_token_ids": [300],
        "repetition_detection": {"max_pattern_size": 1, "min_count": 3},
    }
    stopped = SamplingParams(stop=[piece * 3], **given)
    last = SamplingParams(max_tokens=3, **given)
    by_string, by_length = llm.generate("Hello", stopped), llm.generate("Hello", last)
    assert found(by_string[0]) == [([300] * 3, "stop", piece * 3)]
    assert found(by_length[0]) == [([300] * 3, "length", None)]


def test_a_pattern_of_the_prompt_does_not_count(llm):
    params = SamplingParams(
        temperature=0,
        allowed_token_ids=[300],
        repetition_detection={"max_pattern_size": 1, "min_count": 5},
    )
    (output,) = llm.generate([[300] * 20], params, use_tqdm=False)
    assert found(output) == [([300] * 5, "repetition", "repetition_detected")]


def test_a_pool_that_is_too_small_changes_nothing():
    params = [
        SamplingParams(n=4, seed=seed, ignore_eos=True, repetition_detection=DETECTION, **FEW)
        for seed in range(4)
    ]
    params[1].allowed_token_ids = None

    def run(num_blocks):
        with LLM(
            "demo",
            dtype="float32",
            max_num_seqs=16,
            max_num_batched_tokens=24,
            max_model_len=128,
            kv_cache_memory_bytes=num_blocks * 80 * 1024,
        ) as llm:
            outputs = llm.generate(PROMPTS, params, use_tqdm=False)
            return [found(output) for output in outputs], llm.stats()["num_preemptions"]

    (ample, _), (tight, num_preemptions) = run(100), run(24)
    assert num_preemptions > 0
    assert tight == ample
    assert any(reason == "repetition" for each in ample for _, reason, _ in each)


def test_a_beam_that_repeats_itself_is_an_ended_one(llm):
    params = BeamSearchParams(beam_width=4, max_tokens=30).sampling_params()
    params.ignore_eos = True
    params.allowed_token_ids = FEW["allowed_token_ids"]
    params.repetition_detection = DETECTION
    (output,) = llm.generate("Once upon a time", params, use_tqdm=False)
    assert any(c.finish_reason == "repetition" for c in output.outputs)
    for completion in output.outputs:
        end = end_of([*completion.token_ids, -1])
        assert end == (len(completion.token_ids) if completion.stop_reason else None)
