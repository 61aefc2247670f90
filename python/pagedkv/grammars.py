"""The compiled grammars of an engine."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from pagedkv._core import GrammarCompiler

if TYPE_CHECKING:
    from pagedkv._core import Grammar, TokenTable
    from pagedkv.structured_outputs import Constraint
    from pagedkv.tokenizer import Tokenizer

MAX_GRAMMARS = 64
MAX_GRAMMAR_BYTES = 256 << 20
COMPILE_SECONDS = 10


class GrammarCache:
    """Compiles constraints and keeps the grammars used last, for any number of threads.

    A grammar is compiled on a thread of its own; the caller waits, without holding up other threads.
    """

    def __init__(self, tokenizer: Tokenizer | None, *, vocab_size: int) -> None:
        """Holds no grammars; the trie of the tokens is built for the first one.

        Args:
            tokenizer: None without one; nothing can be compiled then.
            vocab_size: columns of the logits.
        """
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._compiler: GrammarCompiler | None = None
        self._compiler_lock = threading.Lock()
        self._lock = threading.Lock()
        self._grammars: OrderedDict[Constraint, Grammar] = OrderedDict()

    def __len__(self) -> int:
        """Grammars that are kept."""
        return len(self._grammars)

    def grammar(self, constraint: Constraint) -> Grammar:
        """Returns the grammar of a constraint, compiled if it is not there.

        Raises:
            ValueError: the tokenizer cannot be constrained, or the constraint cannot be compiled; the message says why.
        """
        with self._lock:
            grammar = self._grammars.get(constraint)
            if grammar is not None:
                self._grammars.move_to_end(constraint)
                return grammar
        try:
            grammar = _compile(self._ready_compiler(), constraint)
        except ValueError as error:
            msg = f"structured_outputs.{constraint.kind}: {error}"
            raise ValueError(msg) from error
        with self._lock:
            self._grammars[constraint] = grammar
            self._shrink()
        return grammar

    def _shrink(self) -> None:
        num_bytes = sum(grammar.num_bytes for grammar in self._grammars.values())
        while len(self._grammars) > MAX_GRAMMARS or num_bytes > MAX_GRAMMAR_BYTES:
            _, dropped = self._grammars.popitem(last=False)
            num_bytes -= dropped.num_bytes

    def _ready_compiler(self) -> GrammarCompiler:
        with self._compiler_lock:
            if self._compiler is None:
                self._compiler = GrammarCompiler(
                    self._table(), vocab_size=self._vocab_size, compile_seconds=COMPILE_SECONDS
                )
            return self._compiler

    def _table(self) -> TokenTable:
        if self._tokenizer is None:
            msg = "the engine has no tokenizer (skip_tokenizer_init=True)"
            raise ValueError(msg)
        if self._tokenizer.table is None:
            msg = f"the tokens of {self._tokenizer!r} have no fixed bytes, so that no grammar can be applied to them"
            raise ValueError(msg)
        return self._tokenizer.table


def _compile(compiler: GrammarCompiler, constraint: Constraint) -> Grammar:
    match constraint.kind:
        case "json" | "structural_tag":
            compile_json = (
                compiler.json_schema if constraint.kind == "json" else compiler.structural_tag
            )
            return compile_json(
                constraint.texts[0],
                any_whitespace=constraint.any_whitespace,
                whitespace_pattern=constraint.whitespace_pattern,
                additional_properties=constraint.additional_properties,
            )
        case "regex":
            return compiler.regex(constraint.texts[0])
        case "choice":
            return compiler.choice(list(constraint.texts))
        case "grammar":
            return compiler.grammar(constraint.texts[0])
