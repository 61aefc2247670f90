"""Structural tags of a whole engine: free text, and parts that are what their trigger calls for."""

import json
import re

import pytest

from pagedkv import LLM, SamplingParams

CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 6},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER = {"begin": "<f=weather>", "schema": CITY, "end": "</f>"}
TIME = {"begin": "<f=time>", "schema": {"enum": ["now", "then"]}, "end": "</f>"}
TAG = re.compile(r"<f=(weather|time)>(.*?)</f>", re.DOTALL)


def as_format(tag):
    content = {"type": "json_schema", "json_schema": tag["schema"]}
    return {"type": "tag", "begin": tag["begin"], "content": content, "end": tag["end"]}


def triggered(**flags):
    tags = [as_format(WEATHER), as_format(TIME)]
    return {"type": "triggered_tags", "triggers": ["<f="], "tags": tags, **flags}


@pytest.fixture(scope="module")
def llm():
    with LLM("demo", kv_cache_memory_bytes=32 << 20, max_num_seqs=16) as llm:
        yield llm
        assert llm.stats()["num_used_blocks"] == 0


def generate(llm, tag, prompt="Once upon a time", *, compact=True, **others):
    structured_outputs = {"structural_tag": tag, "disable_any_whitespace": compact}
    params = {"temperature": 0.9, "seed": 5, "max_tokens": 120, **others}
    asked = SamplingParams(structured_outputs=structured_outputs, **params)
    (output,) = llm.generate(prompt, asked, use_tqdm=False)
    return output.outputs


def calls_of(text):
    """The calls in a text; everything behind a trigger is one."""
    calls = TAG.findall(text)
    for name, content in calls:
        value = json.loads(content)
        if name == "time":
            assert value in ("now", "then")
        else:
            assert list(value) == ["city", "days"]
            assert len(value["city"]) <= 6
            assert type(value["days"]) is int
            assert 1 <= value["days"] <= 9
    assert "<f=" not in TAG.sub("", text)
    return calls


def test_free_text_without_a_trigger_is_what_it_is_without_a_constraint(llm):
    tag = {"type": "structural_tag", "structures": [WEATHER, TIME], "triggers": ["<f="]}
    asked = {"temperature": 0.0, "max_tokens": 30}
    (constrained,) = generate(llm, json.dumps(tag), **asked)
    (free,) = llm.generate("Once upon a time", SamplingParams(**asked), use_tqdm=False)
    assert constrained.text == free.outputs[0].text
    assert constrained.text


def test_a_trigger_that_the_model_writes_calls_for_its_structure_each_time(llm):
    """The model likes to write "was" and a name; whenever it does, a call or a number has to follow."""
    was = {"begin": "was<", "schema": CITY, "end": ">"}
    name = {"begin": "named ", "schema": {"type": "integer"}, "end": ","}
    tag = {"type": "structural_tag", "structures": [was, name], "triggers": ["was", "named"]}
    outputs = generate(llm, tag, n=8, max_tokens=200)
    ended = [completion.text for completion in outputs if completion.finish_reason == "stop"]
    assert len(ended) > 2
    num_calls = 0
    for text in ended:
        for part in re.split("(?=was|named)", text)[1:]:
            if part.startswith("named"):
                assert re.match(r"named -?\d+,", part)
                continue
            value = json.loads(re.match(r"was<(.*?)>", part, re.DOTALL).group(1))
            assert list(value) == ["city", "days"]
            num_calls += 1
    assert num_calls > 2


@pytest.mark.parametrize("spelled", [json.dumps, lambda tag: tag])
def test_at_least_one_forces_a_tag_and_the_text_around_it_is_free(llm, spelled):
    tag = spelled({"type": "structural_tag", "format": triggered(at_least_one=True)})
    outputs = generate(llm, tag, n=8)
    for completion in outputs:
        assert completion.text.startswith("<f=")
        first = TAG.match(completion.text)
        assert first
        assert calls_of(first.group())
    assert len({completion.text for completion in outputs}) > 1
    assert any(TAG.sub("", completion.text).strip() for completion in outputs)


def test_stop_after_first_ends_the_output_with_the_tag(llm):
    flags = {"at_least_one": True, "stop_after_first": True}
    for completion in generate(llm, {"format": triggered(**flags)}, n=8):
        assert completion.finish_reason == "stop"
        assert TAG.fullmatch(completion.text)
        assert calls_of(completion.text)


