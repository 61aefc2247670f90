"""What the scheduler says of grammars: who is constrained, what may end, what goes wrong."""

import numpy as np
import pytest
import torch

from pagedkv._core import TextDecoder, apply_masks, fill_masks
from pagedkv.sampling.masks import exclude_with_torch
from pagedkv.tokenizer import Tokenizer
from structured.walker import Walker, compile_grammar
from text import zoo


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(zoo.byte_level())


@pytest.fixture
def walker(tokenizer):
    return Walker(tokenizer, vocab_size=len(tokenizer.table))


def grammar_of(walker, **constraint):
    return compile_grammar(walker.tokenizer, walker.vocab_size, **constraint)


def test_a_request_may_end_by_its_own_stop_ids_and_by_no_ignored_ending_id(walker):
    grammar = grammar_of(walker, choice=["b"])
    walker.add(1, grammar, eos_token_ids=[1], stop_token_ids=[2], ignore_eos=True)
    walker.run()
    assert walker.allowed[-1] == {2}


def test_a_complete_grammar_ends_a_sequence_that_no_id_can_end(walker):
    grammar = grammar_of(walker, choice=["b"])
    walker.add(1, grammar, eos_token_ids=[1], ignore_eos=True)
    walker.add(2, grammar, eos_token_ids=[1], min_tokens=20)
    for sequences in walker.run().values():
        assert [(s.text, s.finish_reason, len(s.token_ids)) for s in sequences] == [
            ("b", "stop", 1)
        ]


def test_free_requests_beside_a_constrained_one_have_no_mask(walker):
    walker.add(1, grammar_of(walker, regex="[ab]{30}"), max_tokens=8)
    walker.add(2, None, max_tokens=8)
    walker.run()
    assert len(walker.allowed) == 8


def test_every_sample_has_its_own_place_in_the_grammar(walker):
    walker.add(1, grammar_of(walker, choice=["ab", "ba"]), n=6)
    texts = [sequence.text for sequence in walker.run()[1]]
    assert set(texts) == {"ab", "ba"}


def test_masks_are_those_of_the_oldest_batch_in_flight_and_fit_its_samples(walker):
    walker.add(1, grammar_of(walker, regex="a{9}"))
    batch = walker.scheduler.schedule(walker.arena.buffers)
    words = np.zeros((1, -(-walker.vocab_size // 32)), np.uint32)
    flags = np.zeros(1, np.bool_)

    def fill(**arrays):
        return fill_masks(
            walker.scheduler, batch, **{"words": words, "is_constrained": flags, **arrays}
        )

    with pytest.raises(ValueError, match="is_constrained must hold 1 values, got 2"):
        fill(is_constrained=np.zeros(2, np.bool_))
    with pytest.raises(ValueError, match="words must hold"):
        fill(words=np.zeros((2, words.shape[1]), np.uint32))
    with pytest.raises(TypeError, match="words must be an array of uint32"):
        fill(words=words.astype(np.int64))
    assert fill() == []
    assert flags.tolist() == [True]
    walker.scheduler.update(batch, np.array([0], np.int32), np.zeros(1, np.float32))
    with pytest.raises(RuntimeError, match="cannot be masked"):
        fill()


def test_a_token_against_the_grammar_is_reported_with_the_next_mask(walker):
    walker.add(1, grammar_of(walker, regex="a{9}"))
    walker.add(2, grammar_of(walker, regex="a{2}"), eos_token_ids=[1])
    batch = walker.scheduler.schedule(walker.arena.buffers)
    a, z = (walker.tokenizer.encode(text, add_special_tokens=False)[0] for text in "az")
    walker.scheduler.update(batch, np.array([z, a], np.int32), np.zeros(2, np.float32))
    walker.step()
    ((sample, message),) = walker.failures
    assert sample == 0
    assert message.startswith("the grammar cannot go on: ")
    assert walker.scheduler.abort(1) is not None
    assert walker.run()[2][0].text == "aa"


def test_a_constrained_text_without_a_decoder_has_no_text(walker):
    text = TextDecoder.constrained(grammar_of(walker, choice=["abc"]))
    walker.scheduler.add_request(1, [5], text=text, max_tokens=20, eos_token_ids=[1])
    (sequence,) = walker.run()[1]
    assert (sequence.text, sequence.finish_reason) == ("", "stop")
    assert walker.tokenizer.decode(sequence.token_ids) == "abc"


@pytest.mark.parametrize("vocab_size", [1, 31, 32, 33, 1000])
def test_the_kernel_and_its_twin_exclude_what_a_loop_over_bits_would(vocab_size):
    draw = np.random.default_rng(vocab_size)
    logits = draw.standard_normal((6, vocab_size)).astype(np.float32)
    words = draw.integers(0, 2**32, size=(3, -(-vocab_size // 32)), dtype=np.uint32)
    words[0, 0], words[1, 0] = 0, 2**32 - 1
    rows = np.array([4, 0, 5])
    expected = logits.copy()
    for row, mask in zip(rows, words, strict=True):
        for token in range(vocab_size):
            if not int(mask[token // 32]) >> token % 32 & 1:
                expected[row, token] = -np.inf
    by_twin = torch.from_numpy(logits.copy())
    exclude_with_torch(by_twin, rows, words)
    apply_masks(logits, rows=rows, masks=words)
    assert np.array_equal(logits, expected)
    assert np.array_equal(by_twin.numpy(), expected)
    with pytest.raises(ValueError, match=r"rows\[1\] is 6, expected 0 <= value < 6"):
        apply_masks(logits, rows=np.array([0, 6, 1]), masks=words)
    with pytest.raises(ValueError, match="masks has size"):
        apply_masks(logits, rows=rows[:2], masks=words)
