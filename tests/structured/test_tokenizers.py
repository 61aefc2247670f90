"""Grammars over tokenizers of every kind: the text is what the grammar says, whatever the tokens are."""

import re

import pytest

from pagedkv.tokenizer import Tokenizer
from structured.walker import Walker, compile_grammar
from text import zoo

KINDS = [zoo.byte_level, zoo.llama_style, zoo.gemma_style]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def tokenizer(request):
    return Tokenizer(request.param())


def walk(tokenizer, seed=0, *, num_padded_ids=5, **constraint):
    """Five sequences of one request, ids that the tokenizer does not have at the end of the vocabulary."""
    vocab_size = len(tokenizer.table) + num_padded_ids
    walker = Walker(tokenizer, vocab_size=vocab_size, seed=seed)
    grammar = compile_grammar(tokenizer, vocab_size, **constraint)
    walker.add(1, grammar, n=5, eos_token_ids=tokenizer.eos_token_ids)
    return walker, walker.run()[1]


PATTERN = r"(日本|é{1,3}|😀| a)x[0-9]{2,5}"


def test_texts_match_a_regex_that_is_not_ascii(tokenizer):
    for seed in range(4):
        walker, sequences = walk(tokenizer, seed, regex=PATTERN)
        assert not walker.failures
        assert {sequence.finish_reason for sequence in sequences} == {"stop"}
        for sequence in sequences:
            assert re.fullmatch(PATTERN, sequence.text), sequence.text


def test_special_and_absent_ids_are_never_allowed_but_for_ending_ids(tokenizer):
    table, eos = tokenizer.table, set(tokenizer.eos_token_ids)
    special = {token_id for token_id in range(len(table)) if table.is_special(token_id)} - eos
    assert len(special) >= 2
    for constraint in ({"regex": "(?s:.){20,30}"}, {"json": "{}"}, {"grammar": "start: /.+/"}):
        walker, _ = walk(tokenizer, **constraint)
        seen = set().union(*walker.allowed)
        assert len(seen) > 20
        assert not seen & special
        assert max(seen) < len(table)
        assert not [
            token_id for token_id in seen - eos if table.token_bytes(token_id) in (None, b"")
        ]


def test_an_ending_id_comes_where_the_text_may_end_and_nowhere_else(tokenizer):
    eos = tokenizer.eos_token_ids[0]
    walker, _ = walk(tokenizer, choice=["a", "ab"])
    assert eos not in walker.allowed[0]
    assert {frozenset([eos])} <= {frozenset(ids) for ids in walker.allowed}


def test_a_tokenizer_without_fixed_bytes_is_refused_by_name():
    tokenizer = Tokenizer(zoo.word_piece())
    with pytest.raises(ValueError, match="have no fixed bytes"):
        compile_grammar(tokenizer, 100, regex="a")
    with pytest.raises(ValueError, match="has no tokenizer"):
        compile_grammar(None, 100, regex="a")


def test_ids_beyond_the_logits_are_left_out(tokenizer):
    """A tokenizer may have more tokens than the model."""
    vocab_size = len(tokenizer.table) - 3
    walker = Walker(tokenizer, vocab_size=vocab_size)
    walker.add(1, compile_grammar(tokenizer, vocab_size, regex="(?s:.)+"), max_tokens=3)
    walker.run()
    assert max(max(ids) for ids in walker.allowed) < vocab_size
