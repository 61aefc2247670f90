//! What a caller can get wrong: every message names the argument, its value and the bound.

/// An argument that a kernel refuses. Nothing has been read or written when one is returned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Two arguments disagree about a size.
    #[error("{argument} has size {got} in dimension {dimension}, expected {expected}")]
    Size {
        /// The argument at fault.
        argument: &'static str,
        /// Which of its dimensions, counted from 0.
        dimension: usize,
        /// The size it has.
        got: usize,
        /// The size it must have.
        expected: usize,
    },
    /// A size is beyond a limit.
    #[error("{argument} has size {got} in dimension {dimension}, needs at least {minimum}")]
    TooSmall {
        /// The argument at fault.
        argument: &'static str,
        /// Which of its dimensions, counted from 0.
        dimension: usize,
        /// The size it has.
        got: usize,
        /// The smallest size that would do.
        minimum: usize,
    },
    /// A row is not contiguous in memory.
    #[error("{argument} must have stride 1 in its last dimension, got {got}; make it contiguous")]
    InnerStride {
        /// The argument at fault.
        argument: &'static str,
        /// Its stride, in elements.
        got: usize,
    },
    /// A view reaches past the end of its memory.
    #[error("{argument} reaches element {needed}, but its memory holds {available}")]
    Span {
        /// The argument at fault.
        argument: &'static str,
        /// Elements that shape and strides reach.
        needed: usize,
        /// Elements there are.
        available: usize,
    },
    /// Two indices of a writeable view name the same element.
    #[error("{argument} is written, but its strides let elements overlap; pass a plain tensor")]
    Overlap {
        /// The argument at fault.
        argument: &'static str,
    },
    /// A slot outside the storage.
    #[error("slot_mapping[{index}] is {slot}, expected -1 (skip) or 0 <= slot < {num_slots}")]
    Slot {
        /// Position in the slot mapping.
        index: usize,
        /// The value found there.
        slot: i64,
        /// Slots in the storage.
        num_slots: usize,
    },
    /// A block id outside the storage.
    #[error("{argument}[{index}] is block {block}, expected {first} <= block < {num_blocks}")]
    Block {
        /// The argument at fault.
        argument: &'static str,
        /// Position in it.
        index: usize,
        /// The value found there.
        block: i32,
        /// The first block that may be named.
        first: usize,
        /// Blocks in the storage.
        num_blocks: usize,
    },
    /// A block table entry that a query must read names no block.
    #[error(
        "block_tables[{row}, {column}] is {block}, but its keys are read: expected \
         1 <= block < {num_blocks} (block 0 is the null block)"
    )]
    TableEntry {
        /// Row of the table.
        row: usize,
        /// Column of the table.
        column: usize,
        /// The value found there.
        block: i32,
        /// Blocks in the storage.
        num_blocks: usize,
    },
    /// An index outside what it points into.
    #[error("{argument}[{index}] is {got}, expected 0 <= value < {bound}")]
    Index {
        /// The argument at fault.
        argument: &'static str,
        /// Position in it.
        index: usize,
        /// The value found there.
        got: i64,
        /// The first value that is too large.
        bound: usize,
    },
    /// A row id outside the block table.
    #[error("row_ids[{index}] is {row}, expected 0 <= row < {num_rows}")]
    Row {
        /// Position in `row_ids`.
        index: usize,
        /// The value found there.
        row: i32,
        /// Rows of the block table.
        num_rows: usize,
    },
    /// Prefix sums that go down, start above 0 or pass the end.
    #[error(
        "query_start_loc[{index}] is {got}, expected prefix sums: 0 first, never falling, at most \
         {num_tokens} tokens"
    )]
    QueryStart {
        /// Position in `query_start_loc`.
        index: usize,
        /// The value found there.
        got: i32,
        /// Tokens in the query.
        num_tokens: usize,
    },
    /// A context length that cannot be.
    #[error(
        "seq_lens[{index}] is {seq_len}, expected 0 or {query_len} (query length) <= seq_len <= \
         {capacity} (columns of block_tables x block size)"
    )]
    SeqLen {
        /// Position in `seq_lens`.
        index: usize,
        /// The value found there.
        seq_len: i32,
        /// Query tokens of that row.
        query_len: usize,
        /// Most tokens that its block table can hold.
        capacity: usize,
    },
    /// A count or limit that must be positive.
    #[error("{argument} must be at least 1, got {got}")]
    NotPositive {
        /// The argument at fault.
        argument: &'static str,
        /// The value it has.
        got: usize,
    },
    /// A real number that must be finite (and positive where the name says so).
    #[error("{argument} must be {expected}, got {got}")]
    Number {
        /// The argument at fault.
        argument: &'static str,
        /// What it must be.
        expected: &'static str,
        /// The value it has, as text.
        got: String,
    },
    /// An instruction set that is unknown or that this CPU lacks.
    #[error(
        "PAGEDKV_CPU_ISA must be one of {usable} on this CPU, got '{got}'; unset it for the best"
    )]
    Isa {
        /// The name given.
        got: String,
        /// The names that would do.
        usable: String,
    },
    /// The operating system gave no thread.
    #[error("cannot start {num_threads} threads: {reason}")]
    Threads {
        /// How many were asked for.
        num_threads: usize,
        /// What the system said.
        reason: String,
    },
}
