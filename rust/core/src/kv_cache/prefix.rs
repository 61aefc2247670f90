//! Serving a sequence's past from cached blocks.

use super::{BlockCopy, KvCacheManager};
use crate::ids::{BlockId, RowId};
use crate::prefix_cache::{CacheKey, EntryId, PrefixCache};
use crate::tokens::Tokens;

/// How much of a sequence is cached; made by [`KvCacheManager::find_prefix`].
#[derive(Clone, Debug, Default)]
pub struct PrefixHit {
    entries: Vec<EntryId>,
    partial: Option<(EntryId, u32)>,
    /// Tokens whose keys and values need not be computed.
    pub num_tokens: u32,
    num_free_whole: u32,
    num_free_partial: u32,
}

impl PrefixHit {
    /// Blocks of the hit that are free now and stop being so when it is attached.
    pub const fn num_free_blocks(&self) -> u32 {
        self.num_free_whole + self.num_free_partial
    }

    /// Blocks of the hit that are shared whole.
    pub const fn num_whole_blocks(&self) -> u32 {
        self.entries.len() as u32
    }

    /// Gives up the part of a block, which needs a block more than computing its tokens does.
    pub fn drop_partial(&mut self, block_size: u32) {
        self.partial = None;
        self.num_free_partial = 0;
        self.num_tokens = self.entries.len() as u32 * block_size;
    }
}

impl KvCacheManager {
    /// How much of `tokens` is cached under `key`, at most `limit` tokens.
    ///
    /// Whole blocks are shared; inside the first block that differs, the parent's most recent child
    /// that starts alike is a candidate whose leading slots can be copied. A window group needs
    /// only what its window still sees. Nothing is changed.
    pub fn find_prefix(&self, key: &CacheKey, tokens: Tokens<'_>, limit: u32) -> PrefixHit {
        let mut hit = PrefixHit::default();
        let Some(root) = self.cache.as_ref().and_then(|cache| cache.root(key)) else { return hit };
        hit.entries = self.known_blocks(root, tokens, limit);
        let num_blocks = self.longest_usable(&hit.entries);
        hit.entries.truncate(num_blocks as usize);
        hit.num_tokens = num_blocks * self.config.block_size;
        self.add_partial(&mut hit, root, tokens, limit);
        self.count_free(&mut hit);
        hit
    }

    /// Gives `hit` (found since the last change) to the fresh `row`. Returns the tokens it covers:
    /// fewer than `hit.num_tokens` if there was no block to copy a part into.
    pub fn attach_prefix(&mut self, row: RowId, hit: &PrefixHit) -> u32 {
        let Some(cache) = &mut self.cache else { return 0 };
        let num_columns = hit.entries.len() as u32;
        let state = &mut self.rows[row.index()];
        assert!(state.is_open && state.num_columns == 0, "a prefix goes to a fresh row");
        if let Some(&tip) = hit.entries.last() {
            cache.pin(tip);
            if let Some(root) = state.tip.replace(tip) {
                cache.unpin(root);
            }
            state.num_committed = num_columns;
        }
        state.num_columns = num_columns;
        let num_whole = num_columns * self.config.block_size;
        for group in 0..self.config.groups.len() {
            let first = self.config.groups[group].first_visible(num_whole) / self.config.block_size;
            self.given_back[row.index() * self.config.groups.len() + group] = first;
            for column in 0..num_columns {
                let block = if column < first {
                    BlockId::NULL
                } else {
                    self.cache.as_ref().map_or(BlockId::NULL, |cache| {
                        cache.block(hit.entries[column as usize], group)
                    })
                };
                if !block.is_null() {
                    self.pool.acquire(block);
                }
                self.tables.set(group, row, column, block);
            }
        }
        let copied = hit.partial.map_or(0, |(entry, n)| self.copy_partial(row, entry, n));
        self.note_peak();
        num_whole + copied
    }

    /// Forgets all cached content. False, and nothing done, while a row is open.
    pub fn reset_prefix_cache(&mut self) -> bool {
        if self.rows.iter().any(|row| row.is_open) {
            return false;
        }
        let Some(cache) = &mut self.cache else { return true };
        for id in 1..self.config.num_blocks {
            let block = BlockId::new(id);
            if let Some(entry) = self.pool.entry(block) {
                self.pool.set_entry(block, None);
                cache.forget_block(entry, block);
            }
        }
        true
    }

