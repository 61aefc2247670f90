//! What must hold between any two calls.

use super::KvCacheManager;
use crate::ids::{BlockId, RowId};
use crate::prefix_cache::EntryId;
use crate::tokens::Tokens;

impl KvCacheManager {
    /// Checks tables, counts, pins and cache against each other. O(blocks + tables).
    ///
    /// # Errors
    /// The first statement found to be false.
    pub fn check_invariants(&self) -> Result<(), String> {
        let groups = self.config.groups.len();
        let mut refs = vec![0; self.config.num_blocks as usize];
        let mut tips = Vec::new();
        for (i, row) in self.rows.iter().enumerate() {
            let id = RowId::new(i as u32);
            if !row.is_open && (row.num_columns > 0 || row.tip.is_some()) {
                return Err(format!("closed row {i} holds something"));
            }
            tips.extend(row.tip.map(|tip| (tip, 1)));
            for group in 0..groups {
                let given_back = self.given_back[i * groups + group];
                for column in 0..row.num_columns {
                    let block = self.tables.get(group, id, column);
                    if block.is_null() != (column < given_back) {
                        return Err(format!("row {i} column {column} should not be {block:?}"));
                    }
                    refs[block.index()] += u32::from(!block.is_null());
                }
            }
        }
        let mut pins = vec![0; self.config.num_blocks as usize];
        for (_, block) in self.deferred_frees.iter().chain(&self.copy_sources) {
            pins[block.index()] += 1;
        }
        self.pool.check_invariants(&refs, &pins)?;
        self.check_cache(&tips)
    }

    fn check_cache(&self, tips: &[(EntryId, u32)]) -> Result<(), String> {
        let Some(cache) = &self.cache else { return Ok(()) };
        cache.check_invariants(tips)?;
        let mut num_found = 0;
        for id in 1..self.config.num_blocks {
            let block = BlockId::new(id);
            let Some(entry) = self.pool.entry(block) else { continue };
            num_found += 1;
            if !(0..self.config.groups.len()).any(|g| cache.block(entry, g) == block) {
                return Err(format!("block {id} claims content that the cache has elsewhere"));
            }
        }
        if num_found != cache.num_blocks() {
            return Err("the cache lists blocks that do not know of it".to_owned());
        }
        Ok(())
    }

    /// Checks that every cached block of `row` holds `tokens`.
    ///
    /// # Errors
    /// The first column whose content differs.
    pub fn check_content(&self, row: RowId, tokens: Tokens<'_>) -> Result<(), String> {
        let Some(cache) = &self.cache else { return Ok(()) };
        let size = self.config.block_size;
        let mut scratch = Vec::new();
        for column in 0..self.rows[row.index()].num_columns {
            for group in 0..self.config.groups.len() {
                let block = self.tables.get(group, row, column);
                if block.is_null() {
                    continue;
                }
                let Some(entry) = self.pool.entry(block) else { continue };
                let want = tokens.slice(column * size, (column + 1) * size, &mut scratch);
                if cache.tokens(entry) != want {
                    return Err(format!("row {} column {column} holds other tokens", row.get()));
                }
            }
        }
        Ok(())
    }
}
