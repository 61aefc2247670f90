//! Which blocks each row holds: allocation, sharing, copy-on-write, windows and prefix hits.

mod explain;
mod invariants;
mod prefix;
mod room;
mod swap;

use std::collections::VecDeque;

use crate::block_pool::BlockPool;
use crate::block_tables::BlockTables;
use crate::config::CacheConfig;
use crate::ids::{BlockId, RowId, TokenId, num_blocks_for};
use crate::prefix_cache::{CacheKey, EntryId, PrefixCache};
use crate::tokens::Tokens;

pub use explain::{Miss, MissingBlock, PrefixMatch};
pub use prefix::PrefixHit;
pub use room::SlotUse;
pub(crate) use swap::{SwapSpace, Swapped};

/// A block to be copied before the forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockCopy {
    /// KV group.
    pub group: u32,
    /// Source, left as it is.
    pub from: BlockId,
    /// Destination.
    pub to: BlockId,
}

#[derive(Clone, Debug, Default)]
struct Row {
    is_open: bool,
    /// Columns in use, the same in every group.
    num_columns: u32,
    /// The entry of the last committed block (or the root), pinned.
    tip: Option<EntryId>,
    /// Leading columns whose content the cache knows.
    num_committed: u32,
}

/// Counters that only grow, and peaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheCounters {
    /// Blocks copied because a shared block was written.
    pub num_cow_copies: u64,
    /// Blocks copied to share a part of a cached block.
    pub num_partial_copies: u64,
    /// Rows filled by sharing.
    pub num_forks: u64,
    /// Cached blocks that were reused for other content.
    pub num_evictions: u64,
    /// The most blocks referenced at once.
    pub peak_blocks: u32,
}

/// The blocks of all rows.
///
/// Rows are opened, filled by [`attach_prefix`](Self::attach_prefix) or [`fork`](Self::fork),
/// extended by [`reserve`](Self::reserve), made findable by [`commit`](Self::commit) and closed.
/// Changes are logged for one batch at a time; a block that a batch in flight may still touch comes
/// back only after [`end_batch`](Self::end_batch).
#[derive(Clone, Debug)]
pub struct KvCacheManager {
    config: CacheConfig,
    pool: BlockPool,
    cache: Option<PrefixCache>,
    tables: BlockTables,
    rows: Vec<Row>,
    /// `[row, group]`: leading columns given back.
    given_back: Vec<u32>,
    copies: Vec<BlockCopy>,
    /// Pinned blocks with the batch after which each pin goes; batch numbers never decrease.
    deferred_frees: VecDeque<(u64, BlockId)>,
    copy_sources: VecDeque<(u64, BlockId)>,
    /// Batches begun and ended so far.
    num_begun: u64,
    num_ended: u64,
    counters: CacheCounters,
    /// Table updates of one batch after which windows give nothing back until the next.
    max_give_back_updates: usize,
    scratch: Vec<TokenId>,
    swap: SwapSpace,
}

impl KvCacheManager {
    /// An empty cache. Windows stop giving blocks back for a batch once it has
    /// `max_give_back_updates` table updates.
    pub fn new(config: CacheConfig, max_give_back_updates: usize) -> Self {
        let groups = config.groups.len();
        let rows = config.num_rows as usize;
        let cache = config.enable_prefix_caching.then(|| {
            PrefixCache::new(
                config.num_blocks,
                config.block_size,
                groups,
                config.hash_key,
                config.hash_bits,
            )
        });
        Self {
            pool: BlockPool::new(config.num_blocks),
            cache,
            tables: BlockTables::new(groups, rows, config.blocks_per_row() as usize),
            rows: vec![Row::default(); rows],
            given_back: vec![0; rows * groups],
            copies: Vec::with_capacity(2 * rows * groups),
            deferred_frees: VecDeque::with_capacity(config.num_blocks as usize),
            copy_sources: VecDeque::with_capacity(2 * rows * groups),
            num_begun: 0,
            num_ended: 0,
            counters: CacheCounters::default(),
            max_give_back_updates,
            scratch: Vec::with_capacity(config.block_size as usize),
            swap: SwapSpace::new(config.num_swap_blocks),
            config,
        }
    }

    /// The shape of the cache.
    pub const fn config(&self) -> &CacheConfig {
        &self.config
    }

    /// The state of the blocks.
    pub const fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// The block tables and their log.
    pub const fn tables(&self) -> &BlockTables {
        &self.tables
    }

    /// Copies to be made before the forward pass of the batch being built.
    pub fn copies(&self) -> &[BlockCopy] {
        &self.copies
    }

