"""A table is derived where it is exact, and nowhere else."""

import pytest
from tokenizers import Regex, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from pagedkv.token_bytes import derive_token_table
from text.zoo import FALLBACK, TABULATED, tokenizer

REPLACE = decoders.Replace("▁", " ")


@pytest.mark.parametrize("kind", TABULATED)
def test_tokenizers_with_fixed_bytes_are_tabulated(kind):
    """The fast path is taken by the kinds that nearly all causal models have."""
    table = tokenizer(kind).table
    assert table is not None
    assert len(table) == tokenizer(kind).vocab_size


@pytest.mark.parametrize("kind", FALLBACK)
def test_other_tokenizers_decode_their_text_themselves(kind):
    """What joins tokens by rules, edits spaces or has no Rust backend is not tabulated."""
    assert tokenizer(kind).table is None


class LyingTokenizer(PreTrainedTokenizerFast):
    """Decodes one token in a way of its own."""

    def _decode(self, token_ids, **options):
        return super()._decode(token_ids, **options).replace("fox", "FOX")


def test_a_single_difference_from_decode_means_no_table():
    """Text is never silently wrong: an overridden decode is noticed."""
    backend = tokenizer("byte_level").hf_tokenizer.backend_tokenizer
    assert "Ġfox" in backend.get_vocab()
    assert derive_token_table(PreTrainedTokenizerFast(tokenizer_object=backend)) is not None
    assert derive_token_table(LyingTokenizer(tokenizer_object=backend)) is None


@pytest.mark.parametrize(
    ("stages", "is_tabulated"),
    [
        ([REPLACE, decoders.ByteFallback(), decoders.Fuse()], True),
        ([decoders.Sequence([REPLACE, decoders.ByteFallback()]), decoders.Fuse()], True),
        ([REPLACE, decoders.Fuse(), decoders.Strip(" ", 1, 0)], True),
        ([REPLACE, decoders.Fuse(), decoders.Strip(" ", 3, 0)], True),
        ([REPLACE, decoders.Fuse(), decoders.Strip(" ", 0, 1)], False),
        ([REPLACE, decoders.Strip(" ", 1, 0), decoders.Fuse()], False),
        ([decoders.Replace(Regex("▁+"), " "), decoders.Fuse()], False),
        ([decoders.ByteFallback(), REPLACE, decoders.Fuse()], False),
        ([decoders.ByteLevel(), decoders.Fuse()], True),
        ([decoders.CTC()], False),
    ],
)
def test_decoder_stages_are_read_in_order(stages, is_tabulated):
    """Only orders of stages whose effect is known are tabulated."""
    vocab = {"▁a": 0, "b": 1, "▁▁": 2, "<0xE2>": 3, "<0x82>": 4, "<0xAC>": 5, "<unk>": 6}
    backend = Tokenizer(models.BPE(vocab, [], byte_fallback=True, unk_token="<unk>"))
    backend.decoder = decoders.Sequence(stages)
    table = derive_token_table(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert (table is not None) == is_tabulated


def test_ids_with_holes_are_found():
    """A vocabulary whose ids are not dense is read to its last id."""
    vocab = {"a": 0, "Ġb": 7, "c": 30}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="a"))
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<far>"])
    table = derive_token_table(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert table is not None
    found = {i: table.token_bytes(i) for i in range(len(table)) if table.token_bytes(i) is not None}
    assert {found[0], found[7]} == {b"a", b" b"}
    assert b"<far>" in found.values()


def test_a_table_is_compact_and_answers_for_every_id():
    """About the vocabulary's own bytes plus five per id; an id beyond it has no bytes."""
    wrapper = tokenizer("byte_level")
    table = wrapper.table
    own_bytes = sum(len(table.token_bytes(i)) for i in range(len(table)))
    assert table.num_bytes <= own_bytes + 5 * len(table)
    assert table.token_bytes(len(table)) is None
    assert not table.is_special(len(table))
    assert table.is_special(wrapper.hf_tokenizer.eos_token_id)
    assert repr(table).startswith("TokenTable(")
