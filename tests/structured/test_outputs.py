"""Structured outputs of a whole engine: every output satisfies its constraint, whatever else runs."""

import json
import re

import pytest

from pagedkv import LLM, SamplingParams, StructuredOutputsParams
from pagedkv.errors import UnknownParameterError

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 3, "maximum": 99},
        "kind": {"enum": ["cat", "dog", "狐"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}
MEMORY = 32 << 20


@pytest.fixture(scope="module")
def shared_llm():
    with LLM(
        "demo", kv_cache_memory_bytes=MEMORY, max_num_seqs=16, max_num_batched_tokens=64
    ) as llm:
        yield llm


@pytest.fixture
def llm(shared_llm):
    yield shared_llm
    assert not shared_llm.llm_engine.has_unfinished_requests()
    shared_llm.llm_engine.check_invariants()
    assert shared_llm.stats()["num_used_blocks"] == 0


def params(constraint, **others):
    if isinstance(constraint, dict):
        constraint = StructuredOutputsParams(
            disable_any_whitespace="json" in constraint, **constraint
        )
    return SamplingParams(
        **{"temperature": 0.8, "seed": 3, "max_tokens": 120, "structured_outputs": constraint}
        | others
    )


def generate(llm, prompts, sampling_params):
    return llm.generate(prompts, sampling_params, use_tqdm=False)


def assert_satisfies_schema(text):
    value = json.loads(text)
    assert list(value) == ["name", "age", "kind"]
    assert len(value["name"]) <= 8
    assert type(value["age"]) is int
    assert 3 <= value["age"] <= 99
    assert value["kind"] in ("cat", "dog", "狐")


PROMPTS = ["Once upon a time", "Tell me a story", "One windy day", "Hello", "日本"]


@pytest.mark.parametrize("temperature", [0.0, 0.8, 3.0])
def test_a_json_schema_is_satisfied_at_every_temperature(llm, temperature):
    outputs = generate(llm, PROMPTS, params({"json": SCHEMA}, temperature=temperature))
    for output in outputs:
        assert output.outputs[0].finish_reason == "stop"
        assert_satisfies_schema(output.outputs[0].text)


def test_white_space_is_allowed_by_default_and_does_not_go_on_for_ever(llm):
    constraint = StructuredOutputsParams(json=json.dumps(SCHEMA))
    (output,) = generate(llm, PROMPTS[:1], params(constraint, temperature=0.0, max_tokens=400))
    assert_satisfies_schema(output.outputs[0].text)
    assert re.search(r"\s", output.outputs[0].text)


def test_any_json_object_parses(llm):
    outputs = generate(llm, PROMPTS, params({"json_object": True}, max_tokens=300))
    ended = [o.outputs[0].text for o in outputs if o.outputs[0].finish_reason == "stop"]
    assert ended
    assert all(isinstance(json.loads(text), dict) for text in ended)


def test_a_regex_matches_the_whole_output(llm):
    pattern = r"(\d{3}-){1,2}[a-f]{4,9}é"
    (output,) = generate(llm, PROMPTS[:1], params({"regex": pattern}, n=6))
    for completion in output.outputs:
        assert completion.finish_reason == "stop"
        assert re.fullmatch(pattern, completion.text)
    assert len({completion.text for completion in output.outputs}) > 1


def test_a_choice_is_one_of_its_texts(llm):
    choices = ["the cat", "the dog", "the caterpillar", "q"]
    (output,) = generate(llm, PROMPTS[:1], params({"choice": choices}, n=8, temperature=4.0))
    texts = {completion.text for completion in output.outputs}
    assert texts <= set(choices)
    assert len(texts) > 1


def test_a_lark_grammar_is_followed(llm):
    grammar = 'start: sum\nsum: NUMBER ("+" NUMBER){2}\nNUMBER: /[0-9]{1,2}/\n'
    (output,) = generate(llm, PROMPTS[:1], params({"grammar": grammar}, n=4))
    assert all(re.fullmatch(r"\d\d?(\+\d\d?){2}", each.text) for each in output.outputs)


def test_classic_and_dict_spellings_mean_the_same(llm):
    spelled = [
        params({"choice": ["fox", "hen"]}),
        params(None, structured_outputs={"choice": ["fox", "hen"]}),
        params(None, guided_choice=["fox", "hen"], structured_outputs=None),
    ]
    outputs = generate(llm, ["Hello"] * 3, spelled)
    assert len({o.outputs[0].text for o in outputs}) == 1
    assert outputs[0].outputs[0].text in ("fox", "hen")


def test_free_rows_beside_constrained_ones_are_what_they_are_alone(llm):
    free = SamplingParams(temperature=0.7, seed=9, max_tokens=30, logprobs=2)
    mixed = [free, params({"json": SCHEMA}), free, params({"regex": "[xyz]{20}"}), free]
    alone = [generate(llm, [prompt], [p])[0] for prompt, p in zip(PROMPTS, mixed, strict=True)]
    together = generate(llm, PROMPTS, mixed)
    assert [o.outputs for o in together] == [o.outputs for o in alone]
    assert_satisfies_schema(together[1].outputs[0].text)


def test_preempted_requests_return_what_they_would_have(llm):
    """The place in the grammar survives the loss of all blocks."""
    asked = [params({"json": SCHEMA}, seed=i, n=1 + i % 2) for i in range(6)]
    asked[2] = params({"regex": "[a-m]{60}"}, n=2)
    prompts = [[7 + i] * 20 for i in range(6)]
    expected = generate(llm, prompts, asked)
    size = llm.llm_engine.parts.kv_size
    block_bytes = size.num_bytes // size.num_blocks
    with LLM(
        "demo", kv_cache_memory_bytes=20 * block_bytes, max_num_seqs=16, max_model_len=256
    ) as tight:
        outputs = generate(tight, prompts, asked)
        assert tight.stats()["num_preemptions"] > 0
    assert [output.outputs for output in outputs] == [output.outputs for output in expected]


def test_every_beam_satisfies_its_constraint(llm):
    search = {"temperature": 0.0, "seed": None, "use_beam_search": True, "best_of": 5, "n": 5}
    asked = [params({"regex": "(fox|hen){2,4}[a-d]"}, **search), params({"json": SCHEMA})]
    beams, sampled = generate(llm, PROMPTS[:2], asked)
    texts = [completion.text for completion in beams.outputs]
    assert all(re.fullmatch("(fox|hen){2,4}[a-d]", text) for text in texts)
    assert len(set(texts)) > 1
    assert_satisfies_schema(sampled.outputs[0].text)


def test_ids_alone_are_constrained_too(llm):
    (output,) = generate(llm, PROMPTS[:1], params({"choice": ["fox"]}, detokenize=False))
    assert output.outputs[0].text == ""
    assert (
        llm.get_tokenizer().decode(output.outputs[0].token_ids, skip_special_tokens=True) == "fox"
    )


def test_a_stop_string_may_cut_a_constrained_output(llm):
    (output,) = generate(llm, PROMPTS[:1], params({"regex": "[ab]{3}-[ab]{3}"}, stop="-"))
    assert re.fullmatch("[ab]{3}", output.outputs[0].text)
    assert output.outputs[0].stop_reason == "-"


def test_a_stream_of_a_constrained_request_adds_up_to_its_output(llm):
    stream = llm.stream("Hello", params({"json": SCHEMA}))
    text = "".join(delta.text for delta in stream)
    assert text == stream.output.outputs[0].text
    assert_satisfies_schema(text)


def test_what_leaves_no_token_ends_that_request_alone_with_an_error(llm):
    impossible = params({"regex": "[xy]{9}"}, allowed_token_ids=[40, 41])
    failed, fine = generate(llm, PROMPTS[:2], [impossible, params({"choice": ["fox"]})])
    assert failed.outputs[0].finish_reason == "error"
    assert "no token is left" in failed.error
    assert fine.outputs[0].text == "fox"


def test_a_grammar_that_gets_stuck_ends_its_request_alone_with_a_message(llm):
    grammar = 'start: (("a"{1,1000}){1,1000}){1,1000}'
    stuck = params({"grammar": grammar}, min_tokens=400, max_tokens=500)
    failed, fine = generate(llm, PROMPTS[:2], [stuck, params({"choice": ["fox"]})])
    assert failed.outputs[0].finish_reason == "error"
    assert failed.error.startswith("the grammar cannot go on: ")
    assert fine.outputs[0].text == "fox"


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        ({"regex": "(a"}, r"prompts\[1\]: structured_outputs.regex: unclosed group"),
        ({"json": {"type": "nothing"}}, r"prompts\[1\]: structured_outputs.json: .*nothing"),
        ({"json": {"$ref": "#"}}, r"prompts\[1\]: structured_outputs.json: no token .* can follow"),
        ({"grammar": "root ::= 'a'"}, r"structured_outputs.grammar: line 1 .* got '\\''"),
        ({"structural_tag": "{"}, r"structured_outputs.structural_tag: .* is not JSON"),
    ],
)
def test_a_grammar_that_cannot_be_compiled_is_refused_before_anything_starts(
    llm, constraint, message
):
    before = llm.stats()["num_requests"]
    with pytest.raises(ValueError, match=message):
        generate(llm, PROMPTS[:2], [params({"choice": ["a"]}), params(constraint)])
    assert llm.stats()["num_requests"] == before


def test_a_dict_with_an_unknown_key_is_refused_by_name(llm):
    with pytest.raises(UnknownParameterError, match="'whitespace_pattern'"):
        generate(llm, PROMPTS[:1], params(None, structured_outputs={"json": "{}", "whitespace": 1}))


def test_equal_constraints_share_a_grammar_and_the_cache_is_bounded(llm, monkeypatch):
    monkeypatch.setattr("pagedkv.grammars.MAX_GRAMMARS", 3)
    cache = llm.llm_engine.parts.grammars
    first = cache.grammar(StructuredOutputsParams(choice=["x"]).constraint())
    assert cache.grammar(StructuredOutputsParams(choice=("x",)).constraint()) is first
    for i in range(5):
        cache.grammar(StructuredOutputsParams(choice=[f"x{i}"]).constraint())
        assert len(cache) <= 3
    assert cache.grammar(StructuredOutputsParams(choice=["x"]).constraint()) is not first
    monkeypatch.setattr("pagedkv.grammars.MAX_GRAMMAR_BYTES", 1)
    assert cache.grammar(StructuredOutputsParams(choice=["z"]).constraint()).num_bytes > 1
    assert len(cache) == 0