def test_white_space_of_inner_schemas_follows_the_options(llm):
    tag = {"format": as_format(WEATHER)}
    spaced = generate(llm, tag, compact=False, n=8)
    assert any(re.search(r">\s|[,:{]\s", completion.text) for completion in spaced)
    assert all(calls_of(completion.text) for completion in spaced)
    constraint = {"structural_tag": tag, "whitespace_pattern": "~~~"}
    asked = SamplingParams(seed=1, max_tokens=120, n=8, structured_outputs=constraint)
    (output,) = llm.generate("Hello", asked, use_tqdm=False)
    texts = [re.sub(r'"[^"]*"', '""', completion.text) for completion in output.outputs]
    assert any("~~~" in text for text in texts)
    assert all("~" not in text.replace("~~~", "") for text in texts)


def test_formats_nest_and_reasoning_comes_before_the_call(llm):
    think = {"type": "tag", "begin": "<t>", "content": {"type": "any_text"}, "end": [".", "!"]}
    number = {"type": "regex", "pattern": "[0-9]{3}"}
    tag = {
        "format": {
            "type": "sequence",
            "elements": [
                think,
                {"type": "const_string", "value": " #"},
                {"type": "repeat", "content": number, "min": 1, "max": 2},
                {
                    "type": "or",
                    "elements": [{"type": "const_string", "value": "!"}, as_format(TIME)],
                },
            ],
        }
    }
    outputs = generate(llm, tag, n=8)
    ended = [completion.text for completion in outputs if completion.finish_reason == "stop"]
    assert ended
    for text in ended:
        whole = r'<t>[^.!]*[.!] #(\d{3}){1,2}(!|<f=time>"(now|then)"</f>)'
        assert re.fullmatch(whole, text, re.DOTALL)


def test_tags_with_separator_and_gbnf_inside_a_tag(llm):
    grammar = 'root ::= "(" root ")" | [a-c]{1,3}'
    deep = {"begin": "<d>", "content": {"type": "grammar", "grammar": grammar}, "end": "</d>"}
    separated = {"type": "tags_with_separator", "tags": [deep, as_format(TIME)], "separator": ";"}
    outputs = generate(llm, {"format": separated | {"at_least_one": True}}, n=8)
    ended = [completion.text for completion in outputs if completion.finish_reason == "stop"]
    assert ended
    for text in ended:
        for part in text.split(";"):
            if part.startswith("<f"):
                assert calls_of(part)
                continue
            opened, inner, closed = re.fullmatch(r"<d>(\(*)([abc]{1,3})(\)*)</d>", part).groups()
            assert inner
            assert len(opened) == len(closed)


def test_beams_and_stop_strings_work_in_a_tag(llm):
    tag = {"format": triggered(at_least_one=True, stop_after_first=True)}
    search = {"temperature": 0.0, "seed": None, "use_beam_search": True, "best_of": 4, "n": 4}
    beams = generate(llm, tag, **search)
    assert all(TAG.fullmatch(completion.text) for completion in beams)
    assert len({completion.text for completion in beams}) == 4
    (stopped,) = generate(llm, tag, stop=["</f"])
    assert stopped.stop_reason == "</f"
    assert calls_of(stopped.text + "</f>")


def test_special_tokens_are_no_text_of_a_tag(llm):
    """A tag that spells a special token is written in ordinary tokens, so that it stays in the text."""
    special = llm.get_tokenizer().eos_token
    tag = {"format": {"type": "const_string", "value": f"{special}x"}}
    (completion,) = generate(llm, tag)
    assert completion.text == f"{special}x"


@pytest.mark.parametrize(
    ("tag", "message"),
    [
        ({"structures": [WEATHER], "triggers": ["<g"]}, r"triggers\[0\] \"<g\" begins no tag"),
        ({"structures": [WEATHER], "triggers": []}, "triggers is empty; give at least one"),
        ({"format": {"type": "token", "token": 3}}, 'format.type "token" is not supported; use'),
        ({"format": {"type": "any_text", "maximum": 3}}, "format.maximum is unknown; leave it out"),
        ({"structures": [WEATHER | {"schema": {"type": "x"}}], "triggers": ["<f"]}, '"x"|x'),
    ],
)
def test_a_mistake_is_refused_before_anything_starts(llm, tag, message):
    before = llm.stats()["num_requests"]
    with pytest.raises(ValueError, match=message) as raised:
        generate(llm, tag)
    assert str(raised.value).startswith("prompts[0]: structured_outputs.structural_tag: ")
    assert llm.stats()["num_requests"] == before
