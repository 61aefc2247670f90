//! Typed indices. Conversions to `usize` happen here and nowhere else.

/// A token id of the model's vocabulary.
pub type TokenId = u32;

/// A physical block of the pool. Block 0 is the null block.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(u32);

impl BlockId {
    /// Stands for "no block": padding, and columns given back by a window group. Outside all counts.
    pub const NULL: Self = Self(0);

    /// The block with this number.
    pub const fn new(id: u32) -> Self {
        Self(id)
    }

    /// The number of this block.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// This block as a position in per-block arrays.
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Whether this is the null block.
    pub const fn is_null(self) -> bool {
        self.0 == 0
    }
}

/// A stable slot of a running sequence: it names a line of the block tables and of all per-row state.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowId(u32);

impl RowId {
    /// The row with this number.
    pub const fn new(id: u32) -> Self {
        Self(id)
    }

    /// The number of this row.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// This row as a position in per-row arrays.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// The number of blocks that hold `num_tokens` tokens.
pub const fn num_blocks_for(num_tokens: u32, block_size: u32) -> u32 {
    num_tokens.div_ceil(block_size)
}

/// The slot of a token: `block * block_size + offset`.
pub const fn slot(block: BlockId, offset: u32, block_size: u32) -> i64 {
    block.get() as i64 * block_size as i64 + offset as i64
}
