"""What constrains an output: a JSON schema, a regular expression, a list of choices or a grammar."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias

from pagedkv.errors import not_supported_yet, unknown_parameter
from pagedkv.sampling_checks import checked_text

OWNER = "StructuredOutputsParams"
KINDS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")

GrammarKind: TypeAlias = Literal["json", "regex", "choice", "grammar"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """A constraint in the one shape in which it is compiled; equal ones share a grammar.

    Attributes:
        kind: what ``texts`` is.
        texts: the schema as JSON text, the expression or the grammar; of "choice", every text.
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

    The tokens of such an output always satisfy the constraint, up to where ``max_tokens`` or a stop string cuts it: an
    ending id is only sampled where the constraint is satisfied. Values are checked here and again when a request takes
    them, so a field may be reassigned.

    Attributes:
        json: a JSON schema: a dict, its text, or a pydantic model class.
        regex: a regular expression in the syntax of Rust's regex crate, without look-around and back-references; it
            matches the whole output.
        choice: texts, of which the output is one.
        grammar: a context-free grammar in llguidance's variant of Lark.
        json_object: True for any JSON object.
        structural_tag: not supported yet.
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
    structural_tag: str | None = None
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
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            msg = f"structured_outputs must be a {OWNER} or a dict, got {value!r}"
            raise TypeError(msg)
        known = [field.name for field in fields(cls)]
        for name in value:
            if name not in known:
                raise unknown_parameter(OWNER, str(name), known)
        return cls(**value)

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
        self._verify_options(is_json=given[0] in ("json", "json_object"))
        match given[0]:
            case "json":
                return self._json_constraint(_schema_text(self.json))
            case "json_object":
                if self.json_object is not True:
                    msg = f"json_object must be True or False, got {self.json_object!r}"
                    raise TypeError(msg)
                return self._json_constraint('{"type": "object"}')
            case "choice":
                return Constraint(kind="choice", texts=_choices(self.choice))
            case "regex":
                return Constraint(kind="regex", texts=(checked_text("regex", self.regex),))
            case "grammar":
                return Constraint(kind="grammar", texts=(checked_text("grammar", self.grammar),))
            case _:
                raise not_supported_yet(OWNER, "structural_tag", self.structural_tag)

    def _json_constraint(self, schema: str) -> Constraint:
        return Constraint(
            kind="json",
            texts=(schema,),
            any_whitespace=not self.disable_any_whitespace,
            whitespace_pattern=self.whitespace_pattern,
            additional_properties=not self.disable_additional_properties,
        )

    def _verify_options(self, *, is_json: bool) -> None:
        for name in ("disable_any_whitespace", "disable_additional_properties"):
            if not isinstance(getattr(self, name), bool):
                msg = f"{name} must be True or False, got {getattr(self, name)!r}"
                raise TypeError(msg)
        if self.whitespace_pattern is None:
            return
        checked_text("whitespace_pattern", self.whitespace_pattern)
        if not is_json:
            msg = "whitespace_pattern is for json and json_object; leave it out"
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
    if isinstance(schema, type) and callable(derive := getattr(schema, "model_json_schema", None)):
        schema = derive()
    if not isinstance(schema, Mapping):
        msg = (
            f"json must be a schema (a dict or its text) or a pydantic model class, got {schema!r}"
        )
        raise TypeError(msg)
    try:
        text = json.dumps(schema, allow_nan=False)
    except RecursionError:
        msg = "json is nested too deeply, or contains itself"
        raise ValueError(msg) from None
    except (TypeError, ValueError) as error:
        msg = f"json must be a schema that JSON can express: {error}"
        raise ValueError(msg) from error
    return text


def _choices(choices: Any) -> tuple[str, ...]:
    if isinstance(choices, str | bytes | Mapping) or not isinstance(choices, Sequence):
        msg = f"choice must be a list of texts, got {choices!r}"
        raise TypeError(msg)
    if not choices:
        msg = "choice is empty; give at least one text"
        raise ValueError(msg)
    return tuple(checked_text(f"choice[{i}]", choice) for i, choice in enumerate(choices))
