"""The allocator under arbitrary calls, against a store that records what was written where."""

import gc
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from core.slot_store import SlotStore, first_visible
from pagedkv._core import KvCacheManager

MAX_NUM_SEQS = 5
MAX_MODEL_LEN = 32
GROUPS = [
    [("full", 0)],
    [("full", 0), ("full", 0)],
    [("sliding", 5)],
    [("full", 0), ("sliding", 3)],
    [("full", 0), ("chunked", 8)],
    [("sliding", 6), ("chunked", 4)],
]
# Few tokens, so that prefixes are shared often.
TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=20)
KEYS = st.sampled_from([(None, 0), ("a", 0), (b"b", 0), (None, 3)])


def manager(**settings):
    """A manager with small defaults."""
    defaults = {
        "num_blocks": 16,
        "block_size": 4,
        "kv_groups": [("full", 0)],
        "max_num_seqs": MAX_NUM_SEQS,
        "max_model_len": MAX_MODEL_LEN,
    }
    return KvCacheManager(**{**defaults, **settings})


@dataclass
class Sequence:
    """What the model knows of a live sequence.

    Attributes:
        handle: its handle.
        key: salt and adapter.
        tokens: all its tokens.
        start: position of the first token of the last call that wrote: windows end there.
    """

    handle: object
    key: tuple
    tokens: list
    start: int