    /// Counters since the start.
    pub const fn counters(&self) -> CacheCounters {
        self.counters
    }

    /// Blocks that can be found by their content.
    pub fn num_cached_blocks(&self) -> u32 {
        self.cache.as_ref().map_or(0, PrefixCache::num_blocks)
    }

    /// Columns that `row` uses.
    pub fn num_columns(&self, row: RowId) -> u32 {
        self.rows[row.index()].num_columns
    }

    /// Whether blocks wait for a batch in flight before they become free.
    pub fn has_deferred(&self) -> bool {
        !self.deferred_frees.is_empty() || !self.copy_sources.is_empty()
    }

    /// Opens `row` for a sequence under `key`.
    pub fn open_row(&mut self, row: RowId, key: &CacheKey) {
        let state = &mut self.rows[row.index()];
        assert!(!state.is_open, "row {} is in use", row.get());
        *state = Row { is_open: true, ..Row::default() };
        if let Some(cache) = &mut self.cache {
            state.tip = cache.pin_root(key);
        }
        let groups = self.config.groups.len();
        self.given_back[row.index() * groups..][..groups].fill(0);
    }

    /// Makes the slots of positions `start..end` of `row` writable: gives back blocks that left the
    /// windows at `start`, copies a shared block, allocates new ones.
    ///
    /// Returns how far it came, between `start` (not a single free block) and `end`.
    pub fn reserve(&mut self, row: RowId, start: u32, end: u32) -> u32 {
        self.give_back(row, start);
        let size = self.config.block_size;
        let groups = self.config.groups.len();
        let num_columns = self.rows[row.index()].num_columns;
        let first = start / size;
        debug_assert!(first + 1 >= num_columns, "only the last block can be written again");
        let mut num_free = self.pool.num_free();
        if first < num_columns {
            let shared = (0..groups).filter(|g| self.is_shared(*g, row, first)).count() as u32;
            if shared > num_free {
                return start;
            }
            num_free -= shared;
        }
        let end = end.min((num_columns + num_free / groups as u32) * size);
        if end <= start {
            return start;
        }
        if first < num_columns {
            for group in 0..groups {
                self.copy_if_shared(group, row, first);
            }
        }
        for column in num_columns..num_blocks_for(end, size) {
            for group in 0..groups {
                let block = self.allocate().expect("counted before");
                self.tables.set(group, row, column, block);
            }
        }
        self.rows[row.index()].num_columns = num_blocks_for(end, size).max(num_columns);
        for column in first..num_blocks_for(end, size) {
            for group in 0..groups {
                let block = self.tables.get(group, row, column);
                self.pool.fill(block, (end - column * size).min(size));
            }
        }
        self.note_peak();
        end
    }

    /// Opens `child` with the blocks of the first `num_tokens` tokens of
    /// `parent`. Allocates nothing: it cannot fail.
    pub fn fork(&mut self, parent: RowId, child: RowId, num_tokens: u32) {
        let num_columns = num_blocks_for(num_tokens, self.config.block_size);
        let source = self.rows[parent.index()].clone();
        assert!(source.is_open && num_columns <= source.num_columns, "fork beyond the parent");
        assert!(!self.rows[child.index()].is_open, "row {} is in use", child.get());
        let groups = self.config.groups.len();
        for group in 0..groups {
            for column in 0..num_columns {
                let block = self.tables.get(group, parent, column);
                if !block.is_null() {
                    self.pool.acquire(block);
                }
            }
        }
        self.tables.fork(parent, child, num_columns);
        self.given_back.copy_within(parent.index() * groups..(parent.index() + 1) * groups, {
            child.index() * groups
        });
        if let (Some(cache), Some(tip)) = (&mut self.cache, source.tip) {
            cache.pin(tip);
        }
        debug_assert!(source.num_committed * self.config.block_size <= num_tokens);
        self.rows[child.index()] = Row { num_columns, ..source };
        self.counters.num_forks += 1;
    }

    /// Makes the full blocks of the first `num_computed` tokens of `row` findable; their content must
    /// have been written. A block whose content is cached elsewhere stays private.
    pub fn commit(&mut self, row: RowId, tokens: Tokens<'_>, num_computed: u32) {
        let size = self.config.block_size;
        let groups = self.config.groups.len();
        let Some(cache) = &mut self.cache else { return };
        let state = &mut self.rows[row.index()];
        while (state.num_committed + 1) * size <= num_computed {
            let column = state.num_committed;
            let Some(tip) = state.tip else { return };
            let block_tokens = tokens.slice(column * size, (column + 1) * size, &mut self.scratch);
            let Some(entry) = cache.child_or_insert(tip, block_tokens) else { return };
            cache.pin(entry);
            for group in 0..groups {
                let block = self.tables.get(group, row, column);
                if !block.is_null()
                    && cache.block(entry, group).is_null()
                    && self.pool.entry(block).is_none()
                {
                    cache.set_block(entry, group, block);
                    self.pool.set_entry(block, Some(entry));
                }
            }
            cache.unpin(tip);
            state.tip = Some(entry);
            state.num_committed += 1;
        }
    }

