//! The block table of every row in every group, and the log of what changed in it.

use crate::ids::{BlockId, RowId};

/// One changed entry of a block table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableUpdate {
    /// KV group.
    pub group: u32,
    /// Line.
    pub row: RowId,
    /// Column: the position of a token divided by the block size.
    pub column: u32,
    /// The new content.
    pub block: BlockId,
}

/// A row that was filled by sharing all blocks of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowFork {
    /// The row that was copied.
    pub parent: RowId,
    /// The row that was filled.
    pub child: RowId,
    /// Columns in use.
    pub num_columns: u32,
}

/// Tables `[group, row, column]`. A mirror that applies the first forks of a step, then its updates
/// and then its other forks, each in order, is equal to the tables in all columns that are in use.
#[derive(Clone, Debug)]
pub struct BlockTables {
    num_groups: usize,
    num_rows: usize,
    num_columns: usize,
    /// Raw ids, so that the zeroed pages of a large table are never touched before use.
    blocks: Vec<u32>,
    updates: Vec<TableUpdate>,
    forks: Vec<RowFork>,
    /// Forks that were logged before any update.
    num_first_forks: usize,
}

impl BlockTables {
    /// Empty tables.
    pub fn new(num_groups: usize, num_rows: usize, num_columns: usize) -> Self {
        Self {
            num_groups,
            num_rows,
            num_columns,
            blocks: vec![0; num_groups * num_rows * num_columns],
            updates: Vec::with_capacity(num_groups * (2 * num_rows + num_columns)),
            forks: Vec::with_capacity(2 * num_rows),
            num_first_forks: 0,
        }
    }

    /// Columns per row.
    pub const fn num_columns(&self) -> usize {
        self.num_columns
    }

    /// The line of `row` in `group`: one raw block id per column.
    pub fn line(&self, group: usize, row: RowId) -> &[u32] {
        let start = self.start(group, row);
        &self.blocks[start..start + self.num_columns]
    }

    /// One entry.
    pub fn get(&self, group: usize, row: RowId, column: u32) -> BlockId {
        BlockId::new(self.blocks[self.start(group, row) + column as usize])
    }

    /// Changes one entry and logs it.
    pub fn set(&mut self, group: usize, row: RowId, column: u32, block: BlockId) {
        let at = self.start(group, row) + column as usize;
        self.blocks[at] = block.get();
        self.updates.push(TableUpdate { group: group as u32, row, column, block });
    }

    /// Copies the first `num_columns` columns of `parent` to `child` in every group and logs it.
    ///
    /// After an update, neither row may change again before the log is taken: a mirror applies such
    /// forks last.
    pub fn fork(&mut self, parent: RowId, child: RowId, num_columns: u32) {
        for group in 0..self.num_groups {
            let from = self.start(group, parent);
            let to = self.start(group, child);
            self.blocks.copy_within(from..from + num_columns as usize, to);
        }
        self.forks.push(RowFork { parent, child, num_columns });
        if self.updates.is_empty() {
            self.num_first_forks = self.forks.len();
        }
    }

    /// What changed since the log was cleared.
    pub fn updates(&self) -> &[TableUpdate] {
        &self.updates
    }

    /// Rows filled by sharing since the log was cleared.
    pub fn forks(&self) -> &[RowFork] {
        &self.forks
    }

    /// How many of the forks a mirror applies before the updates.
    pub const fn num_first_forks(&self) -> usize {
        self.num_first_forks
    }

    /// Starts a new log.
    pub fn clear_log(&mut self) {
        self.updates.clear();
        self.forks.clear();
        self.num_first_forks = 0;
    }

    /// Brings `mirror` `[group, row, column]` up to date with the log.
    pub fn apply_log(&self, mirror: &mut [i32]) {
        let (first_forks, forks) = self.forks.split_at(self.num_first_forks);
        self.apply_forks(first_forks, mirror);
        for update in &self.updates {
            let at = self.start(update.group as usize, update.row) + update.column as usize;
            mirror[at] = update.block.get() as i32;
        }
        self.apply_forks(forks, mirror);
    }

    fn apply_forks(&self, forks: &[RowFork], mirror: &mut [i32]) {
        for fork in forks {
            for group in 0..self.num_groups {
                let from = self.start(group, fork.parent);
                let to = self.start(group, fork.child);
                mirror.copy_within(from..from + fork.num_columns as usize, to);
            }
        }
    }

    fn start(&self, group: usize, row: RowId) -> usize {
        debug_assert!(row.index() < self.num_rows);
        (group * self.num_rows + row.index()) * self.num_columns
    }
}
