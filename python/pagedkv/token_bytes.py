"""From a tokenizer to the bytes of its tokens, if a table can say exactly what it decodes to."""

from __future__ import annotations

import json
import logging
import random
from typing import TYPE_CHECKING, Any

from pagedkv._core import TokenTable

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)

_PROBE_LENGTH = 64
_PROBE_TEXTS = (
    "Hello, world! It's  3.14 (or so) .\n\n\tdef f(x): return x ** 2 # don't , we 've , n't\r\n",
    " leading and trailing ",
    "naïve café Straße Ελληνικά русский עברית العربية हिन्दी ไทย 한국어 日本語 中文",
    (
        "\N{WOMAN}\N{ZERO WIDTH JOINER}\N{PERSONAL COMPUTER}\N{REGIONAL INDICATOR SYMBOL LETTER D}"
        "\N{REGIONAL INDICATOR SYMBOL LETTER E}\N{WAVING HAND SIGN}"
        "\N{EMOJI MODIFIER FITZPATRICK TYPE-4} e\N{COMBINING ACUTE ACCENT} \ufffd \ufeff \u2028 \x00"
    ),
)


class _NotTabulableError(Exception):
    """A tokenizer's decode is not a function of its tokens' bytes; the message says why."""


def derive_token_table(hf_tokenizer: Any) -> TokenTable | None:
    """Tabulates a transformers tokenizer and checks the table against its ``decode``.

    The check decodes every token and some text with both, with and without special tokens; a
    single difference means no table, so that text is never silently wrong.

    Args:
        hf_tokenizer: a transformers tokenizer.

    Returns:
        The table, or None if the tokenizer has to decode by itself (WordPiece, CTC, ``</w>``
        suffixes, clean-up of spaces, tokenizers without a Rust backend).
    """
    name = type(hf_tokenizer).__name__
    try:
        table = _build_table(hf_tokenizer)
        _verify(table, hf_tokenizer)
    except _NotTabulableError as error:
        logger.info("%s decodes its text itself: %s", name, error)
        return None
    except Exception:  # whatever a foreign tokenizer raises, it can still decode its text itself
        logger.info("%s decodes its text itself: it cannot be read", name, exc_info=True)
        return None
    return table


def has_clean_up(hf_tokenizer: Any) -> bool:
    """Whether ``decode`` edits spaces before punctuation, so that later text changes earlier."""
    if not getattr(hf_tokenizer, "clean_up_tokenization_spaces", False):
        return False
    backend = getattr(hf_tokenizer, "backend_tokenizer", None)
    is_exempt = backend is not None and type(backend.model).__name__ == "BPE"
    forced = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
    return not is_exempt or bool(getattr(hf_tokenizer, forced, False))


def _build_table(hf_tokenizer: Any) -> TokenTable:
    backend = getattr(hf_tokenizer, "backend_tokenizer", None)
    if backend is None:
        msg = "it has no Rust backend"
        raise _NotTabulableError(msg)
    if has_clean_up(hf_tokenizer):
        msg = "clean_up_tokenization_spaces is on"
        raise _NotTabulableError(msg)
    if backend.decoder is None:
        msg = "it has no decoder"
        raise _NotTabulableError(msg)
    tokens = _token_strings(backend)
    added = backend.get_added_tokens_decoder().values()
    special = {token.content for token in added if token.special}
    stages = _flatten(json.loads(backend.decoder.__getstate__()))
    match stages:
        case [{"type": "ByteLevel"}] | [{"type": "ByteLevel"}, {"type": "Fuse"}]:
            return TokenTable.byte_level(tokens, special_tokens=special)
        case [{"type": "Metaspace", "replacement": marker, "prepend_scheme": scheme}]:
            loses_marker = scheme != "never"
            return TokenTable.metaspace(
                tokens, special_tokens=special, marker=marker, first_loses_marker=loses_marker
            )
        case _:
            replacements, has_byte_tokens, strip = _read_fallback_stages(stages)
            return TokenTable.byte_fallback(
                tokens,
                special_tokens=special,
                replacements=replacements,
                has_byte_tokens=has_byte_tokens,
                strip=strip,
            )


