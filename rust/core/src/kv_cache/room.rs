//! How many blocks several rows hold, and how many their next step needs.

use super::KvCacheManager;
use crate::ids::{BlockId, RowId};

/// The slots of a request's distinct blocks, over all KV groups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotUse {
    /// Slots of the blocks.
    pub num_held: u64,
    /// Of those, slots that hold tokens.
    pub num_used: u64,
}

impl KvCacheManager {
    /// How the slots of some rows' blocks are used.
    pub(crate) fn slot_use(&self, rows: &[Option<RowId>]) -> SlotUse {
        let (blocks, num_used) = self.distinct_blocks(rows);
        SlotUse { num_held: blocks.len() as u64 * u64::from(self.config.block_size), num_used }
    }

    /// Distinct blocks of some rows, and the tokens in them.
    pub(crate) fn distinct_blocks(&self, rows: &[Option<RowId>]) -> (Vec<BlockId>, u64) {
        let mut blocks = Vec::new();
        for row in rows.iter().flatten() {
            for group in 0..self.config.groups.len() {
                let line = &self.tables.line(group, *row)[..self.num_columns(*row) as usize];
                blocks.extend(line.iter().map(|id| BlockId::new(*id)).filter(|id| !id.is_null()));
            }
        }
        blocks.sort_unstable();
        blocks.dedup();
        let num_tokens = blocks.iter().map(|block| u64::from(self.pool.num_filled(*block))).sum();
        (blocks, num_tokens)
    }

    /// Blocks that must be free for one more token in each of some rows, given with the tokens that
    /// they hold. Gives back what left the windows.
    pub(crate) fn blocks_for_next_token(&mut self, rows: &[(RowId, u32)]) -> u32 {
        let mut written = Vec::with_capacity(rows.len() * self.config.groups.len());
        let mut num_new = 0;
        for (row, position) in rows {
            self.give_back(*row, *position);
            let column = position / self.config.block_size;
            for group in 0..self.config.groups.len() {
                if column < self.rows[row.index()].num_columns {
                    written.push(self.tables.get(group, *row, column));
                } else {
                    num_new += 1;
                }
            }
        }
        written.sort_unstable();
        // Of the rows that share a block, all copy it but the last, if nobody else has it.
        let copies = written.chunk_by(|a, b| a == b).map(|writers| {
            let num_others = self.pool.ref_count(writers[0]) - writers.len() as u32;
            writers.len() as u32 - u32::from(num_others == 0)
        });
        num_new + copies.sum::<u32>()
    }
}
