"""Ctrl-C is answered at the end of a shielded block, never inside it."""

import signal

import pytest

from pagedkv.interrupts import InterruptShield


def test_an_interrupt_inside_the_block_is_raised_at_its_end():
    done = []

    def interrupted_block():
        with InterruptShield():
            signal.raise_signal(signal.SIGINT)
            done.append("the rest of the block")

    with pytest.raises(KeyboardInterrupt):
        interrupted_block()
    assert done == ["the rest of the block"]


def test_the_handler_that_was_there_is_there_again():
    shield, seen = InterruptShield(), []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append("own handler"))
    try:
        handler = signal.getsignal(signal.SIGINT)
        with shield, shield:
            signal.raise_signal(signal.SIGINT)
            assert seen == []
        assert seen == ["own handler"]
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_ignored_interrupt_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with InterruptShield():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_error_inside_the_block_passes_through():
    with pytest.raises(ValueError, match="own"), InterruptShield():
        raise ValueError("own")
