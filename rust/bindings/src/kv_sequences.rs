//! Sequences over the core's block allocator. Every operation is a batch that has run when it returns.

use pagedkv_core::{
    BlockCopy, CacheConfig, CacheKey, KvCacheManager, PrefixHit, RowId, TokenId, Tokens,
    num_blocks_for,
};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

struct Sequence {
    generation: u64,
    tokens: Vec<TokenId>,
}

/// The blocks and the tokens of sequences; each sequence has a row.
pub(crate) struct KvSequences {
    core: KvCacheManager,
    /// By row.
    sequences: Vec<Option<Sequence>>,
    num_sequences: usize,
    num_generations: u64,
    copies: Vec<BlockCopy>,
}

impl KvSequences {
    pub(crate) fn new(config: CacheConfig) -> Self {
        Self {
            sequences: (0..config.num_rows).map(|_| None).collect(),
            core: KvCacheManager::new(config, usize::MAX),
            num_sequences: 0,
            num_generations: 0,
            copies: Vec::new(),
        }
    }

    pub(crate) const fn core(&self) -> &KvCacheManager {
        &self.core
    }

    pub(crate) const fn num_sequences(&self) -> usize {
        self.num_sequences
    }

    /// Tells the sequence in `row` from those that had the row before; none if it is free.
    pub(crate) fn generation(&self, row: RowId) -> Option<u64> {
        self.sequences[row.index()].as_ref().map(|sequence| sequence.generation)
    }

    pub(crate) fn take_copies(&mut self) -> Vec<BlockCopy> {
        std::mem::take(&mut self.copies)
    }

    /// How many leading tokens [`start`](Self::start) would find.
    pub(crate) fn match_prefix(&self, tokens: &[TokenId], key: &CacheKey) -> u32 {
        let limit = (tokens.len() as u32).saturating_sub(1);
        self.core.find_prefix(key, Tokens::new(tokens, &[]), limit).num_tokens
    }

    pub(crate) fn reset_prefix_cache(&mut self) -> bool {
        self.core.reset_prefix_cache()
    }

    /// Starts a sequence in the free row `child` that shares the blocks of `parent`. Returns its length.
    pub(crate) fn fork(&mut self, parent: RowId, child: RowId) -> u32 {
        let tokens = self.tokens(parent).to_vec();
        let num_tokens = tokens.len() as u32;
        self.core.fork(parent, child, num_tokens);
        self.register(child, tokens);
        self.end_call();
        num_tokens
    }

    pub(crate) fn free(&mut self, row: RowId) {
        self.core.close_row(row);
        self.sequences[row.index()] = None;
        self.num_sequences -= 1;
        self.end_call();
    }

    /// # Errors
    /// `ValueError` for a sequence of `num_tokens` that is empty or too long.
    pub(crate) fn check_length(&self, num_tokens: usize) -> PyResult<()> {
        let max_model_len = self.core.config().max_model_len as usize;
        if (1..=max_model_len).contains(&num_tokens) {
            return Ok(());
        }
        Err(PyValueError::new_err(format!(
            "a sequence must have from 1 to max_model_len ({max_model_len}) tokens, got {num_tokens}"
        )))
    }

    pub(crate) fn free_row(&self) -> Option<RowId> {
        self.sequences.iter().position(Option::is_none).map(|row| RowId::new(row as u32))
    }

    pub(crate) fn tokens(&self, row: RowId) -> &[TokenId] {
        self.sequences[row.index()].as_ref().map_or(&[], |sequence| &sequence.tokens)
    }

    fn register(&mut self, row: RowId, tokens: Vec<TokenId>) {
        self.num_generations += 1;
        self.num_sequences += 1;
        let generation = self.num_generations;
        self.sequences[row.index()] = Some(Sequence { generation, tokens });
    }

    /// Fills `row` from the prefix cache and with fresh blocks. Returns how many tokens the cache had;
    /// none, and nothing done, without room.
    pub(crate) fn start(
        &mut self,
        row: RowId,
        tokens: Vec<TokenId>,
        key: &CacheKey,
    ) -> Option<u32> {
        let num_tokens = tokens.len() as u32;
        let run = Tokens::new(&tokens, &[]);
        let mut hit = self.core.find_prefix(key, run, num_tokens - 1);
        if !self.has_room(&hit, num_tokens) {
            hit.drop_partial(self.core.config().block_size);
        }
        if !self.has_room(&hit, num_tokens) {
            // In a window group the hit can cost more than it saves.
            hit = PrefixHit::default();
        }
        if !self.has_room(&hit, num_tokens) {
            return None;
        }
        self.core.open_row(row, key);
        let num_cached = self.core.attach_prefix(row, &hit);
        let end = self.core.reserve(row, num_cached, num_tokens);
        assert!(end == num_tokens, "blocks were counted before");
        self.core.commit(row, run, num_tokens);
        self.register(row, tokens);
        self.end_call();
        Some(num_cached)
    }

    fn has_room(&self, hit: &PrefixHit, num_tokens: u32) -> bool {
        let config = self.core.config();
        let num_missing =
            num_blocks_for(num_tokens, config.block_size) - hit.num_tokens / config.block_size;
        num_missing * config.groups.len() as u32 + hit.num_free_blocks()
            <= self.core.pool().num_free()
    }

    /// Adds tokens to the sequence in `row`; false, and nothing added, without room for them.
    pub(crate) fn append(&mut self, row: RowId, tokens: &[TokenId]) -> bool {
        let start = self.tokens(row).len() as u32;
        let end = start + tokens.len() as u32;
        // Windows give back first what they no longer see.
        self.core.reserve(row, start, start);
        let is_possible = self.blocks_to_append(row, start, end) <= self.core.pool().num_free();
        if is_possible && end > start {
            let reserved = self.core.reserve(row, start, end);
            assert!(reserved == end, "blocks were counted before");
            if let Some(sequence) = &mut self.sequences[row.index()] {
                sequence.tokens.extend_from_slice(tokens);
                self.core.commit(row, Tokens::new(&sequence.tokens, &[]), end);
            }
        }
        self.end_call();
        is_possible
    }

    /// Blocks for positions `start..end`: fresh ones, and a copy where the last one is shared.
    fn blocks_to_append(&self, row: RowId, start: u32, end: u32) -> u32 {
        let (core, config) = (&self.core, self.core.config());
        let groups = config.groups.len();
        let num_columns = core.num_columns(row);
        let column = start / config.block_size;
        let is_shared =
            |group: &usize| core.pool().ref_count(core.tables().get(*group, row, column)) > 1;
        let num_copies = if column < num_columns && end > start {
            (0..groups).filter(is_shared).count() as u32
        } else {
            0
        };
        let num_fresh = num_blocks_for(end, config.block_size) - num_columns;
        num_fresh * groups as u32 + num_copies
    }

    fn end_call(&mut self) {
        self.copies.extend_from_slice(self.core.copies());
        self.core.begin_batch();
        self.core.end_batch();
    }

    pub(crate) fn check_invariants(&self) -> Result<(), String> {
        self.core.check_invariants()?;
        for (row, sequence) in self.sequences.iter().enumerate() {
            let Some(sequence) = sequence else { continue };
            let tokens = Tokens::new(&sequence.tokens, &[]);
            self.core.check_content(RowId::new(row as u32), tokens)?;
        }
        Ok(())
    }
}
