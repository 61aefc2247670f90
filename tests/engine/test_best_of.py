"""best_of: more sequences are sampled than returned, and the most likely ones are kept."""

import pytest

from pagedkv import SamplingParams


def generate(llm, **arguments):
    params = SamplingParams(**{"seed": 5, "max_tokens": 12, "logprobs": 1, **arguments})
    (output,) = llm.generate("Once upon a time", params, use_tqdm=False)
    return output


def test_the_n_best_of_best_of_are_returned_best_first(llm):
    everything = generate(llm, n=6, temperature=1.5)
    best = generate(llm, n=2, best_of=6, temperature=1.5)
    ranked = sorted(everything.outputs, key=lambda output: -output.cumulative_logprob)
    assert [output.index for output in best.outputs] == [0, 1]
    assert [output.index for output in ranked[:2]] != [0, 1], "another seed must tell them apart"
    for kept, original in zip(best.outputs, ranked, strict=False):
        assert kept.token_ids == original.token_ids
        assert kept.text == original.text
        assert kept.cumulative_logprob == original.cumulative_logprob
        assert kept.logprobs == original.logprobs
    assert best.metrics.num_generated_tokens == everything.metrics.num_generated_tokens


def test_best_of_equal_to_n_keeps_the_order_of_n(llm):
    assert generate(llm, n=3, best_of=3).outputs == generate(llm, n=3).outputs


def test_the_prompt_of_best_of_is_computed_once(llm):
    prompt = list(range(100, 150))
    llm.reset_prefix_cache()
    before = llm.stats()["num_scheduled_tokens"]
    params = SamplingParams(n=1, best_of=8, max_tokens=2, seed=1, ignore_eos=True)
    llm.generate([prompt], params, use_tqdm=False)
    # Each sequence's second token is sampled from its first.
    assert llm.stats()["num_scheduled_tokens"] - before == len(prompt) + 8


def test_a_stream_of_best_of_is_one_delta_per_kept_sequence(llm):
    expected = generate(llm, n=2, best_of=5)
    stream = llm.stream(
        "Once upon a time", SamplingParams(n=2, best_of=5, seed=5, max_tokens=12, logprobs=1)
    )
    deltas = list(stream)
    assert [delta.index for delta in deltas] == [0, 1]
    for delta, output in zip(deltas, expected.outputs, strict=True):
        assert delta.text == output.text
        assert delta.token_ids == output.token_ids
        assert delta.logprobs == output.logprobs
        assert delta.finish_reason == output.finish_reason
    assert stream.output.outputs == expected.outputs


def test_more_sequences_than_rows_are_refused_with_the_setting(llm):
    with pytest.raises(ValueError, match=r"best_of must be at most max_num_seqs \(16\), got 17"):
        generate(llm, n=1, best_of=17)
