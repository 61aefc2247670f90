"""Grammars in GBNF: what a whole engine generates under them is what they describe."""

import json
import re

import pytest

from pagedkv import LLM, SamplingParams

JSON = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws

object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws

array  ::=
  "[" ws (
            value
    ("," ws value)*
  )? "]" ws

string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  ){0,12} "\"" ws

number ::= ("-"? ([0-9] | [1-9] [0-9]{0,5})) ("." [0-9]{1,4})? ws

# Bounded, as models go on with it for as long as they may.
ws ::= | " " | "\n" [ \t]{0,20}
"""
# Every part may end in the line break that ends a sum.
SUMS = r"""
root ::= (sum "=" ws item "\n"){1,2}
sum  ::= item ([-+*/] item){0,2}
item ::= [0-9]{1,2} ws | "(" ws sum ")" ws
ws   ::= [ \n]*
"""


@pytest.fixture(scope="module")
def llm():
    with LLM("demo", kv_cache_memory_bytes=32 << 20, max_num_seqs=16) as llm:
        yield llm


def generate(llm, grammar, **others):
    params = {"temperature": 1.0, "seed": 2, "max_tokens": 150, "n": 8, **others}
    asked = SamplingParams(structured_outputs={"grammar": grammar}, **params)
    (output,) = llm.generate("Once upon a time", asked, use_tqdm=False)
    return output.outputs


def ended(outputs):
    return [completion.text for completion in outputs if completion.finish_reason == "stop"]


def test_json_of_a_recursive_grammar_parses(llm):
    texts = ended(generate(llm, JSON, n=12))
    assert len(texts) > 2
    values = [json.loads(text) for text in texts]
    assert all(isinstance(value, dict) for value in values)
    assert any(values)


def test_a_regular_grammar_matches_as_a_whole(llm):
    grammar = r"""
        root ::= (head "-"){2} tail?   # a comment
        head ::= [a-c]{1,4} | "x" .
        tail ::= [^a-z\n]{2,3} "\u00e9\x21"
    """.replace("\n        ", "\n")
    texts = ended(generate(llm, grammar))
    assert texts
    for text in texts:
        assert re.fullmatch(r"(([a-c]{1,4}|x.)-){2}([^a-z\n]{2,3}é!)?", text, re.DOTALL)


def test_parentheses_balance_in_left_and_right_recursion(llm):
    grammar = 'root ::= list\nlist ::= item | list "," item\nitem ::= [ab] | "(" list ")"'
    texts = ended(generate(llm, grammar, temperature=2.0))
    assert texts
    for text in texts:
        depth = 0
        for character in text:
            depth += {"(": 1, ")": -1}.get(character, 0)
            assert depth >= 0
        assert depth == 0
        assert re.fullmatch(r"[ab(),]+", text)
        assert not re.search(r"[ab(]\(|\)[ab(]|[ab]{2}|,,|\(,|,\)|\(\)", text.replace("((", "("))


def test_what_ends_a_part_may_also_go_on_with_it(llm):
    """White space must not take the line break for ever: then no sum would ever end."""
    texts = ended(generate(llm, SUMS, temperature=0.0, n=1, logit_bias=few_spaces(llm)))
    texts += ended(generate(llm, SUMS, temperature=2.0, logit_bias=few_spaces(llm)))
    assert len(texts) > 1
    for text in texts:
        assert re.fullmatch(r"(?s)([-0-9+*/() \n]+=[0-9+*/() \n-]*[\d)][ \n]*\n){1,2}", text)
        assert text.count("(") == text.count(")")


def few_spaces(llm):
    tokens = llm.get_tokenizer().encode(" ( \n", add_special_tokens=False)
    return dict.fromkeys(tokens, -6.0)


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ('start ::= "a"', "defines no rule root"),
        ('root ::= "a" b\n', "line 1 of the grammar: rule b is defined nowhere"),
        ('root ::= "a"\n\nroot ::= "b"', "line 3 of the grammar: rule root is defined in line 1"),
        ('root ::= "a', "line 1 of the grammar: expected '\"' that closes the literal"),
        ("root ::= <think>", "line 1 of the grammar: expected text; tokens cannot be named"),
    ],
)
def test_a_mistake_is_named_with_its_line(llm, grammar, message):
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        generate(llm, grammar)
    assert str(raised.value).startswith("prompts[0]: structured_outputs.grammar: ")