    /// Drops everything that `row` holds, the tail first, so that the tail is reused first.
    pub fn close_row(&mut self, row: RowId) {
        let state = std::mem::take(&mut self.rows[row.index()]);
        assert!(state.is_open, "double close of row {}", row.get());
        for column in (0..state.num_columns).rev() {
            for group in 0..self.config.groups.len() {
                let block = self.tables.get(group, row, column);
                if !block.is_null() {
                    self.release(block);
                }
            }
        }
        if let (Some(cache), Some(tip)) = (&mut self.cache, state.tip) {
            cache.unpin(tip);
        }
    }

    /// Ends the log of a batch that is now in flight.
    pub fn begin_batch(&mut self) {
        self.num_begun += 1;
        self.tables.clear_log();
        self.copies.clear();
        self.swap.clear_log();
    }

    /// The oldest batch in flight has run: what waited for it becomes free.
    pub fn end_batch(&mut self) {
        assert!(self.num_ended < self.num_begun, "no batch is in flight");
        self.num_ended += 1;
        self.release_due();
    }

    fn release_due(&mut self) {
        for queue in [&mut self.deferred_frees, &mut self.copy_sources] {
            while let Some(&(batch, block)) = queue.front()
                && batch <= self.num_ended
            {
                queue.pop_front();
                self.pool.unpin(block);
            }
        }
    }

    /// The newest batch in flight will not run: what waited for it waits for those before it.
    pub fn cancel_batch(&mut self) {
        assert!(self.num_ended < self.num_begun, "no batch is in flight");
        self.num_begun -= 1;
        let last = self.num_begun;
        for queue in [&mut self.deferred_frees, &mut self.copy_sources] {
            for (batch, _) in queue.iter_mut() {
                *batch = last.min(*batch);
            }
        }
        self.release_due();
    }

    fn give_back(&mut self, row: RowId, position: u32) {
        let groups = self.config.groups.len();
        let num_columns = self.rows[row.index()].num_columns;
        for group in 0..groups {
            let first = self.config.groups[group].first_visible(position) / self.config.block_size;
            let first = first.min(num_columns);
            let done = self.given_back[row.index() * groups + group];
            let room = self.max_give_back_updates.saturating_sub(self.tables.updates().len());
            let first = first.min(done.saturating_add(room as u32));
            for column in done..first {
                let block = self.tables.get(group, row, column);
                if !block.is_null() {
                    self.tables.set(group, row, column, BlockId::NULL);
                    self.release(block);
                }
            }
            self.given_back[row.index() * groups + group] = done.max(first);
        }
    }

    fn is_shared(&self, group: usize, row: RowId, column: u32) -> bool {
        self.pool.ref_count(self.tables.get(group, row, column)) > 1
    }

    fn copy_if_shared(&mut self, group: usize, row: RowId, column: u32) {
        if !self.is_shared(group, row, column) {
            return;
        }
        let from = self.tables.get(group, row, column);
        let to = self.allocate().expect("counted before");
        self.pin_until_copied(from);
        self.pool.release(from);
        self.tables.set(group, row, column, to);
        self.copies.push(BlockCopy { group: group as u32, from, to });
        self.counters.num_cow_copies += 1;
    }

    fn allocate(&mut self) -> Option<BlockId> {
        let (block, evicted) = self.pool.allocate()?;
        if let (Some(entry), Some(cache)) = (evicted, &mut self.cache) {
            cache.forget_block(entry, block);
            self.counters.num_evictions += 1;
        }
        Some(block)
    }

    /// Drops a reference; while batches are in flight, the block stays out of the free list.
    fn release(&mut self, block: BlockId) {
        if self.num_begun > self.num_ended && self.pool.ref_count(block) == 1 {
            self.pool.pin(block);
            self.deferred_frees.push_back((self.num_begun, block));
        }
        self.pool.release(block);
    }

    fn pin_until_copied(&mut self, block: BlockId) {
        self.pool.pin(block);
        self.copy_sources.push_back((self.num_begun + 1, block));
    }

    fn note_peak(&mut self) {
        self.counters.peak_blocks = self.counters.peak_blocks.max(self.pool.num_referenced());
    }
}