def _token_strings(backend: Any) -> list[str | None]:
    """The string of each id as ``decode`` looks it up; ids may have holes."""
    size = backend.get_vocab_size(with_added_tokens=True)
    tokens = [backend.id_to_token(token_id) for token_id in range(size)]
    if None in tokens:
        end = max(2 * size, *backend.get_added_tokens_decoder(), 0) + 1
        tokens += [backend.id_to_token(token_id) for token_id in range(size, end)]
        while tokens and tokens[-1] is None:
            tokens.pop()
    return tokens


def _flatten(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    """The stages of a decoder, nested sequences opened."""
    if decoder["type"] != "Sequence":
        return [decoder]
    return [stage for inner in decoder["decoders"] for stage in _flatten(inner)]


def _read_fallback_stages(
    stages: list[dict[str, Any]],
) -> tuple[list[tuple[str, str]], bool, tuple[str, int] | None]:
    """Reads ``Replace* ByteFallback? (Fuse Strip?)?``; raises for any other order."""
    rest = list(stages)
    replacements = []
    while rest and rest[0]["type"] == "Replace" and "String" in rest[0]["pattern"]:
        stage = rest.pop(0)
        replacements.append((stage["pattern"]["String"], stage["content"]))
    has_byte_tokens = bool(rest) and rest[0]["type"] == "ByteFallback"
    if has_byte_tokens:
        rest.pop(0)
    strip = None
    if rest and rest[0]["type"] == "Fuse":
        rest.pop(0)
        if rest and rest[0]["type"] == "Strip" and rest[0]["stop"] == 0:
            stage = rest.pop(0)
            strip = (stage["content"], stage["start"])
    if rest:
        order = ", ".join(stage["type"] for stage in stages)
        msg = f"its decoder is {order}"
        raise _NotTabulableError(msg)
    return replacements, has_byte_tokens, strip


def _verify(table: TokenTable, hf_tokenizer: Any) -> None:
    for probe in _text_probes(table, hf_tokenizer):
        for skip in (True, False):
            _compare(table, hf_tokenizer, probe, skip_special_tokens=skip)
    for probe in _token_probes(table):
        _compare(table, hf_tokenizer, probe, skip_special_tokens=False)


def _compare(
    table: TokenTable, hf_tokenizer: Any, probe: list[int], *, skip_special_tokens: bool
) -> None:
    expected = hf_tokenizer.decode(probe, skip_special_tokens=skip_special_tokens)
    if table.decode(probe, skip_special_tokens=skip_special_tokens) != expected:
        msg = f"its decode of {probe[:8]}... differs from the table's"
        raise _NotTabulableError(msg)


def _text_probes(table: TokenTable, hf_tokenizer: Any) -> Iterator[list[int]]:
    """Ids of text, of special tokens among others, and runs of byte tokens."""
    for text in _PROBE_TEXTS:
        ids = hf_tokenizer.encode(text, add_special_tokens=False)
        yield ids
        yield ids[len(ids) // 2 :]
        yield hf_tokenizer.encode(text)
    draw = random.Random(0)  # fixed: the same tokenizer always gets the same answer
    every_id = range(len(table))
    for token_id in every_id:
        if table.is_special(token_id):
            yield [draw.choice(every_id), token_id, draw.choice(every_id), token_id]
    spelled = [hf_tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in range(256)]
    if None in spelled or len(set(spelled)) < len(spelled):
        return
    for text in _PROBE_TEXTS:
        run = [spelled[byte] for byte in text.encode()]
        yield run
        yield run[1:]
        yield [*run[:40], draw.choice(every_id), *run[40:], spelled[0xE2]]
    for _ in range(16):
        yield draw.choices(spelled, k=6)


def _token_probes(table: TokenTable) -> Iterator[list[int]]:
    """Every id once, with neighbours from all over the vocabulary."""
    num_probes = -(-len(table) // _PROBE_LENGTH)
    for start in range(num_probes):
        yield list(range(start, len(table), num_probes))
