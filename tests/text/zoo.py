"""Tokenizers of every kind, built in memory."""

import functools
import json

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from pagedkv.tokenizer import Tokenizer as PagedTokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog. It's a test, isn't it?",
    "naïve café, Straße, русский текст, 日本語 と 中文, שלום עולם",
    "emoji 👩‍💻 🇩🇪 and e\u0301 combining",
] * 4
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def byte_level():
    """GPT-2's kind, with a special token, and an added token that holds a space."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        initial_alphabet=alphabet,
        vocab_size=400,
        special_tokens=["<s>", "</s>", "<unk>"],
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_tokens([AddedToken("<added Ġ token>", special=False)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)


def _sentencepiece_bpe(decoder, normalizer):
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=200, min_frequency=2, show_progress=False)
    )
    model = json.loads(trained.to_str())["model"]
    first = ["<unk>", "<s>", "</s>", *BYTE_TOKENS]
    pieces = sorted(model["vocab"], key=model["vocab"].get)
    vocab = {token: index for index, token in enumerate([*first, *pieces])}
    merges = [tuple(pair) for pair in model["merges"]]
    bpe = models.BPE(vocab, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    backend = Tokenizer(bpe)
    backend.normalizer = normalizer
    backend.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)


def llama_style():
    """Byte fallback; the start of a text loses one space."""
    return _sentencepiece_bpe(
        decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        ),
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
    )


def gemma_style():
    """Byte fallback; the start of a text loses nothing."""
    return _sentencepiece_bpe(
        decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
        normalizers.Replace(" ", "▁"),
    )


def unigram_metaspace(**options):
    """T5's kind: no byte fallback, a Metaspace decoder."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150,
        special_tokens=["<unk>", "<s>", "</s>"],
        unk_token="<unk>",
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL, **options)


def unigram_clean_up():
    """A tokenizer whose decode edits spaces before punctuation."""
    return unigram_metaspace(clean_up_tokenization_spaces=True)


def word_piece():
    """BERT's kind: the decoder joins by rules."""
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=200, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)


def suffix_bpe():
    """The first GPT's kind: `</w>` ends a word."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=200,
        end_of_word_suffix="</w>",
        special_tokens=["<unk>", "<s>", "</s>"],
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)


class ByteTokenizer(PreTrainedTokenizer):
    """A tokenizer written in Python: one token per byte, behind three special ones."""

    @property
    def vocab_size(self):
        return 259

    def get_vocab(self):
        return {"<unk>": 0, "<s>": 1, "</s>": 2} | {
            token: index for index, token in enumerate(BYTE_TOKENS, start=3)
        }

    def _tokenize(self, text):
        return [BYTE_TOKENS[byte] for byte in text.encode()]

    def _convert_token_to_id(self, token):
        return self.get_vocab().get(token, 0)

    def _convert_id_to_token(self, index):
        return (["<unk>", "<s>", "</s>", *BYTE_TOKENS])[index]

    def convert_tokens_to_string(self, tokens):
        parts = [
            bytes([int(token[3:5], 16)]) if token in BYTE_TOKENS else token.encode()
            for token in tokens
        ]
        return b"".join(parts).decode(errors="replace")


def python_only():
    """A tokenizer without a Rust backend."""
    return ByteTokenizer(**SPECIAL)


TABULATED = ("byte_level", "llama_style", "gemma_style", "unigram_metaspace")
FALLBACK = ("unigram_clean_up", "word_piece", "suffix_bpe", "python_only")


@functools.cache
def tokenizer(kind: str) -> PagedTokenizer:
    """The wrapper around one of the functions above."""
    return PagedTokenizer(globals()[kind]())