class Allocator(RuleBasedStateMachine):
    """Sequences come, grow, fork and go; every read must find what its own sequence wrote."""

    @initialize(
        kv_groups=st.sampled_from(GROUPS),
        block_size=st.sampled_from([1, 2, 4]),
        num_blocks=st.integers(2, 40),
        enable_prefix_caching=st.booleans(),
        hash_bits=st.sampled_from([64, 3]),
    )
    def start(self, kv_groups, block_size, num_blocks, enable_prefix_caching, hash_bits):
        self.kv_groups = kv_groups
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.is_caching = enable_prefix_caching
        self.manager = manager(
            num_blocks=num_blocks,
            block_size=block_size,
            kv_groups=kv_groups,
            enable_prefix_caching=enable_prefix_caching,
            hash_bits=hash_bits,
        )
        self.store = SlotStore(
            num_groups=len(kv_groups), num_blocks=num_blocks, block_size=block_size
        )
        self.sequences = []
        self.stale = []
        # Every (key, prefix) that was ever computed and may still be cached.
        self.computed = set()

    def pick(self, data):
        return data.draw(st.sampled_from(self.sequences), label="sequence")

    def write(self, sequence):
        """Makes the copies that are due, then writes the tokens from `start` on."""
        self.make_copies(self.manager.take_copies().tolist())
        for group in range(len(self.kv_groups)):
            table = self.manager.block_table(sequence.handle, group).tolist()
            for position in range(sequence.start, len(sequence.tokens)):
                block = table[position // self.block_size]
                assert self.manager.ref_count(block) == 1, "a shared block is written"
                slot = block * self.block_size + position % self.block_size
                self.store.write(group, slot, self.content(sequence, position))
        for length in range(1, len(sequence.tokens) + 1):
            self.computed.add((sequence.key, tuple(sequence.tokens[:length])))

    def make_copies(self, copies):
        self.store.copy_blocks(copies)

    def key_arguments(self, key):
        salt, adapter_id = key
        return {"cache_salt": salt, "adapter_id": adapter_id}

    def content(self, sequence, position):
        """Keys and values depend on the whole past and on what computed it."""
        return sequence.key, tuple(sequence.tokens[: position + 1])

    @rule(tokens=TOKENS, key=KEYS)
    def allocate(self, tokens, key):
        num_free = self.manager.num_free_blocks
        arguments = self.key_arguments(key)
        num_matching = self.manager.match_prefix(tokens, **arguments)
        handle = self.manager.allocate(np.array(tokens, dtype=np.int32), **arguments)
        if handle is None:
            assert self.manager.num_free_blocks == num_free
            has_row = len(self.sequences) < MAX_NUM_SEQS
            num_needed = -(-len(tokens) // self.block_size) * len(self.kv_groups)
            assert not has_row or num_needed > num_free, "there was room"
            return
        assert handle.num_cached_tokens <= num_matching < len(tokens)
        sequence = Sequence(handle, key, tokens, handle.num_cached_tokens)
        self.sequences.append(sequence)
        self.write(sequence)
        if self.is_caching and all(kind == "full" for kind, _ in self.kv_groups):
            num_whole = len(tokens) // self.block_size * self.block_size
            assert self.manager.match_prefix([*tokens, 0], **arguments) >= num_whole

    @precondition(lambda self: self.sequences)
    @rule(data=st.data(), tokens=st.lists(st.integers(0, 2), max_size=6))
    def append(self, data, tokens):
        sequence = self.pick(data)
        if len(sequence.tokens) + len(tokens) > MAX_MODEL_LEN:
            with pytest.raises(ValueError, match="max_model_len"):
                self.manager.append(sequence.handle, tokens)
            return
        sequence.start = len(sequence.tokens)
        if self.manager.append(sequence.handle, tokens):
            sequence.tokens = sequence.tokens + tokens
        else:
            assert tokens, "nothing needs no room"
            assert len(self.manager.take_copies()) == 0
        self.write(sequence)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def fork(self, data):
        parent = self.pick(data)
        num_free = self.manager.num_free_blocks
        handle = self.manager.fork(parent.handle)
        assert (handle is None) == (len(self.sequences) == MAX_NUM_SEQS)
        assert self.manager.num_free_blocks == num_free
        assert len(self.manager.take_copies()) == 0
        if handle is not None:
            assert handle.num_cached_tokens == len(parent.tokens)
            self.sequences.append(Sequence(handle, parent.key, parent.tokens, parent.start))

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def free(self, data):
        sequence = self.pick(data)
        self.sequences.remove(sequence)
        self.manager.free(sequence.handle)
        self.stale.append(sequence.handle)

    @rule(tokens=TOKENS, key=KEYS)
    def match_prefix(self, tokens, key):
        num_matching = self.manager.match_prefix(tokens, **self.key_arguments(key))
        assert num_matching < len(tokens)
        if num_matching:
            assert self.is_caching
            assert (key, tuple(tokens[:num_matching])) in self.computed

    @rule()
    def reset_prefix_cache(self):
        assert self.manager.reset_prefix_cache() == (not self.sequences)
        if not self.sequences:
            self.computed.clear()
            assert self.manager.num_cached_blocks == 0

    @precondition(lambda self: self.stale)
    @rule(data=st.data())
    def use_stale_handle(self, data):
        handle = data.draw(st.sampled_from(self.stale))
        for call in (self.manager.free, self.manager.fork):
            with pytest.raises(ValueError, match="stale"):
                call(handle)

    @invariant()
    def reads_find_what_was_written(self):
        for sequence in self.sequences:
            for group, kind in enumerate(self.kv_groups):
                table = self.manager.block_table(sequence.handle, group).tolist()
                assert len(table) == -(-len(sequence.tokens) // self.block_size)
                first = first_visible(kind, sequence.start)
                for position in range(first, len(sequence.tokens)):
                    found = self.store.read(group, table, position)
                    assert found == self.content(sequence, position)

    @invariant()
    def books_add_up(self):
        counts = Counter()
        for sequence in self.sequences:
            for group in range(len(self.kv_groups)):
                counts.update(self.manager.block_table(sequence.handle, group).tolist())
        del counts[0]
        for block in range(1, self.num_blocks):
            assert self.manager.ref_count(block) == counts[block]
        assert self.manager.num_free_blocks == self.num_blocks - 1 - len(counts)
        assert len(self.manager) == len(self.sequences)
        self.manager.check_invariants()

    def teardown(self):
        for sequence in self.sequences:
            self.manager.free(sequence.handle)
        self.sequences = []
        self.books_add_up()
        assert self.manager.num_free_blocks == self.num_blocks - 1


TestAllocator = Allocator.TestCase


class ForgetsCopies(Allocator):
    """A planted bug: blocks are never copied."""

    def make_copies(self, copies):
        pass


class IgnoresTenants(Allocator):
    """A planted bug: all tenants count as one."""

    def key_arguments(self, key):
        return {}


@pytest.mark.parametrize("planted", [ForgetsCopies, IgnoresTenants])
def test_the_model_catches_planted_bugs(planted):
    """A model that accepts everything would prove nothing."""
    few = settings(max_examples=200, derandomize=True, phases=[Phase.generate], database=None)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(planted, settings=few)


def test_handles_of_another_manager_are_refused():
    """A handle never reaches blocks that are not its own."""
    foreign = manager().allocate([1, 2])
    own = manager()
    for call in (own.free, own.fork, own.token_ids):
        with pytest.raises(ValueError, match="another KvCacheManager"):
            call(foreign)
    with pytest.raises(ValueError, match="another KvCacheManager"):
        own.append(foreign, [1])
    with pytest.raises(ValueError, match="another KvCacheManager"):
        own.block_table(foreign, 0)


def test_a_handle_outlives_its_manager():
    """A handle holds no memory of the manager that it could read after it is gone."""
    own = manager()
    handle = own.allocate([1, 2])
    del own
    gc.collect()
    assert handle.num_cached_tokens == 0
    with pytest.raises(ValueError, match="another KvCacheManager"):
        manager().free(handle)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_blocks": 1}, "num_blocks must be from 2"),
        ({"num_blocks": -1}, "num_blocks must be from 2 to 2147483647, got -1"),
        ({"block_size": 3}, "block_size must be a power of two, got 3"),
        ({"block_size": 0}, "block_size must be from 1"),
        ({"kv_groups": []}, "kv_groups must name at least one group"),
        ({"kv_groups": [("full", 1)]}, r"kv_groups\[0\] must be from 0 to 0, got 1"),
        ({"kv_groups": [("full", 0), ("sliding", 0)]}, r"kv_groups\[1\] must be from 1"),
        ({"kv_groups": [("linear", 0)]}, r"kv_groups\[0\] must be \('full', 0\).*'linear'"),
        ({"max_num_seqs": 0}, "max_num_seqs must be from 1"),
        ({"max_model_len": 2**70}, f"max_model_len must be .* got {2**70}"),
        ({"hash_bits": 65}, "hash_bits must be from 1 to 64, got 65"),
        ({"hash_key": -1}, "hash_key must be an int from 0"),
    ],
)
def test_settings_out_of_range_are_refused_with_their_bound(settings, message):
    """A bad configuration is a ValueError that says what would do."""
    with pytest.raises(ValueError, match=message):
        manager(**settings)


def test_books_that_cannot_fit_in_memory_are_a_memory_error():
    """A failed allocation inside the core would end the process."""
    with pytest.raises(MemoryError, match="lower num_blocks"):
        manager(num_blocks=2**20, max_num_seqs=2**31 - 1, max_model_len=2**31 - 1, block_size=1)
    with pytest.raises(ValueError, match="num_blocks x block_size must be at most 2147483648"):
        manager(num_blocks=2**30)


def test_cached_content_survives_its_sequence_and_a_part_of_a_block_is_served():
    """Sharing is by tokens: the matching slots of a block that differs are copied."""
    own = manager()
    own.free(own.allocate(range(10)))
    handle = own.allocate([0, 1, 2, 3, 4, 5, 99, 98])
    assert handle.num_cached_tokens == 6
    assert own.take_copies().shape == (1, 3)
    assert own.take_copies().shape == (0, 3)
