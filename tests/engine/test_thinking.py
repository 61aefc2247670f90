"""thinking_token_budget from the call to the tokens: against a plain function on the logits, alone and in company."""

import pytest
import torch

from pagedkv import LLM, SamplingParams
from sampling.plain_thinking import forced

PROMPTS = ["Once upon a time", "Tell me a story about a fox.", "One windy day,", "Hello"]
# Ordinary tokens, so that the model begins and ends thinking as it likes; of the end, two share their beginning.
START, END = [300], [310, 310, 320]
CONFIG = {"reasoning_start_token_ids": START, "reasoning_end_token_ids": END}
FEW = [300, 310, 320, 330, 340]
SETTINGS = {
    "dtype": "float32",
    "max_num_seqs": 16,
    "max_num_batched_tokens": 24,
    "max_model_len": 128,
    "reasoning_config": CONFIG,
}


@pytest.fixture(scope="module")
def llm():
    with LLM("demo", kv_cache_memory_bytes=32 << 20, **SETTINGS) as llm:
        yield llm
        llm.llm_engine.check_invariants()
        assert llm.stats()["num_used_blocks"] == 0


def params(budget=None, **arguments):
    given = {"temperature": 5.0, "seed": 3, "max_tokens": 40, "ignore_eos": True, **arguments}
    return SamplingParams(thinking_token_budget=budget, **given)


def by_the_definition(budget):
    """A function on logits that forces what the budget forces."""

    def force(prompt_ids, output_ids, logits):
        token_id = forced(prompt_ids, output_ids, start=START, end=END, budget=budget)
        if token_id is None:
            return logits
        only = torch.full_like(logits, -torch.inf)
        only[token_id] = logits[token_id]
        return only

    return force


def found(output):
    assert output.error is None
    return [(c.token_ids, c.cumulative_logprob, c.logprobs) for c in output.outputs]


def run(llm, prompts, sampling_params):
    return [found(each) for each in llm.generate(prompts, sampling_params, use_tqdm=False)]


def count_ends(prompt, output, budget):
    """How many sections the budget ended; wherever it forces a token, that is the one."""
    count = 0
    for place, token_id in enumerate(output):
        wanted = forced(prompt, output[:place], start=START, end=END, budget=budget)
        assert wanted in (None, token_id)
        count += wanted == END[-1]
    return count


@pytest.mark.parametrize("budget", [0, 1, 3, 7])
def test_several_samples_are_those_of_a_plain_function_on_logits(llm, budget):
    given = {"n": 4, "allowed_token_ids": FEW, "logprobs": 2}
    budgeted = run(llm, PROMPTS, params(budget, **given))
    plain = run(llm, PROMPTS, params(logits_processors=[by_the_definition(budget)], **given))
    assert budgeted == plain
    outputs = [token_ids for each in budgeted for token_ids, *_ in each]
    assert sum(count_ends([], token_ids, budget) for token_ids in outputs) > 10
    assert budgeted != run(llm, PROMPTS, params(**given))


def test_a_request_gets_alone_what_it_gets_beside_others_with_and_without_room(llm):
    mix = [
        params(2, n=3, allowed_token_ids=FEW, max_tokens=60),
        params(n=3, allowed_token_ids=FEW, max_tokens=60),
        params(0, allowed_token_ids=FEW, temperature=0, max_tokens=60),
        params(4, n=4, allowed_token_ids=FEW, presence_penalty=1.0, max_tokens=60),
    ]
    alone = [run(llm, [prompt], [each])[0] for prompt, each in zip(PROMPTS, mix, strict=True)]
    assert run(llm, PROMPTS, mix) == alone
    # A block of this model has 16 tokens of 5 KiB.
    with LLM("demo", kv_cache_memory_bytes=22 * 80 * 1024, **SETTINGS) as small:
        assert run(small, PROMPTS, mix) == alone
        assert small.stats()["num_preemptions"] > 0
    with LLM("demo", kv_cache_memory_bytes=22 * 80 * 1024, swap_space=0.01, **SETTINGS) as small:
        assert run(small, PROMPTS, mix) == alone
        assert small.stats()["num_swaps"] > 0


@pytest.mark.parametrize(
    ("prompt", "budget", "beginning"),
    [
        ([9, 300], 0, [310, 310, 320]),
        ([9, 300, 310], 0, [310, 320]),
        ([9, 300, 310, 310], 0, [320]),
        ([300, 9, 9, 9], 2, [None, None, 310, 310, 320]),
        ([300, 9, 310, 310, 320, 300, 9], 1, [None, 310, 310, 320]),
    ],
)
def test_a_prompt_may_end_inside_a_section_and_inside_the_end_of_one(
    llm, prompt, budget, beginning
):
    given = {"temperature": 0, "max_tokens": len(beginning)}
    ((token_ids, *_),) = run(llm, [prompt], params(budget, **given))[0]
    wanted = [
        id_ if id_ is not None else token for id_, token in zip(beginning, token_ids, strict=True)
    ]
    assert token_ids == wanted


