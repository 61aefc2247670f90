//! The arrays of one step: the caller allocates, the core fills.

/// Borrowed arrays with room for the largest step. B = `max_num_seqs`, G = groups,
/// T = `max_num_batched_tokens`, M = blocks per row.
pub struct StepArrays<'a> {
    /// `[B]` stable row of each scheduled sequence.
    pub row_ids: &'a mut [i32],
    /// `[B + 1]` prefix sums of tokens per scheduled sequence.
    pub query_start_loc: &'a mut [i32],
    /// `[B]` context length after this step.
    pub seq_lens: &'a mut [i32],
    /// `[T]` tokens to run; -1 = not known yet.
    pub input_ids: &'a mut [i32],
    /// `[T]` where a token is not known yet: which sample of the previous batch it is.
    pub input_source: &'a mut [i32],
    /// `[T]` position of each token in its sequence.
    pub positions: &'a mut [i32],
    /// `[G, slot_stride]` slot that each token's key and value are written to.
    pub slot_mapping: &'a mut [i64],
    /// Distance between the groups in `slot_mapping`; at least T.
    pub slot_stride: usize,
    /// `[G, B, M]` persistent block tables by row: the same array in every call, also where two batches
    /// are in flight (a device follows `table_updates` and `row_forks` instead).
    pub block_tables: &'a mut [i32],
    /// `[U, 4]` (group, row, column, block): what changed in the tables.
    pub table_updates: &'a mut [i32],
    /// `[2 B, 2]` (parent row, child row): the first `num_first_forks` are applied before the updates, the
    /// others after them.
    pub row_forks: &'a mut [i32],
    /// `[B]` positions in T whose logits are sampled; may repeat.
    pub logits_indices: &'a mut [i32],
    /// `[B]` row that a sample is for.
    pub sample_rows: &'a mut [i32],
    /// `[B]` index of that sequence within its request.
    pub sample_index: &'a mut [i32],
    /// `[B]` how many tokens that sequence generated before this one.
    pub sample_positions: &'a mut [i32],
    /// `[B]` how many candidates are wanted: 1, or more for a beam.
    pub num_candidates: &'a mut [i32],
    /// `[C, 3]` (group, from, to): done before the forward pass.
    pub block_copies: &'a mut [i32],
    /// `[W, 3]` (group, from, to host): done before everything else.
    pub swap_out: &'a mut [i32],
    /// `[W, 3]` (group, from host, to): done after that, before the copies.
    pub swap_in: &'a mut [i32],
    /// `[2 B, 3]` (row, request id, index): sequences that got a row.
    pub row_fills: &'a mut [i64],
}

/// What a step asks for: how much of each array is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Number of this batch, from 1.
    pub id: u64,
    /// Scheduled sequences.
    pub num_rows: u32,
    /// Tokens to run.
    pub num_tokens: u32,
    /// Tokens to sample.
    pub num_samples: u32,
    /// Changed table entries.
    pub num_table_updates: u32,
    /// Rows filled by sharing.
    pub num_row_forks: u32,
    /// How many of them come before the table updates.
    pub num_first_forks: u32,
    /// The most candidates that a sample wants; `update` takes as many of each.
    pub num_candidates: u32,
    /// Blocks to copy.
    pub num_block_copies: u32,
    /// Sequences that got a row.
    pub num_row_fills: u32,
    /// Blocks to move to the host.
    pub num_swap_out: u32,
    /// Blocks to move back.
    pub num_swap_in: u32,
    /// Samples that a grammar constrains; `fill_masks` has something to do if there are any.
    pub num_constrained: u32,
}

/// Lengths of the arrays for a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepSizes {
    /// B
    pub num_rows: usize,
    /// T
    pub num_tokens: usize,
    /// G
    pub num_groups: usize,
    /// M
    pub blocks_per_row: usize,
    /// U
    pub num_table_updates: usize,
    /// C
    pub num_block_copies: usize,
    /// W
    pub num_swap_blocks: usize,
}

impl StepSizes {
    /// The sizes that `config` can need.
    pub fn new(config: &crate::SchedulerConfig) -> Self {
        let num_rows = config.max_num_seqs() as usize;
        let num_tokens = config.max_num_batched_tokens as usize;
        let num_groups = config.cache.groups.len();
        let blocks_per_row = config.cache.blocks_per_row() as usize;
        let num_swap_blocks = config.cache.num_swap_blocks.min(config.cache.num_blocks) as usize;
        // Rows that come back are listed column by column.
        let swapped_columns = if num_swap_blocks > 0 { num_rows * blocks_per_row } else { 0 };
        let new_columns = num_tokens / config.cache.block_size as usize + 2 * num_rows;
        Self {
            num_rows,
            num_tokens,
            num_groups,
            blocks_per_row,
            // New columns, the ones that windows give back, and room for some long prefix hits.
            num_table_updates: num_groups
                * (2 * new_columns + 4 * blocks_per_row + swapped_columns),
            num_block_copies: num_groups * 2 * num_rows,
            num_swap_blocks,
        }
    }
}

/// The arrays, owned: for Rust callers (tests, benches, simulator).
pub struct StepBuffers {
    sizes: StepSizes,
    i32s: Vec<Vec<i32>>,
    slot_mapping: Vec<i64>,
    row_fills: Vec<i64>,
}

impl StepBuffers {
    /// Zeroed arrays.
    pub fn new(sizes: StepSizes) -> Self {
        let b = sizes.num_rows;
        let t = sizes.num_tokens;
        let lengths = [
            b,
            b + 1,
            b,
            t,
            t,
            t,
            sizes.num_groups * b * sizes.blocks_per_row,
            sizes.num_table_updates * 4,
            b * 4,
            b,
            b,
            b,
            b,
            b,
            sizes.num_block_copies * 3,
            sizes.num_swap_blocks * 3,
            sizes.num_swap_blocks * 3,
        ];
        Self {
            sizes,
            i32s: lengths.iter().map(|n| vec![0; *n]).collect(),
            slot_mapping: vec![0; sizes.num_groups * t],
            row_fills: vec![0; b * 6],
        }
    }

    /// The arrays as `schedule` takes them.
    pub fn arrays(&mut self) -> StepArrays<'_> {
        let mut arrays = self.i32s.iter_mut().map(Vec::as_mut_slice);
        let mut next = || arrays.next().expect("one per field");
        StepArrays {
            row_ids: next(),
            query_start_loc: next(),
            seq_lens: next(),
            input_ids: next(),
            input_source: next(),
            positions: next(),
            block_tables: next(),
            table_updates: next(),
            row_forks: next(),
            logits_indices: next(),
            sample_rows: next(),
            sample_index: next(),
            sample_positions: next(),
            num_candidates: next(),
            block_copies: next(),
            swap_out: next(),
            swap_in: next(),
            slot_mapping: &mut self.slot_mapping,
            slot_stride: self.sizes.num_tokens,
            row_fills: &mut self.row_fills,
        }
    }
}