    /// The entries of the leading whole blocks of `tokens`, whether or not blocks still hold them.
    pub(super) fn known_blocks(
        &self,
        root: EntryId,
        tokens: Tokens<'_>,
        limit: u32,
    ) -> Vec<EntryId> {
        let mut entries = Vec::new();
        let Some(cache) = &self.cache else { return entries };
        let size = self.config.block_size;
        let mut scratch = Vec::new();
        let mut parent = root;
        while (entries.len() as u32 + 1) * size <= limit {
            let start = entries.len() as u32 * size;
            let block = tokens.slice(start, start + size, &mut scratch);
            let Some(entry) = cache.child(parent, block) else { break };
            entries.push(entry);
            parent = entry;
        }
        entries
    }

    /// The most leading entries that every group can serve.
    pub(super) fn longest_usable(&self, entries: &[EntryId]) -> u32 {
        let Some(cache) = &self.cache else { return 0 };
        let size = self.config.block_size;
        let mut usable = entries.len() as u32;
        // Shrinking for one group can invalidate another, so all are asked until none objects.
        'shrink: while usable > 0 {
            for (g, kind) in self.config.groups.iter().enumerate() {
                let first = kind.first_visible(usable * size) / size;
                let missing = (first..usable)
                    .rfind(|column| cache.block(entries[*column as usize], g).is_null());
                if let Some(column) = missing {
                    usable = column;
                    continue 'shrink;
                }
            }
            break;
        }
        usable
    }

    fn add_partial(&self, hit: &mut PrefixHit, root: EntryId, tokens: Tokens<'_>, limit: u32) {
        let Some(cache) = &self.cache else { return };
        let start = hit.num_tokens;
        let end = limit.min(start + self.config.block_size);
        if start >= end {
            return;
        }
        let parent = hit.entries.last().copied().unwrap_or(root);
        let mut scratch = Vec::new();
        let wanted = tokens.slice(start, end, &mut scratch);
        if let Some((entry, equal)) = cache.candidate(parent, wanted)
            && cache.has_all_blocks(entry)
        {
            hit.partial = Some((entry, equal));
            hit.num_tokens += equal;
        }
    }

    fn count_free(&self, hit: &mut PrefixHit) {
        let Some(cache) = &self.cache else { return };
        let size = self.config.block_size;
        let num_whole = hit.entries.len() as u32;
        for (g, kind) in self.config.groups.iter().enumerate() {
            let first = kind.first_visible(num_whole * size) / size;
            let is_free = |entry: &&EntryId| self.pool.is_free(cache.block(**entry, g));
            let whole = hit.entries[first as usize..].iter().filter(is_free).count();
            let partial = hit.partial.iter().map(|(entry, _)| entry).filter(is_free).count();
            hit.num_free_whole += whole as u32;
            hit.num_free_partial += partial as u32;
        }
    }

    fn copy_partial(&mut self, row: RowId, entry: EntryId, num_tokens: u32) -> u32 {
        let groups = self.config.groups.len();
        let column = self.rows[row.index()].num_columns;
        // One block to copy from and one to copy into, per group, and one to go on with.
        if self.pool.num_free() < 3 * groups as u32 {
            return 0;
        }
        let source = |cache: &Option<PrefixCache>, group| {
            cache.as_ref().map_or(BlockId::NULL, |cache| cache.block(entry, group))
        };
        // All sources first: an allocation could otherwise evict one of them.
        for group in 0..groups {
            self.pin_until_copied(source(&self.cache, group));
        }
        for group in 0..groups {
            let from = source(&self.cache, group);
            let to = self.allocate().expect("counted before");
            self.tables.set(group, row, column, to);
            self.pool.fill(to, num_tokens);
            self.copies.push(BlockCopy { group: group as u32, from, to });
            self.counters.num_partial_copies += 1;
        }
        self.rows[row.index()].num_columns = column + 1;
        num_tokens
    }
}