@pytest.mark.parametrize("prompt", [[9, 9], [300, 9, 310, 310, 320, 9]])
def test_without_a_section_nothing_is_forced(llm, prompt):
    given = {"temperature": 0, "allowed_token_ids": [330, 340, 310], "max_tokens": 20}
    assert run(llm, [prompt], params(0, **given)) == run(llm, [prompt], params(**given))


def test_the_models_own_number_is_reported_of_a_forced_token(llm):
    (free,) = run(
        llm, [[9, 300]], params(temperature=0, logprobs=0, max_tokens=1, logit_bias={310: 100})
    )
    (budgeted,) = run(llm, [[9, 300]], params(0, temperature=0, logprobs=0, max_tokens=1))
    assert budgeted == free
    assert budgeted[0][1] < -0.5


def test_no_other_field_keeps_the_end_away(llm):
    against = params(
        0,
        allowed_token_ids=[330, 340],
        logit_bias={310: -100, 320: -100},
        bad_words=[llm.get_tokenizer().decode([310])],
        stop_token_ids=[320],
        min_tokens=5,
        max_tokens=6,
        top_k=1,
    )
    ((token_ids, *_),) = run(llm, [[9, 300]], against)[0]
    assert token_ids[:3] == END
    assert set(token_ids[3:]) <= {330, 340}


def test_beams_are_those_of_a_plain_function_on_logits(llm):
    given = {
        "temperature": 0.0,
        "use_beam_search": True,
        "n": 4,
        "allowed_token_ids": FEW,
        "logprobs": 1,
        "max_tokens": 25,
        "logit_bias": {300: 3.0},
    }
    prompts = [[*prompt, *tail] for prompt in ([9, 9], [7, 8]) for tail in ([], [300], [300, 310])]
    for budget in (0, 2, 5):
        budgeted = run(llm, prompts, params(budget, **given))
        plain = run(llm, prompts, params(logits_processors=[by_the_definition(budget)], **given))
        assert budgeted == plain
        num_ends = [
            count_ends(prompt, token_ids, budget)
            for prompt, each in zip(prompts, budgeted, strict=True)
            for token_ids, *_ in each
        ]
        assert sum(num_ends) > 5


def test_a_stream_and_a_markers_strings(llm):
    """Strings are encoded without the special tokens around a text, and forced like ids."""
    texts = {"reasoning_start_str": " girl", "reasoning_end_str": " and then he ran home."}
    end = llm.get_tokenizer().encode(texts["reasoning_end_str"], add_special_tokens=False)
    assert len(end) > 3
    settings = SETTINGS | {"reasoning_config": texts}
    with LLM("demo", kv_cache_memory_bytes=8 << 20, **settings) as other:
        budgeted = params(2, temperature=0, max_tokens=30)
        prompt = "Once upon a time, there was a girl"
        pieces = [delta.text for delta in other.stream(prompt, budgeted)]
        (output,) = other.generate(prompt, budgeted, use_tqdm=False)
        assert "".join(pieces) == output.outputs[0].text
        assert output.outputs[0].token_ids[2 : 2 + len(end)] == end
        assert texts["reasoning_end_str"] in output.outputs[0].text


def test_a_budget_without_markers_is_refused_before_anything_starts():
    with LLM("demo", kv_cache_memory_bytes=8 << 20, max_num_seqs=2) as other:
        with pytest.raises(
            ValueError, match=r"thinking_token_budget=5 needs to know .* reasoning_config"
        ):
            other.generate("Hello", params(5), use_tqdm=False)
        with pytest.raises(ValueError, match="reasoning_config"):
            other.generate("Hello", params(0), use_tqdm=False)
        assert other.generate("Hello", params(-1), use_tqdm=False)[0].finished


def test_markers_that_cannot_be_had_are_refused_at_the_start():
    with pytest.raises(
        ValueError, match="reasoning_end_token_ids has token id 1024, which is outs"
    ):
        LLM("demo", reasoning_config=CONFIG | {"reasoning_end_token_ids": [1024]})
    strings = {"reasoning_start_str": "<a>", "reasoning_end_str": "</a>"}
    with pytest.raises(ValueError, match="reasoning_start_str needs a tokenizer"):
        LLM("demo", reasoning_config=strings, skip_tokenizer_init=True)
