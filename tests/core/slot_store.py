"""What a KV cache would hold: a naive store of what was written to each slot."""


class SlotStore:
    """Slots by group; each holds whatever a test writes for a token, or None."""

    def __init__(self, *, num_groups, num_blocks, block_size):
        self.block_size = block_size
        self.slots = [[None] * (num_blocks * block_size) for _ in range(num_groups)]

    def copy_blocks(self, copies):
        """Makes the copies of `[C, 3]` (group, from, to), one after the other."""
        for group, source, target in copies:
            size, slots = self.block_size, self.slots[group]
            slots[target * size : (target + 1) * size] = slots[source * size : (source + 1) * size]

    def write(self, group, slot, content):
        self.slots[group][slot] = content

    def read(self, group, table, position):
        """What a sequence with this block table finds at a position."""
        block = table[position // self.block_size]
        assert block != 0, f"position {position} of group {group} was given back"
        return self.slots[group][block * self.block_size + position % self.block_size]


def first_visible(kind, position):
    """The first position that a query at `position` attends to in a KV group."""
    name, size = kind
    if name == "sliding":
        return max(0, position + 1 - size)
    if name == "chunked":
        return position // size * size
    return 0
