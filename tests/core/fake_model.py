"""A model without weights: it reads a sequence back through its block tables and hashes it."""

import hashlib

import numpy as np

from core.slot_store import SlotStore, first_visible
from pagedkv._core import StepBuffers

VOCAB_SIZE = 50


def next_token(tokens, index):
    """What the model answers to a sequence; siblings get different answers."""
    text = f"{index}:{tokens}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "big") % VOCAB_SIZE


def expected_output(prompt, index, *, max_tokens, eos_token_ids=()):
    """What a sequence generates, whatever else runs."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + max_tokens:
        tokens.append(next_token(tokens, index))
        if tokens[-1] in eos_token_ids:
            break
    return tokens[len(prompt) :]


def allocate_arrays(sizes, *, num_padded=0):
    """The arrays of a step; `num_padded` more slots per group than tokens."""
    rows, tokens, groups = sizes["num_rows"], sizes["num_tokens"], sizes["num_groups"]
    shapes = {
        **dict.fromkeys(["row_ids", "seq_lens", "logits_indices", "sample_rows"], (rows,)),
        **dict.fromkeys(["sample_index", "sample_positions", "num_candidates"], (rows,)),
        **dict.fromkeys(["input_ids", "input_source", "positions"], (tokens,)),
        "query_start_loc": (rows + 1,),
        "block_tables": (groups, rows, sizes["blocks_per_row"]),
        "table_updates": (sizes["num_table_updates"], 4),
        "row_forks": (2 * rows, 2),
        "swap_out": (sizes["num_swap_blocks"], 3),
        "swap_in": (sizes["num_swap_blocks"], 3),
        "block_copies": (sizes["num_block_copies"], 3),
    }
    arrays = {name: np.full(shape, -9, np.int32) for name, shape in shapes.items()}
    arrays["block_tables"][:] = 0
    arrays["slot_mapping"] = np.full((groups, tokens + num_padded), -9, np.int64)
    arrays["row_fills"] = np.full((2 * rows, 3), -9, np.int64)
    return arrays


class Arena:
    """The arrays of a step and their registration."""

    def __init__(self, scheduler, *, num_padded=0):
        self.arrays = allocate_arrays(scheduler.sizes, num_padded=num_padded)
        self.buffers = StepBuffers(**self.arrays)


class FakeModel:
    """Runs batches over a slot store, and checks every array on the way."""

    def __init__(self, scheduler, *, kv_groups, num_blocks, block_size):
        self.kv_groups = kv_groups
        self.store = SlotStore(
            num_groups=len(kv_groups), num_blocks=num_blocks, block_size=block_size
        )
        sizes = scheduler.sizes
        # A mirror that follows the log, as one on a device would.
        self.mirror = np.zeros(
            (len(kv_groups), sizes["num_rows"], sizes["blocks_per_row"]), np.int32
        )
        self.owner_of_row = {}
        self.samples = np.zeros(0, np.int32)

    def run(self, batch, arrays):
        """Runs a batch; returns the sampled tokens [S]."""
        self.follow_log(batch, arrays)
        assert batch.num_swap_out == batch.num_swap_in == 0
        self.store.copy_blocks(arrays["block_copies"][: batch.num_block_copies].tolist())
        for row, request_id, index in arrays["row_fills"][: batch.num_row_fills].tolist():
            self.owner_of_row[row] = (request_id, index)
        for place in range(batch.num_rows):
            self.run_row(place, arrays)
        slots = arrays["slot_mapping"][:, : batch.num_tokens]
        for group in slots:
            assert len(set(group.tolist())) == batch.num_tokens, "two tokens share a slot"
        self.samples = np.array(
            [self.sample(batch, arrays, i) for i in range(batch.num_samples)], np.int32
        )
        return self.samples

    def follow_log(self, batch, arrays):
        forks = arrays["row_forks"][: batch.num_row_forks]
        for parent, child in forks[: batch.num_first_forks]:
            self.mirror[:, child] = self.mirror[:, parent]
        for group, row, column, block in arrays["table_updates"][: batch.num_table_updates]:
            self.mirror[group, row, column] = block
        for parent, child in forks[batch.num_first_forks :]:
            self.mirror[:, child] = self.mirror[:, parent]
        size = self.store.block_size
        for place in range(batch.num_rows):
            row = arrays["row_ids"][place]
            num_columns = -(-int(arrays["seq_lens"][place]) // size)
            np.testing.assert_array_equal(
                self.mirror[:, row, :num_columns], arrays["block_tables"][:, row, :num_columns]
            )

    def run_row(self, place, arrays):
        """Writes the tokens of a scheduled row."""
        row = int(arrays["row_ids"][place])
        start, end = arrays["query_start_loc"][place : place + 2].tolist()
        positions = arrays["positions"][start:end].tolist()
        seq_len = int(arrays["seq_lens"][place])
        assert positions == list(range(seq_len - (end - start), seq_len))
        for at, position in zip(range(start, end), positions, strict=True):
            token = int(arrays["input_ids"][at])
            if token == -1:
                token = int(self.samples[arrays["input_source"][at]])
            for group in range(len(self.kv_groups)):
                block = int(arrays["block_tables"][group, row, position // self.store.block_size])
                slot = int(arrays["slot_mapping"][group, at])
                offset = position % self.store.block_size
                assert slot == block * self.store.block_size + offset
                self.store.write(group, slot, (position, token))

    def sample(self, batch, arrays, i):
        row, index = int(arrays["sample_rows"][i]), int(arrays["sample_index"][i])
        assert self.owner_of_row[row][1] == index
        assert arrays["num_candidates"][i] == 1
        at = int(arrays["logits_indices"][i])
        position = int(arrays["positions"][at])
        # A sequence that was forked in this step reads through its own table.
        tokens = self.read(0, arrays, row, position)
        for group in range(1, len(self.kv_groups)):
            seen = self.read(group, arrays, row, position)
            assert seen == tokens[len(tokens) - len(seen) :], "groups disagree"
        return next_token(tokens, index)

    def read(self, group, arrays, row, position):
        """The tokens that a query at `position` sees in a group."""
        table = arrays["block_tables"][group, row].tolist()
        first = first_visible(self.kv_groups[group], position)
        found = [self.store.read(group, table, p) for p in range(first, position + 1)]
        assert [p for p, _ in found] == list(range(first, position + 1)), "a foreign slot was read"
        return [token for _, token in found]
