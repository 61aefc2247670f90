"""What StructuredOutputsParams takes, refuses and means."""

import copy
import re

import pytest

from pagedkv import StructuredOutputsParams
from pagedkv.structured_outputs import Constraint


class Model:
    """What pydantic calls a model class."""

    @classmethod
    def model_json_schema(cls):
        return {"type": "object", "title": "Model"}


@pytest.mark.parametrize(
    ("arguments", "constraint"),
    [
        ({"json": '{"a": 1}'}, Constraint(kind="json", texts=('{"a": 1}',))),
        ({"json": {"enum": ["é"]}}, Constraint(kind="json", texts=('{"enum": ["\\u00e9"]}',))),
        ({"json": Model}, Constraint(kind="json", texts=('{"type": "object", "title": "Model"}',))),
        ({"json_object": True}, Constraint(kind="json", texts=('{"type": "object"}',))),
        ({"json_object": False, "regex": "a"}, Constraint(kind="regex", texts=("a",))),
        ({"choice": ["a", "b"]}, Constraint(kind="choice", texts=("a", "b"))),
        ({"grammar": "start: A"}, Constraint(kind="grammar", texts=("start: A",))),
        (
            {"structural_tag": '{"format": 1}'},
            Constraint(kind="structural_tag", texts=('{"format": 1}',)),
        ),
        (
            {"structural_tag": {"schema": Model}, "disable_any_whitespace": True},
            Constraint(
                kind="structural_tag",
                texts=('{"schema": {"type": "object", "title": "Model"}}',),
                any_whitespace=False,
            ),
        ),
        (
            {
                "json": "{}",
                "disable_any_whitespace": True,
                "disable_additional_properties": True,
            },
            Constraint(
                kind="json", texts=("{}",), any_whitespace=False, additional_properties=False
            ),
        ),
        (
            {"json": "{}", "whitespace_pattern": " "},
            Constraint(kind="json", texts=("{}",), whitespace_pattern=" "),
        ),
    ],
)
def test_every_kind_becomes_one_constraint(arguments, constraint):
    params = StructuredOutputsParams(**arguments)
    assert params.constraint() == constraint
    assert StructuredOutputsParams.of(arguments).constraint() == constraint
    assert StructuredOutputsParams.of(params) is params
    assert copy.deepcopy(params) == params


def recursive():
    schema = {}
    schema["items"] = schema
    return schema


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "takes exactly one of json, .*structural_tag, got none"),
        ({"json": "{}", "regex": "a"}, ValueError, "exactly one of .*, got json, regex"),
        ({"structural_tag": 3}, TypeError, "structural_tag must be a dict or its JSON text, got 3"),
        ({"structural_tag": ""}, ValueError, "structural_tag is empty"),
        ({"structural_tag": {"format": object()}}, ValueError, "that JSON can express"),
        ({"json": 3}, TypeError, "json must be a schema .* got 3"),
        ({"json": []}, TypeError, r"json must be a schema .* got \[\]"),
        ({"json": int}, TypeError, "pydantic model class, got <class 'int'>"),
        ({"json": ""}, ValueError, "json is empty"),
        ({"json": {"a": float("nan")}}, ValueError, "that JSON can express"),
        ({"json": {"a": object()}}, ValueError, "that JSON can express"),
        ({"json": recursive()}, ValueError, "that JSON can express|contains itself"),
        ({"json": {"const": "\ud800"}}, ValueError, None),
        ({"regex": 3}, TypeError, "regex must be a str, got 3"),
        ({"regex": ""}, ValueError, "regex is empty"),
        ({"regex": "\ud800"}, ValueError, "regex is not valid Unicode"),
        ({"choice": "abc"}, TypeError, "choice must be a list of texts, got 'abc'"),
        ({"choice": []}, ValueError, "choice is empty"),
        ({"choice": ["a", ""]}, ValueError, r"choice\[1\] is empty"),
        ({"choice": ["a", 1]}, TypeError, r"choice\[1\] must be a str"),
        ({"grammar": b"x"}, TypeError, "grammar must be a str"),
        ({"json_object": 2}, TypeError, "json_object must be True or False, got 2"),
        ({"regex": "a", "disable_any_whitespace": 1}, TypeError, "disable_any_whitespace must be"),
        (
            {"regex": "a", "whitespace_pattern": " "},
            ValueError,
            "is for json, json_object and structural_tag",
        ),
        (
            {"json": "{}", "whitespace_pattern": " ", "disable_any_whitespace": True},
            ValueError,
            "contradict each other",
        ),
    ],
)
def test_a_mistake_is_named(arguments, error, message):
    if message is None:
        # JSON writes a lone surrogate as an escape, which the compiler refuses.
        assert "ud800" in StructuredOutputsParams(**arguments).constraint().texts[0]
        return
    with pytest.raises(error) as raised:
        StructuredOutputsParams(**arguments)
    assert re.search(message, str(raised.value)), raised.value


def test_a_reassigned_field_is_checked_again():
    params = StructuredOutputsParams(regex="a")
    params.choice = ["b"]
    with pytest.raises(ValueError, match="got regex, choice"):
        params.verify()
    params.regex = None
    params.verify()
    assert params.constraint().kind == "choice"
