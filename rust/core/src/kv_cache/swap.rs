//! Rows that leave their blocks for blocks of the host, and come back.
//!
//! What several rows of a request share is moved once, and is shared again afterwards.

use super::{BlockCopy, KvCacheManager, Row};
use crate::ids::{BlockId, RowId, num_blocks_for};
use crate::prefix_cache::CacheKey;

/// Blocks of the host, and what is to be moved with the batch being built.
#[derive(Clone, Debug, Default)]
pub(crate) struct SwapSpace {
    free: Vec<BlockId>,
    num_blocks: u32,
    /// Host blocks that the batch being built still reads.
    leaving: Vec<BlockId>,
    swap_out: Vec<BlockCopy>,
    swap_in: Vec<BlockCopy>,
}

impl SwapSpace {
    pub(crate) fn new(num_blocks: u32) -> Self {
        let free = (0..num_blocks).rev().map(BlockId::new).collect();
        Self { free, num_blocks, ..Self::default() }
    }

    /// Ends the log of a batch.
    pub(super) fn clear_log(&mut self) {
        self.swap_out.clear();
        self.swap_in.clear();
        self.free.append(&mut self.leaving);
    }

    pub(crate) const fn num_blocks(&self) -> u32 {
        self.num_blocks
    }

    pub(crate) fn num_used(&self) -> u32 {
        self.num_blocks - (self.free.len() + self.leaving.len()) as u32
    }

    /// To be copied from the pool to the host, before anything else of the batch.
    pub(crate) fn swap_out(&self) -> &[BlockCopy] {
        &self.swap_out
    }

    /// To be copied from the host to the pool, after that.
    pub(crate) fn swap_in(&self) -> &[BlockCopy] {
        &self.swap_in
    }
}

/// A row on the host.
#[derive(Clone, Debug)]
struct SwappedRow {
    num_columns: u32,
    /// `[group]` leading columns given back.
    given_back: Vec<u32>,
    /// `[group, column]` place in `host`, from the first column that was not given back.
    places: Vec<u32>,
}

/// The rows of a request on the host.
#[derive(Clone, Debug, Default)]
pub(crate) struct Swapped {
    /// Distinct blocks with their groups.
    host: Vec<(u32, BlockId)>,
    /// By index of the sequence.
    rows: Vec<Option<SwappedRow>>,
}

impl Swapped {
    pub(crate) fn num_blocks(&self) -> u32 {
        self.host.len() as u32
    }

    /// Whether the sequence with this index has a row there.
    pub(crate) fn has_row(&self, index: usize) -> bool {
        self.rows[index].is_some()
    }
}

impl KvCacheManager {
    /// Blocks of the host.
    pub(crate) const fn swap_space(&self) -> &SwapSpace {
        &self.swap
    }

    /// Closes rows and moves their blocks to the host. None, and nothing done, if there is no room.
    pub(crate) fn swap_out(&mut self, rows: &[Option<RowId>]) -> Option<Swapped> {
        let (blocks, _) = self.distinct_blocks(rows);
        if blocks.len() > self.swap.free.len() {
            return None;
        }
        let mut swapped =
            Swapped { host: vec![(0, BlockId::NULL); blocks.len()], rows: Vec::new() };
        let groups = self.config.groups.len();
        for row in rows {
            let Some(row) = *row else {
                swapped.rows.push(None);
                continue;
            };
            let num_columns = self.num_columns(row);
            let given_back = self.given_back[row.index() * groups..][..groups].to_vec();
            let mut places = Vec::new();
            for (group, first) in given_back.iter().enumerate() {
                for column in *first..num_columns {
                    let block = self.tables.get(group, row, column);
                    let place = blocks.binary_search(&block).expect("it was listed");
                    swapped.host[place].0 = group as u32;
                    places.push(place as u32);
                }
            }
            swapped.rows.push(Some(SwappedRow { num_columns, given_back, places }));
        }
        for (from, (group, to)) in blocks.iter().zip(&mut swapped.host) {
            *to = self.swap.free.pop().expect("counted before");
            self.swap.swap_out.push(BlockCopy { group: *group, from: *from, to: *to });
        }
        for row in rows.iter().flatten() {
            self.close_row(*row);
        }
        Some(swapped)
    }

    /// Opens rows with what was moved to the host: of each sequence that has a row again, with the
    /// tokens that it holds. Blocks must be free for all of it.
    pub(crate) fn swap_in(
        &mut self,
        swapped: &Swapped,
        rows: &[Option<(RowId, u32)>],
        key: &CacheKey,
    ) {
        let groups = self.config.groups.len();
        let size = self.config.block_size;
        let mut arrived = vec![BlockId::NULL; swapped.host.len()];
        for (row, from) in rows.iter().zip(&swapped.rows) {
            let (Some((row, num_tokens)), Some(from)) = (row, from) else { continue };
            debug_assert_eq!(num_blocks_for(*num_tokens, size), from.num_columns);
            self.open_row(*row, key);
            let mut places = from.places.iter();
            for group in 0..groups {
                let first = from.given_back[group];
                for column in 0..from.num_columns {
                    if column < first {
                        self.tables.set(group, *row, column, BlockId::NULL);
                        continue;
                    }
                    let place = *places.next().expect("one per column") as usize;
                    if arrived[place].is_null() {
                        arrived[place] = self.allocate().expect("counted before");
                    } else {
                        self.pool.acquire(arrived[place]);
                    }
                    self.tables.set(group, *row, column, arrived[place]);
                    self.pool.fill(arrived[place], (num_tokens - column * size).min(size));
                }
                self.given_back[row.index() * groups + group] = first;
            }
            let state: &mut Row = &mut self.rows[row.index()];
            state.num_columns = from.num_columns;
        }
        for ((group, from), to) in swapped.host.iter().zip(&arrived) {
            if !to.is_null() {
                self.swap.swap_in.push(BlockCopy { group: *group, from: *from, to: *to });
            }
        }
        self.swap.leaving.extend(swapped.host.iter().map(|(_, block)| *block));
        self.note_peak();
    }

    /// Forgets what was moved to the host.
    pub(crate) fn drop_swapped(&mut self, swapped: &Swapped) {
        // The batch being built may still write them; no later one does.
        self.swap.leaving.extend(swapped.host.iter().map(|(_, block)| *block));
    }
}
