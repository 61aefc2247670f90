"""Text as it streams equals the full decode, for every kind of tokenizer."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from text.zoo import FALLBACK, TABULATED, tokenizer

UNICODE = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.sampled_from(
        [
            "👩‍💻",
            "👨‍👩‍👧‍👦",
            "🇩🇪🇫🇷",
            "👋🏽",
            "e\u0301\u0323",
            "שלום \u200fעולם",
            "مرحبا",
            "日本語",
            "한국어",
            "ไทย",
            " ",
            "  \n\t",
            "\ufffd",
            "▁",
            "<0x41>",
            "don't . , ' n't",
            "The quick brown fox",
        ]
    ),
)
TEXTS = st.lists(UNICODE, max_size=6).map("".join)
PROMPTS = st.sampled_from(["", "dog", "The fox", "naïve 日本語 fox"])


def push_all(decoder, token_ids, **options):
    """Pushes tokens; returns the joined deltas. Checks that released text only grows."""
    joined = ""
    for token_id in token_ids:
        decoder.push(token_id, **options)
        assert decoder.text.startswith(joined), "released text changed"
        joined = decoder.text
    decoder.finish()
    assert decoder.text.startswith(joined), "released text changed at the end"
    return decoder.text


def rest_of_joint_decode(wrapper, prompt, token_ids, *, skip):
    """What the generated tokens add to the decode of the prompt."""
    before = wrapper.decode(prompt, skip_special_tokens=skip)
    joint = wrapper.decode([*prompt, *token_ids], skip_special_tokens=skip)
    assert joint.startswith(before)
    return joint[len(before) :]


@pytest.mark.parametrize("kind", [*TABULATED, *FALLBACK])
@given(text=TEXTS, prompt=PROMPTS, skip=st.booleans())
def test_deltas_of_encoded_text_join_to_the_full_decode(kind, text, prompt, skip):
    """Any Unicode text, generated after a prompt, streams without loss."""
    wrapper = tokenizer(kind)
    prompt_ids = wrapper.encode(prompt)
    ids = wrapper.encode(text, add_special_tokens=False)
    decoder = wrapper.make_text_decoder(prompt_ids, skip_special_tokens=skip)
    expected = rest_of_joint_decode(wrapper, prompt_ids, ids, skip=skip)
    assert push_all(decoder, ids) == expected


@pytest.mark.parametrize("kind", [*TABULATED, "word_piece", "suffix_bpe", "unigram_clean_up"])
@given(data=st.data(), prompt=PROMPTS, skip=st.booleans())
def test_deltas_of_random_ids_join_to_the_full_decode(kind, data, prompt, skip):
    """Random models emit random ids: invalid bytes, special tokens, ids beyond the vocabulary."""
    wrapper = tokenizer(kind)
    size = wrapper.vocab_size
    ids = data.draw(st.lists(st.integers(0, size + 4), max_size=30))
    prompt_ids = wrapper.encode(prompt)
    decoder = wrapper.make_text_decoder(prompt_ids, skip_special_tokens=skip)
    expected = rest_of_joint_decode(wrapper, prompt_ids, ids, skip=skip)
    assert push_all(decoder, ids) == expected


@pytest.mark.parametrize("kind", ["llama_style", "gemma_style", "byte_level"])
@given(data=st.data())
def test_lone_bytes_become_replacement_characters_as_in_the_full_decode(kind, data):
    """Runs of byte tokens that are nearly text, which uniform ids hardly ever make."""
    wrapper = tokenizer(kind)
    if kind == "byte_level":
        by_byte = {wrapper.table.token_bytes(i): i for i in range(wrapper.vocab_size)}
        spelled = [by_byte[bytes([byte])] for byte in range(256)]
        word = by_byte[b"e"]
    else:
        spelled = [3 + byte for byte in range(256)]
        word = wrapper.vocab_size - 1
    piece = st.one_of(
        st.characters(exclude_categories=["Cs"]).map(lambda char: list(char.encode())),
        st.lists(st.integers(0, 255), min_size=1, max_size=2),
        st.sampled_from([[0xE2, 0x82], [0xF0, 0x9F, 0x91], [0xAC], [0xED, 0xA0, 0x80], [None]]),
    )
    run = [byte for part in data.draw(st.lists(piece, max_size=8)) for byte in part]
    ids = [word if byte is None else spelled[byte] for byte in run]
    decoder = wrapper.make_text_decoder([])
    assert push_all(decoder, ids) == wrapper.decode(ids)


@given(text=TEXTS)
def test_byte_level_text_comes_back_unchanged(text):
    """Encode, stream, and have the same text."""
    wrapper = tokenizer("byte_level")
    ids = wrapper.encode(text, add_special_tokens=False)
    decoder = wrapper.make_text_decoder([], skip_special_tokens=False)
    assert push_all(decoder, ids) == wrapper.hf_tokenizer.decode(ids)
    if "<" not in text and "Ġ" not in text:
        assert decoder.text == text


@pytest.mark.parametrize("kind", [*TABULATED, "word_piece", "python_only"])
@given(past=TEXTS, left=TEXTS, right=TEXTS)
def test_forks_diverge_independently(kind, past, left, right):
    """A fork and its origin go on as if each had been alone from the start."""
    wrapper = tokenizer(kind)
    past, left, right = (wrapper.encode(t, add_special_tokens=False) for t in (past, left, right))
    decoder = wrapper.make_text_decoder([], stop=["fox", "本"])
    for token_id in past:
        decoder.push(token_id)
    fork = decoder.fork()
    for one, tail in ((decoder, left), (fork, right)):
        text = push_all(one, tail)
        alone = wrapper.make_text_decoder([], stop=["fox", "本"])
        assert text == push_all(alone, [*past, *tail])


@pytest.mark.parametrize("kind", ["byte_level", "llama_style", "word_piece"])
@given(text=st.text("ab fox.", max_size=30), include=st.booleans())
def test_stop_strings_end_text_across_token_borders(kind, text, include):
    """The text ends at the first stop string, wherever tokens begin and end."""
    wrapper = tokenizer(kind)
    stops = ["x f", "ab", "o"]
    ids = wrapper.encode(text, add_special_tokens=False)
    decoder = wrapper.make_text_decoder([], stop=stops, include_stop_str_in_output=include)
    full = wrapper.decode(ids)
    hit = next((stop for id_ in ids if (stop := decoder.push(id_)) is not None), None)
    decoder.finish()
    ends = [
        (full.find(stop) + len(stop), -len(stop), i) for i, stop in enumerate(stops) if stop in full
    ]
    if not ends:
        assert (hit, decoder.text) == (None, full)
        return
    end, negative_length, index = min(ends)
    assert hit == index
    assert decoder.text == full[: end if include else end + negative_length]


def segmentations(text):
    """All ways to cut a text into pieces."""
    if not text:
        yield []
    for end in range(1, len(text) + 1):
        for rest in segmentations(text[end:]):
            yield [text[:end], *rest]


@pytest.mark.parametrize("include", [False, True])
def test_every_segmentation_of_a_text_stops_at_the_same_place(include):
    """512 ways to cut ten characters into tokens; one result."""
    from pagedkv._core import TextDecoder, TokenTable

    text = "xé</s>\u2028yé<"
    pieces = sorted({text[i:j] for i in range(len(text)) for j in range(i + 1, len(text) + 1)})
    table = TokenTable.byte_fallback(
        pieces, special_tokens=set(), replacements=[], has_byte_tokens=False
    )
    for cut in segmentations(text):
        decoder = TextDecoder(
            table,
            [],
            stop=["</s>\u2028", "</s>z"],
            include_stop_str_in_output=include,
            skip_special_tokens=True,
        )
        hits = [decoder.push(pieces.index(piece)) for piece in cut]
        decoder.finish()
        assert [hit for hit in hits if hit is not None] == [0]
        assert decoder.text == ("xé</s>\u2028" if include else "xé")


@pytest.mark.parametrize("kind", ["byte_level", "llama_style", "word_piece"])
def test_stop_strings_wait_for_min_tokens(kind):
    """A stop string that is complete before the text may stop is ordinary text, also later."""
    wrapper = tokenizer(kind)
    ids = wrapper.encode("fox dog fox dog", add_special_tokens=False)
    decoder = wrapper.make_text_decoder([], stop=["fox"])
    half = len(ids) // 2
    assert [decoder.push(token_id, may_stop=False) for token_id in ids[:half]] == [None] * half
    hits = [hit for token_id in ids[half:] if (hit := decoder.push(token_id)) is not None]
    assert hits == [0]
    assert decoder.text.rstrip() == "fox dog"


def test_a_prompt_that_ends_within_a_character_leaves_no_trace():
    """Upstream's stream repeats the whole prompt here (tokenizers 0.23)."""
    wrapper = tokenizer("byte_level")
    ids = wrapper.encode("price: €", add_special_tokens=False)
    cut = next(i for i in range(len(ids)) if wrapper.decode(ids[: i + 1]).endswith("\ufffd")) + 1
    decoder = wrapper.make_text_decoder(ids[:cut])
    assert push_all(decoder, ids[cut:]) == "€"
    assert push_all(wrapper.make_text_decoder(ids[:cut]), wrapper.encode("a")) == "a"


