//! Writing the arrays of a step.

use crate::batch::{Batch, StepArrays};
use crate::ids::{BlockId, RowId, slot};
use crate::kv_cache::{BlockCopy, KvCacheManager};
use crate::request::Request;

/// A step under construction.
pub(super) struct BatchBuilder<'a, 'b> {
    pub(super) arrays: &'a mut StepArrays<'b>,
    pub(super) batch: Batch,
    /// Tokens that the step can still take.
    pub(super) budget: u32,
    /// A sequence got no block, so no new request may start.
    pub(super) is_short_of_blocks: bool,
}

impl<'a, 'b> BatchBuilder<'a, 'b> {
    pub(super) fn new(arrays: &'a mut StepArrays<'b>, id: u64, budget: u32) -> Self {
        arrays.query_start_loc[0] = 0;
        let batch = Batch { id, ..Batch::default() };
        Self { arrays, batch, budget, is_short_of_blocks: false }
    }

    /// Adds tokens `start..end` of a sequence.
    pub(super) fn push_row(
        &mut self,
        kv: &KvCacheManager,
        request: &Request,
        index: usize,
        row: RowId,
        (start, end): (u32, u32),
    ) {
        let at = self.batch.num_tokens as usize;
        let sequence = &request.sequences[index];
        let tokens = request.tokens(index);
        let known = tokens.len();
        for (i, position) in (start..end).enumerate() {
            let is_known = position < known;
            self.arrays.input_ids[at + i] = if is_known { tokens.get(position) as i32 } else { -1 };
            self.arrays.input_source[at + i] = sequence.pending_sample as i32;
            self.arrays.positions[at + i] = position as i32;
        }
        self.push_slots(kv, row, at, (start, end));
        let r = self.batch.num_rows as usize;
        self.batch.num_rows += 1;
        self.batch.num_tokens += end - start;
        self.budget -= end - start;
        self.arrays.row_ids[r] = row.get() as i32;
        self.arrays.seq_lens[r] = end as i32;
        self.arrays.query_start_loc[r + 1] = self.batch.num_tokens as i32;
    }

    /// Samples the logits of the last token added, for a sequence in `row`.
    pub(super) fn push_sample(
        &mut self,
        row: RowId,
        index: usize,
        output_position: u32,
        num_candidates: u32,
    ) -> u32 {
        let s = self.batch.num_samples as usize;
        self.batch.num_samples += 1;
        self.arrays.logits_indices[s] = self.batch.num_tokens as i32 - 1;
        self.arrays.sample_rows[s] = row.get() as i32;
        self.arrays.sample_index[s] = index as i32;
        self.arrays.sample_positions[s] = output_position as i32;
        self.arrays.num_candidates[s] = num_candidates as i32;
        self.batch.num_candidates = self.batch.num_candidates.max(num_candidates);
        s as u32
    }

    /// Writes what the cache logged while the step was built.
    pub(super) fn finish(&mut self, kv: &KvCacheManager, row_fills: &[(RowId, u64, u32)]) -> Batch {
        let updates = kv.tables().updates();
        for (to, update) in self.arrays.table_updates.chunks_exact_mut(4).zip(updates) {
            let values = [update.group, update.row.get(), update.column, update.block.get()];
            to.copy_from_slice(&values.map(|value| value as i32));
        }
        let forks = kv.tables().forks();
        for (to, fork) in self.arrays.row_forks.chunks_exact_mut(2).zip(forks) {
            to.copy_from_slice(&[fork.parent.get() as i32, fork.child.get() as i32]);
        }
        kv.tables().apply_log(self.arrays.block_tables);
        let (copies, swap) = (kv.copies(), kv.swap_space());
        write_copies(self.arrays.block_copies, copies);
        write_copies(self.arrays.swap_out, swap.swap_out());
        write_copies(self.arrays.swap_in, swap.swap_in());
        for (to, (row, id, index)) in self.arrays.row_fills.chunks_exact_mut(3).zip(row_fills) {
            to.copy_from_slice(&[i64::from(row.get()), *id as i64, i64::from(*index)]);
        }
        assert!(updates.len() * 4 <= self.arrays.table_updates.len(), "too many table updates");
        assert!(forks.len() * 2 <= self.arrays.row_forks.len(), "too many forks");
        assert!(row_fills.len() * 3 <= self.arrays.row_fills.len(), "too many filled rows");
        self.batch.num_table_updates = updates.len() as u32;
        self.batch.num_row_forks = forks.len() as u32;
        self.batch.num_first_forks = kv.tables().num_first_forks() as u32;
        self.batch.num_block_copies = copies.len() as u32;
        self.batch.num_row_fills = row_fills.len() as u32;
        self.batch.num_swap_out = swap.swap_out().len() as u32;
        self.batch.num_swap_in = swap.swap_in().len() as u32;
        self.batch
    }

    fn push_slots(&mut self, kv: &KvCacheManager, row: RowId, at: usize, (start, end): (u32, u32)) {
        let size = kv.config().block_size;
        let (shift, mask) = (size.trailing_zeros(), size - 1);
        for group in 0..kv.config().groups.len() {
            let line = kv.tables().line(group, row);
            let to = &mut self.arrays.slot_mapping[group * self.arrays.slot_stride + at..];
            for (to, position) in to.iter_mut().zip(start..end) {
                let block = BlockId::new(line[(position >> shift) as usize]);
                *to = slot(block, position & mask, size);
            }
        }
    }
}

fn write_copies(to: &mut [i32], copies: &[BlockCopy]) {
    assert!(copies.len() * 3 <= to.len(), "too many blocks to copy");
    for (to, copy) in to.chunks_exact_mut(3).zip(copies) {
        let values = [copy.group, copy.from.get(), copy.to.get()];
        to.copy_from_slice(&values.map(|value| value as i32));
    }
}
