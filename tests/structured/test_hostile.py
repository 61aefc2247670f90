"""Grammars that are meant to hang or crash an engine, through the front door: each is refused or runs, others go on."""

import json

import pytest

from pagedkv import LLM, SamplingParams

# Values of `structured_outputs`, and what their refusal says; None where they run.
HOSTILE = {
    "deep 65": ({"json": '{"items":' * 64 + "{}" + "}" * 64}, "nesting"),
    "deep 30000": ({"json": '{"items":' * 30_000 + "{}" + "}" * 30_000}, "deep"),
    "enum 100k": ({"json": json.dumps({"enum": [f"choice {i}" for i in range(100_000)]})}, "bytes"),
    "remote": ({"json": {"$ref": "http://example.com/a.json"}}, "http"),
    "file": ({"json": {"$ref": "file:///etc/passwd"}}, "file"),
    "itself": ({"json": {"$ref": "#"}}, "can follow"),
    "maxLength": ({"json": {"type": "string", "maxLength": 10**6}}, None),
    "minItems": ({"json": {"type": "array", "minItems": 10**5}}, None),
    "multipleOf 0": ({"json": {"type": "number", "multipleOf": 0}}, "multiple of"),
    "minimum": ({"json": {"type": "integer", "minimum": 3, "maximum": 2}}, "minimum"),
    "surrogate": ({"json": {"const": "\ud800"}}, "not JSON"),
    "evil": ({"regex": "(a+)+$"}, None),
    "counts": ({"regex": "(a{1,1000}){1,1000}"}, None),
    "count": ({"regex": "a{1,10000000}"}, None),
    "parentheses": ({"regex": "(" * 30_000 + "a" + ")" * 30_000}, "bytes"),
    "look-around": ({"regex": "(?=a)b"}, "look"),
    "back-reference": ({"regex": r"(a)\1"}, "backreference"),
    "class": ({"regex": "[a"}, "unclosed"),
    "left recursion": ({"grammar": 'start: start "a" | "b"'}, None),
    "empty rule": ({"grammar": "start: a\na:\n"}, "empty text"),
    "endless": ({"grammar": "start: start"}, "can follow"),
    "never ends": ({"grammar": 'start: "a" start'}, None),
    "gbnf": ({"grammar": "root ::= " + "(" * 30_000}, "nesting of the grammar"),
    "gbnf doubling": (
        {
            "grammar": "root ::= r0\n"
            + "".join(f"r{i} ::= r{i + 1} r{i + 1}\n" for i in range(40))
            + 'r40 ::= "a"'
        },
        "too big",
    ),
    "gbnf counts": ({"grammar": 'root ::= (("a"{1,1000}){1,1000}){1,1000}'}, None),
    "gbnf endless": ({"grammar": "root ::= root"}, "line 1 .* rule root has no end"),
    "tag": ({"structural_tag": '{"format":' * 30_000}, "nested more than"),
    "tag schema": (
        {"structural_tag": {"format": {"type": "json_schema", "json_schema": {"$ref": "#"}}}},
        "can follow",
    ),
    "tag remote": (
        {
            "structural_tag": {
                "format": {"type": "json_schema", "json_schema": {"$ref": "http://a.b/c"}}
            }
        },
        "http",
    ),
    "tag text": (
        {"structural_tag": {"format": {"type": "any_text", "excludes": ["ab" * 10_000]}}},
        None,
    ),
    "tag ends": (
        {
            "structural_tag": {
                "format": {
                    "type": "tag",
                    "begin": "",
                    "content": {"type": "any_text"},
                    "end": [f"{i:05}" for i in range(50_000)],
                }
            }
        },
        "number of ends and triggers of free text",
    ),
    "tag schemas": (
        {
            "structural_tag": {
                "format": {
                    "type": "or",
                    "elements": [
                        {
                            "type": "json_schema",
                            "json_schema": {
                                "type": "object",
                                "properties": {f"a{i}": {"type": "integer"}},
                            },
                        }
                        for i in range(4000)
                    ],
                }
            }
        },
        "it is more than can be compiled",
    ),
    "choices": ({"choice": ["a"] * 1_000_000}, "number of choices"),
    "duplicates": ({"choice": ["a"] * 1000}, None),
}


@pytest.fixture(scope="module")
def llm():
    with LLM("demo", kv_cache_memory_bytes=32 << 20, max_num_seqs=8) as llm:
        yield llm


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_grammar_is_refused_or_runs_and_the_next_request_is_answered(llm, name):
    structured_outputs, message = HOSTILE[name]
    free = SamplingParams(temperature=0.0, max_tokens=6)
    hostile = SamplingParams(max_tokens=20, structured_outputs=structured_outputs)
    if message is None:
        outputs = llm.generate(["Hello", "Hello"], [hostile, free], use_tqdm=False)
        assert outputs[0].finished
        answer = outputs[1].outputs[0].text
    else:
        with pytest.raises(ValueError, match=message) as raised:
            llm.generate(["Hello", "Hello"], [free, hostile], use_tqdm=False)
        assert str(raised.value).startswith("prompts[1]: structured_outputs.")
        assert len(str(raised.value)) < 400
        (output,) = llm.generate("Hello", free, use_tqdm=False)
        answer = output.outputs[0].text
    (expected,) = llm.generate("Hello", free, use_tqdm=False)
    assert answer == expected.outputs[0].text
    assert llm.stats()["num_used_blocks"] == 0
