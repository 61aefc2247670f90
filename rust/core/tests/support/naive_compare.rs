//! Whether the real thing and the naive one are in the same state.

use pagedkv_core::{BlockId, RowId, Tokens};

use super::{Pair, Row};

impl Pair {
    /// A summary in which equal states are equal.
    pub(crate) fn fingerprint(&self) -> String {
        let batches = (self.pool.num_begun - self.pool.num_ended, &self.planned, &self.in_flight);
        let age = |batch: u64| batch as i64 - self.pool.num_ended as i64;
        let pins = [&self.pool.deferred, &self.pool.sources]
            .map(|pins| pins.iter().map(|(batch, id)| (age(*batch), *id)).collect::<Vec<_>>());
        // Which row is which does not matter: all operations exist for all rows.
        let rows: Vec<_> = (self.rows.iter().flatten())
            .map(|row| {
                let plan = (age(row.batch), row.is_frozen, row.num_computed);
                (&row.tokens, &row.columns, row.num_committed, plan)
            })
            .collect();
        format!(
            "{:?}{:?}{rows:?}{batches:?}{pins:?}{:?}",
            self.pool.free, self.pool.content, self.recent
        )
    }

    pub(super) fn compare(&self) -> Result<(), String> {
        let pool = self.real.pool();
        let free: Vec<_> = pool.free_blocks().map(BlockId::get).collect();
        if free != self.pool.free || pool.num_free() as usize != free.len() {
            return Err(format!("free blocks are {free:?}, not {:?}", self.pool.free));
        }
        for id in 1..self.config.num_blocks {
            let (block, i) = (BlockId::new(id), id as usize);
            let real = (pool.ref_count(block), pool.entry(block).is_some());
            if real != (self.pool.refs[i], self.pool.content[i].is_some()) {
                return Err(format!("block {id} is {real:?}, not {:?}", self.pool.refs[i]));
            }
        }
        for (r, row) in self.rows.iter().enumerate() {
            let id = RowId::new(r as u32);
            let none = Row::default();
            let row = row.as_ref().unwrap_or(&none);
            for (g, columns) in row.columns.iter().enumerate() {
                let line = &self.real.tables().line(g, id)[..columns.len()];
                if line != columns || self.real.num_columns(id) as usize != columns.len() {
                    return Err(format!("row {r} group {g} is {line:?}, not {columns:?}"));
                }
            }
            self.real.check_content(id, Tokens::new(&row.tokens, &[]))?;
        }
        let copies = self.real.copies().iter();
        let copies: Vec<_> =
            copies.map(|copy| (copy.group as usize, copy.from.get(), copy.to.get())).collect();
        if copies != self.copies {
            return Err(format!("copies are {copies:?}, not {:?}", self.copies));
        }
        self.real.check_invariants()
    }
}
