//! How many blocks a step of several rows needs.

use super::KvCacheManager;
use crate::ids::RowId;

impl KvCacheManager {
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