class BrokenStream:
    """Decodes two tokens, then fails."""

    def __init__(self, num_good=2):
        self.num_good = num_good

    def step(self, token_id):
        if self.num_good == 0:
            msg = f"no such token: {token_id}"
            raise KeyError(msg)
        self.num_good -= 1
        return f"<{token_id}>"

    def flush(self):
        return "end"

    def fork(self):
        return BrokenStream(self.num_good)


def test_an_exception_in_a_python_decoder_ends_the_text_and_is_kept():
    """The engine's step survives a tokenizer's bug, and whoever asks learns of it."""
    from pagedkv._core import TextDecoder

    decoder = TextDecoder.from_stream(BrokenStream(), stop=["x"], include_stop_str_in_output=False)
    fork = decoder.fork()
    assert [decoder.push(i) for i in range(4)] == [None] * 4
    decoder.finish()
    assert decoder.text == "<0><1>"
    assert isinstance(fork.error, KeyError), "the template tells of its forks"
    assert push_all(fork, [7]) == "<7>end", "a fork lives on"


def test_a_stream_that_returns_something_else_than_text_is_an_error_not_a_crash():
    """Type errors are kept like any other."""
    from pagedkv._core import TextDecoder

    decoder = TextDecoder.from_stream(object(), stop=[], include_stop_str_in_output=False)
    decoder.push(1)
    assert isinstance(decoder.error, AttributeError)
    assert decoder.fork().text == ""


def test_threads_that_share_a_python_decoder_do_not_deadlock():
    """The lock is never waited for while holding the interpreter."""
    wrapper = tokenizer("word_piece")
    decoder = wrapper.make_text_decoder([])
    word = wrapper.encode("fox", add_special_tokens=False)
    threads = [
        threading.Thread(target=lambda: [decoder.push(word[0]) for _ in range(500)])
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    decoder.finish()
    assert decoder.text == wrapper.decode(word[:1] * 1000)


@settings(max_examples=5)
@given(length=st.integers(200, 400))
def test_a_long_text_streams_in_bounded_windows(length):
    """The fallback looks at the last few tokens only, whatever came before."""
    from pagedkv.text_stream import TextStream

    sizes = []

    def decode(ids):
        sizes.append(len(ids))
        return "".join(chr(97 + token_id % 26) for token_id in ids)

    stream = TextStream(decode, list(range(1000)), reach=0)
    text = "".join(stream.step(token_id) for token_id in range(length)) + stream.flush()
    assert text == "".join(chr(97 + i % 26) for i in range(length))
    assert max(sizes) <= 33
