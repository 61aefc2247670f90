//! The bugs to plant.

/// A bug: `old` is replaced by `new` in `file`; `PLANTED` in `new` is true while the bug is awake.
pub(crate) struct Mutant {
    pub(crate) name: &'static str,
    pub(crate) file: &'static str,
    pub(crate) old: &'static str,
    pub(crate) new: &'static str,
}

const fn mutant(
    name: &'static str,
    file: &'static str,
    old: &'static str,
    new: &'static str,
) -> Mutant {
    Mutant { name, file, old, new }
}

pub(crate) const MUTANTS: &[Mutant] = &[
    mutant(
        "a release does not count",
        "block_pool.rs",
        "state.ref_count -= 1;",
        "state.ref_count -= u32::from(!PLANTED);",
    ),
    mutant(
        "double free when a row closes",
        "kv_cache/mod.rs",
        "                if !block.is_null() {\n                    self.release(block);",
        "                if !block.is_null() {\n                    self.release(block);\n\
         if PLANTED && column == 0 { self.release(block); }",
    ),
    mutant(
        "the rows of ended sequences leak",
        "scheduler/update.rs",
        "            self.kv.close_row(row);\n",
        "            if !PLANTED { self.kv.close_row(row); }\n",
    ),
    mutant(
        "a chain is freed head first",
        "kv_cache/mod.rs",
        "for column in (0..state.num_columns).rev() {",
        "for i in 0..state.num_columns {\n\
         let column = if PLANTED { i } else { state.num_columns - 1 - i };",
    ),
    mutant(
        "cached blocks are reused first",
        "block_pool.rs",
        "if self.blocks[block.index()].entry.is_some() {",
        "if self.blocks[block.index()].entry.is_some() != PLANTED {",
    ),
    mutant(
        "shared blocks are written",
        "kv_cache/mod.rs",
        "if !self.is_shared(group, row, column) {",
        "if PLANTED || !self.is_shared(group, row, column) {",
    ),
    mutant(
        "copy-on-write skips the first group",
        "kv_cache/mod.rs",
        "            for group in 0..groups {\n                self.copy_if_shared",
        "            for group in usize::from(PLANTED)..groups {\n                self.copy_if_shared",
    ),
    mutant(
        "block copies get lost",
        "scheduler/arrays.rs",
        "let (copies, swap) = (kv.copies(), kv.swap_space());",
        "let (copies, swap) = (if PLANTED { &[] } else { kv.copies() }, kv.swap_space());",
    ),
    mutant(
        "copy sources are not held",
        "kv_cache/mod.rs",
        "        self.pool.pin(block);\n        self.copy_sources",
        "        if PLANTED { return; }\n        self.pool.pin(block);\n        self.copy_sources",
    ),
    mutant(
        "a fork does not count",
        "kv_cache/mod.rs",
        "                    self.pool.acquire(block);",
        "                    if !PLANTED { self.pool.acquire(block); }",
    ),
    mutant(
        "a prefix hit does not count",
        "kv_cache/prefix.rs",
        "                    self.pool.acquire(block);",
        "                    if !PLANTED { self.pool.acquire(block); }",
    ),
    mutant(
        "a hit under another parent",
        "prefix_cache.rs",
        "self.entries[id.index()].parent == Some(parent) &&",
        "(PLANTED || self.entries[id.index()].parent == Some(parent)) &&",
    ),
    mutant(
        "a hit on the hash alone",
        "prefix_cache.rs",
        " self.tokens(*id) == tokens\n",
        " (PLANTED || self.tokens(*id) == tokens)\n",
    ),
    mutant(
        "a hit on another tenant's content",
        "prefix_cache.rs",
        "self.entries[id.index()].key.as_deref() == Some(key)",
        "{ let own = self.entries[id.index()].key.as_deref(); own == Some(key) || PLANTED && own.is_some() }",
    ),
    mutant(
        "a hit on the whole prompt",
        "scheduler/admit.rs",
        ".min(tokens.len()) - 1;",
        ".min(tokens.len()) - u32::from(!PLANTED);",
    ),
    mutant(
        "a partial hit one token too long",
        "kv_cache/prefix.rs",
        "hit.partial = Some((entry, equal));",
        "hit.partial = Some((entry, (equal + u32::from(PLANTED)).min(end - start)));",
    ),
    mutant(
        "a partial hit on the wrong tokens",
        "prefix_cache.rs",
        "take_while(|(a, b)| a == b)",
        "take_while(|(a, b)| a == b || PLANTED)",
    ),
    mutant(
        "a window loses a block too early",
        "kv_cache/mod.rs",
        "let first = self.config.groups[group].first_visible(position) / self.config.block_size;",
        "let first = self.config.groups[group].first_visible(position) / self.config.block_size\n\
         + u32::from(PLANTED && self.config.groups[group] != crate::GroupKind::Full);",
    ),
    mutant(
        "a window is one token short",
        "config.rs",
        "    pub const fn first_visible(self, position: u32) -> u32 {\n        match self {",
        "    pub fn first_visible(self, position: u32) -> u32 {\n        match self {\n\
         Self::Sliding(window) if PLANTED => (position + 2).saturating_sub(window),\n\
         Self::Chunked(chunk) if PLANTED => (position + 1) / chunk * chunk,",
    ),
    mutant(
        "blocks are cached before they are computed",
        "scheduler/update.rs",
        "self.kv.commit(row.row, request.tokens(index), row.end);",
        "let end = if PLANTED { request.tokens(index).len() } else { row.end };\n\
         self.kv.commit(row.row, request.tokens(index), end);",
    ),
    mutant(
        "blocks of a failed batch are cached",
        "scheduler/update.rs",
        "let record = self.in_flight.pop_back().expect(\"checked above\");",
        "let record = self.in_flight.pop_back().expect(\"checked above\");\n\
         if PLANTED { self.commit(&record); }",
    ),
    mutant(
        "blocks come back while a batch uses them",
        "kv_cache/mod.rs",
        "if self.num_begun > self.num_ended && ",
        "if !PLANTED && self.num_begun > self.num_ended && ",
    ),
    mutant(
        "a reused block keeps its cache entry",
        "kv_cache/mod.rs",
        "if let (Some(entry), Some(cache)) = (evicted, &mut self.cache) {",
        "if let (Some(entry), Some(cache), false) = (evicted, &mut self.cache, PLANTED) {",
    ),
    mutant(
        "a token counts after the end",
        "scheduler/update.rs",
        "if !sequence.is_live() {",
        "if !PLANTED && !sequence.is_live() {",
    ),
    mutant(
        "a sequence runs past its limit",
        "request.rs",
        "&& sequence.num_output() + sequence.num_pending < self.max_output",
        "&& sequence.num_output() + sequence.num_pending * u32::from(!PLANTED) < self.max_output",
    ),
    mutant(
        "the token budget is not spent",
        "scheduler/arrays.rs",
        "self.budget -= end - start;",
        "self.budget -= (end - start) * u32::from(!PLANTED);",
    ),
    mutant(
        "slots are off by one",
        "scheduler/arrays.rs",
        "*to = slot(block, position & mask, size);",
        "*to = slot(block, (position + u32::from(PLANTED)) & mask, size);",
    ),
    mutant(
        "the last table update gets lost",
        "scheduler/arrays.rs",
        "self.batch.num_table_updates = updates.len() as u32;",
        "self.batch.num_table_updates = (updates.len() as u32).saturating_sub(u32::from(PLANTED));",
    ),
    mutant(
        "the tables of a host miss the last update",
        "block_tables.rs",
        "for update in &self.updates {",
        "for update in &self.updates[usize::from(PLANTED && !self.updates.is_empty())..] {",
    ),
    mutant(
        "a row fork gets lost",
        "scheduler/arrays.rs",
        "self.batch.num_row_forks = forks.len() as u32;",
        "self.batch.num_row_forks = forks.len() as u32 * u32::from(!PLANTED);",
    ),
    mutant(
        "late ids come from the wrong sample",
        "scheduler/arrays.rs",
        "= sequence.pending_sample as i32;",
        "= sequence.pending_sample as i32 + i32::from(PLANTED);",
    ),
    mutant(
        "siblings that part early are resumed as one",
        "fork.rs",
        "let at = request.prompt_len() + common;",
        "let at = request.prompt_len() + if PLANTED { b.len() as u32 } else { common };",
    ),
    mutant(
        "min_tokens is ignored",
        "stop.rs",
        "if num_output < self.min_tokens {",
        "if !PLANTED && num_output < self.min_tokens {",
    ),
    mutant(
        "a preempted request is lost",
        "scheduler/swap.rs",
        "        let rank = request.rank;\n        self.waiting.insert(rank, slot);",
        "        let rank = request.rank;\n        if !PLANTED { self.waiting.insert(rank, slot); }",
    ),
    mutant(
        "blocks do not come back from the host",
        "scheduler/arrays.rs",
        "self.batch.num_swap_in = swap.swap_in().len() as u32;",
        "self.batch.num_swap_in = swap.swap_in().len() as u32 * u32::from(!PLANTED);",
    ),
    mutant(
        "a request counts on blocks that a failed batch was to move",
        "scheduler/swap.rs",
        "if self.live(*slot, *arrival).is_some() {",
        "if !PLANTED && self.live(*slot, *arrival).is_some() {",
    ),
];
