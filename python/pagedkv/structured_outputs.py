"""What constrains an output: a JSON schema, a regular expression, a list of choices, a grammar or a structural tag."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from pagedkv.field_dicts import of_fields
from pagedkv.sampling_checks import checked_text

OWNER = "StructuredOutputsParams"
KINDS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")

GrammarKind: TypeAlias = Literal["json", "regex", "choice", "grammar", "structural_tag"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """A constraint in the one shape in which it is compiled; equal ones share a grammar.

    Attributes:
        kind: what ``texts`` is.
        texts: the schema or structural tag as JSON text, the expression or the grammar; of "choice", every text.
        any_whitespace: white space may stand between tokens of JSON.
        whitespace_pattern: what may stand there instead.
        additional_properties: objects may have properties that their schema does not name, where it does not say.
    """

    kind: GrammarKind
    texts: tuple[str, ...]
    any_whitespace: bool = True
    whitespace_pattern: str | None = None
    additional_properties: bool = True


@dataclass(kw_only=True)
class StructuredOutputsParams:
    """What an output must look like. Exactly one kind is given; None and False ask for nothing.

    The tokens of such an output always satisfy the constraint, up to where ``max_tokens``, a stop string or
    ``repetition_detection`` cuts it: an ending id is only sampled where the constraint is satisfied. Values are checked
    here and again when a request takes them, so a field may be reassigned.

    Attributes:
        json: a JSON schema: a dict, its text, or a pydantic model class.
        regex: a regular expression in the syntax of Rust's regex crate, without look-around and back-references; it
            matches the whole output.
        choice: texts, of which the output is one.
        grammar: a context-free grammar in llguidance's variant of Lark, or in GBNF (``root ::= ...``).
        json_object: True for any JSON object.
        structural_tag: text of any form between parts that have one: a dict or its JSON text, of ``structures`` and
            ``triggers`` or with a ``format`` (docs/structured_outputs.md).
        disable_any_whitespace: JSON without white space between its tokens; by default some spaces may stand there, or a
            new line and its indentation.
        disable_additional_properties: closes every object of a schema that does not say whether it is open.
        whitespace_pattern: a regular expression: what may stand between tokens of JSON.

    Raises:
        TypeError: a value of the wrong type.
        ValueError: no kind or several, or a value that cannot be.
    """

    json: str | Mapping[str, Any] | type | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | Mapping[str, Any] | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None

    def __post_init__(self) -> None:
        """Checks the values."""
        self.verify()

    @classmethod
    def of(cls, value: StructuredOutputsParams | Mapping[str, Any]) -> StructuredOutputsParams:
        """The same from a dict of the fields.

        Raises:
            UnknownParameterError: a key that is no field.
            TypeError: a value of the wrong type.
            ValueError: as for the class.
        """
        return of_fields(cls, value, name="structured_outputs")

    def verify(self) -> None:
        """Checks every field.

        Raises:
            TypeError: a value of the wrong type.
            ValueError: no kind or several, or a value that cannot be.
        """
        self.constraint()

    def constraint(self) -> Constraint:
        """The constraint in its one shape.

        Raises:
            TypeError: a value of the wrong type.
            ValueError: no kind or several, or a value that cannot be.
        """
        given = [kind for kind in KINDS if getattr(self, kind) not in (None, False)]
        if len(given) != 1:
            found = f"got {', '.join(given)}" if given else "got none"
            msg = f"{OWNER} takes exactly one of {', '.join(KINDS)}, {found}"
            raise ValueError(msg)
        self._verify_options(has_json=given[0] in ("json", "json_object", "structural_tag"))
        match given[0]:
            case "json":
                return self._json_constraint("json", _schema_text(self.json))
            case "json_object":
                if self.json_object is not True:
                    msg = f"json_object must be True or False, got {self.json_object!r}"
                    raise TypeError(msg)
                return self._json_constraint("json", '{"type": "object"}')
            case "choice":
                return Constraint(kind="choice", texts=_choices(self.choice))
            case "regex":
                return Constraint(kind="regex", texts=(checked_text("regex", self.regex),))
            case "grammar":
                return Constraint(kind="grammar", texts=(checked_text("grammar", self.grammar),))
            case _:
                return self._json_constraint("structural_tag", _tag_text(self.structural_tag))

    def _json_constraint(self, kind: GrammarKind, text: str) -> Constraint:
        return Constraint(
            kind=kind,
            texts=(text,),
            any_whitespace=not self.disable_any_whitespace,
            whitespace_pattern=self.whitespace_pattern,
            additional_properties=not self.disable_additional_properties,
        )

    def _verify_options(self, *, has_json: bool) -> None:
        for name in ("disable_any_whitespace", "disable_additional_properties"):
            if not isinstance(getattr(self, name), bool):
                msg = f"{name} must be True or False, got {getattr(self, name)!r}"
                raise TypeError(msg)
        if self.whitespace_pattern is None:
            return
        checked_text("whitespace_pattern", self.whitespace_pattern)
        if not has_json:
            msg = "whitespace_pattern is for json, json_object and structural_tag; leave it out"
            raise ValueError(msg)
        if self.disable_any_whitespace:
            msg = "whitespace_pattern and disable_any_whitespace contradict each other; keep one"
            raise ValueError(msg)


GuidedDecodingParams = StructuredOutputsParams
"""The earlier name of the class."""


def checked_structure(
    value: StructuredOutputsParams | Mapping[str, Any] | None,
) -> StructuredOutputsParams | None:
    """What a field ``structured_outputs`` holds, checked; None for no constraint.

    Raises:
        TypeError, ValueError: as for `StructuredOutputsParams.of`.
    """
    if value is None:
        return None
    params = StructuredOutputsParams.of(value)
    params.verify()
    return params


def _schema_text(schema: Any) -> str:
    if isinstance(schema, str):
        return checked_text("json", schema)
    if (derived := _derived_schema(schema)) is not None:
        schema = derived
    if not isinstance(schema, Mapping):
        msg = (
            f"json must be a schema (a dict or its text) or a pydantic model class, got {schema!r}"
        )
        raise TypeError(msg)
    return _json_text("json", schema)


def _tag_text(tag: Any) -> str:
    if isinstance(tag, str):
        return checked_text("structural_tag", tag)
    if not isinstance(tag, Mapping):
        msg = f"structural_tag must be a dict or its JSON text, got {tag!r}"
        raise TypeError(msg)
    return _json_text("structural_tag", tag)


def _derived_schema(value: Any) -> Any:
    """The schema of a pydantic model class; None of anything else."""
    if isinstance(value, type) and callable(derive := getattr(value, "model_json_schema", None)):
        return derive()
    return None


def _json_text(name: str, value: Mapping[str, Any]) -> str:
    """The JSON of a mapping, in which pydantic model classes stand for their schemas."""

    def default(inner: Any) -> Any:
        if (derived := _derived_schema(inner)) is not None:
            return derived
        if isinstance(inner, Mapping):
            return dict(inner)
        msg = f"{inner!r} is not JSON"
        raise TypeError(msg)

    try:
        return json.dumps(value, allow_nan=False, default=default)
    except RecursionError:
        msg = f"{name} is nested too deeply, or contains itself"
        raise ValueError(msg) from None
    except (TypeError, ValueError) as error:
        msg = f"{name} must be something that JSON can express: {error}"
        raise ValueError(msg) from error


def _choices(choices: Any) -> tuple[str, ...]:
    if isinstance(choices, str | bytes | Mapping) or not isinstance(choices, Sequence):
        msg = f"choice must be a list of texts, got {choices!r}"
        raise TypeError(msg)
    if not choices:
        msg = "choice is empty; give at least one text"
        raise ValueError(msg)
    return tuple(checked_text(f"choice[{i}]", choice) for i, choice in enumerate(choices))
