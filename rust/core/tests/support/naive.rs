//! The allocator as one would write it without a thought for speed: vectors that are searched, whole
//! prefixes as keys. Every operation is done on both; then both must be in the same state, block
//! for block and in the same order.
#![allow(dead_code, reason = "each test that includes this file uses a part of it")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};

#[path = "naive_cache.rs"]
mod naive_cache;
#[path = "naive_compare.rs"]
mod naive_compare;
#[path = "naive_pool.rs"]
mod naive_pool;
#[path = "operations.rs"]
mod operations;

use naive_pool::{Content, NaivePool};
pub(crate) use operations::Op;
use operations::random_config;

use pagedkv_core::simulator::{Rng, mix};
use pagedkv_core::{CacheConfig, CacheKey, GroupKind, KvCacheManager};
use pagedkv_core::{RowId, TokenId, Tokens};

#[derive(Clone, Debug, Default)]
struct Row {
    tenant: u32,
    tokens: Vec<TokenId>,
    num_computed: usize,
    /// `[group][column]`
    columns: Vec<Vec<u32>>,
    num_committed: usize,
    /// The batch that last planned something for it.
    batch: u64,
    /// Nothing more is planned for it in this batch.
    is_frozen: bool,
}

#[derive(Clone, Debug, Default)]
struct Planned {
    writes: Vec<(u32, usize, Content)>,
    /// Row with the length that it has come to.
    rows: Vec<(usize, usize)>,
}

/// The real thing and the naive one, side by side.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    config: CacheConfig,
    pub(crate) real: KvCacheManager,
    pool: NaivePool,
    rows: Vec<Option<Row>>,
    planned: Planned,
    in_flight: VecDeque<Planned>,
    copies: Vec<(usize, u32, u32)>,
    memory: Vec<Option<Content>>,
    entries: BTreeSet<(u32, Vec<TokenId>)>,
    recent: BTreeMap<(u32, Vec<TokenId>, TokenId), Vec<TokenId>>,
}

fn key(tenant: u32) -> CacheKey {
    CacheKey { adapter_id: 0, salt: vec![1; tenant as usize] }
}

impl Pair {
    pub(crate) fn new(config: CacheConfig) -> Self {
        let num_blocks = config.num_blocks as usize;
        Self {
            real: KvCacheManager::new(config.clone(), usize::MAX),
            pool: NaivePool::new(config.num_blocks),
            rows: vec![None; config.num_rows as usize],
            planned: Planned::default(),
            in_flight: VecDeque::new(),
            copies: Vec::new(),
            memory: vec![None; num_blocks * config.block_size as usize],
            entries: BTreeSet::new(),
            recent: BTreeMap::new(),
            config,
        }
    }

    fn size(&self) -> usize {
        self.config.block_size as usize
    }

    /// Does `op` on both and compares them.
    pub(crate) fn apply(&mut self, op: &Op) -> Result<(), String> {
        match op {
            Op::Open { row, tenant, prompt } => self.open(*row as usize, *tenant, prompt)?,
            Op::Append { row, tokens } => self.append(*row as usize, tokens)?,
            Op::Fork { parent, child } => self.fork(*parent as usize, *child as usize),
            Op::Commit { row } => self.commit(*row as usize),
            Op::Close { row } => self.close(*row as usize, false),
            Op::Begin => self.begin()?,
            Op::End => self.end(),
            Op::Cancel => self.cancel(),
            Op::Reset => self.reset()?,
        }
        self.note_entries();
        self.compare().map_err(|message| format!("after {op:?}: {message}"))
    }

    /// Closes every row and lets every batch end.
    pub(crate) fn wind_up(&mut self) -> Result<(), String> {
        self.apply(&Op::Begin)?;
        while !self.in_flight.is_empty() {
            self.apply(&Op::End)?;
        }
        for row in 0..self.rows.len() {
            self.apply(&Op::Close { row: row as u32 })?;
        }
        if self.pool.free.len() + 1 != self.pool.refs.len() {
            return Err("blocks are missing at the end".to_owned());
        }
        self.apply(&Op::Reset)
    }

    fn open(&mut self, row: usize, tenant: u32, prompt: &[TokenId]) -> Result<(), String> {
        let prompt = &prompt[..prompt.len().min(self.config.max_model_len as usize)];
        if self.rows[row].is_some() {
            return Ok(());
        }
        let limit = prompt.len() - 1;
        let id = RowId::new(row as u32);
        let hit = self.real.find_prefix(&key(tenant), Tokens::new(prompt, &[]), limit as u32);
        self.real.open_row(id, &key(tenant));
        let num_real = self.real.attach_prefix(id, &hit) as usize;

        let (num_whole, partial) = self.find(tenant, prompt, limit);
        let mut columns = vec![Vec::new(); self.config.groups.len()];
        for (g, kind) in self.config.groups.clone().into_iter().enumerate() {
            let first = first_visible(kind, num_whole * self.size()) / self.size();
            for column in 0..num_whole {
                let content = (tenant, g, prompt[..(column + 1) * self.size()].to_vec());
                let block =
                    if column < first { 0 } else { self.pool.holder(&content).expect("a hit") };
                if block != 0 {
                    self.pool.take_from_free(block);
                    self.pool.refs[block as usize] += 1;
                }
                columns[g].push(block);
            }
        }
        let mut num_tokens = num_whole * self.size();
        if let Some((child, equal)) = partial
            && self.pool.free.len() >= 3 * columns.len()
        {
            let from: Vec<_> = (0..columns.len())
                .map(|g| self.pool.holder(&(tenant, g, child.clone())).expect("all groups have it"))
                .collect();
            for block in &from {
                self.pool.pin_until_copied(*block);
            }
            for (g, from) in from.into_iter().enumerate() {
                let to = self.pool.allocate();
                columns[g].push(to);
                self.copies.push((g, from, to));
            }
            num_tokens += equal;
        }
        if num_tokens != num_real {
            return Err(format!("{num_real} tokens were cached, but there are {num_tokens}"));
        }
        self.rows[row] = Some(Row {
            tenant,
            tokens: prompt[..num_tokens].to_vec(),
            num_computed: num_whole * self.size(),
            columns,
            num_committed: num_whole,
            batch: self.pool.num_begun + 1,
            is_frozen: false,
        });
        self.planned.rows.push((row, num_tokens));
        Ok(())
    }

    fn append(&mut self, row: usize, tokens: &[TokenId]) -> Result<(), String> {
        let Some(mut state) = self.rows[row].clone().filter(|row| !row.is_frozen) else {
            return Ok(());
        };
        let (size, groups) = (self.size(), self.config.groups.len());
        let start = state.tokens.len();
        let end = (start + tokens.len()).min(self.config.max_model_len as usize);
        if end == start {
            return Ok(());
        }
        let real = self.real.reserve(RowId::new(row as u32), start as u32, end as u32) as usize;

        for (g, kind) in self.config.groups.clone().into_iter().enumerate() {
            let first = (first_visible(kind, start) / size).min(state.columns[g].len());
            for column in 0..first {
                match std::mem::take(&mut state.columns[g][column]) {
                    0 => {}
                    block => self.pool.release(block),
                }
            }
        }
        let num_columns = state.columns[0].len();
        let is_open = start / size < num_columns;
        let shared: Vec<usize> = (0..groups)
            .filter(|g| is_open && self.pool.refs[state.columns[*g][start / size] as usize] > 1)
            .collect();
        let room = self.pool.free.len().checked_sub(shared.len());
        let room = room.map_or(start, |n| (num_columns + n / groups) * size);
        let end = end.min(room).max(start);
        if end > start {
            for g in shared {
                let from = state.columns[g][start / size];
                let to = self.pool.allocate();
                self.pool.pin_until_copied(from);
                self.pool.refs[from as usize] -= 1;
                state.columns[g][start / size] = to;
                self.copies.push((g, from, to));
            }
            for _ in num_columns..end.div_ceil(size) {
                for column in &mut state.columns {
                    let block = self.pool.allocate();
                    column.push(block);
                }
            }
            state.tokens.extend_from_slice(&tokens[..end - start]);
            state.is_frozen = true;
            state.batch = self.pool.num_begun + 1;
            self.planned.rows.push((row, end));
            for position in start..end {
                for g in 0..groups {
                    let block = state.columns[g][position / size];
                    let content = (state.tenant, g, state.tokens[..=position].to_vec());
                    self.planned.writes.push((block, position % size, content));
                }
            }
        }
        self.rows[row] = Some(state);
        if real != end {
            return Err(format!("{real} tokens were reserved, not {end}"));
        }
        Ok(())
    }

    fn fork(&mut self, parent: usize, child: usize) {
        let Some(mut state) = self.rows[parent].clone() else { return };
        if self.rows[child].is_some() || state.tokens.is_empty() {
            return;
        }
        let [from, to] = [parent, child].map(|row| RowId::new(row as u32));
        self.real.fork(from, to, state.tokens.len() as u32);
        for block in state.columns.iter().flatten().filter(|block| **block != 0) {
            self.pool.refs[*block as usize] += 1;
        }
        state.is_frozen = true;
        state.batch = self.pool.num_begun + 1;
        self.planned.rows.push((child, state.tokens.len()));
        self.rows[parent].as_mut().expect("just seen").is_frozen = true;
        self.rows[parent].as_mut().expect("just seen").batch = state.batch;
        self.rows[child] = Some(state);
    }

    fn commit(&mut self, row: usize) {
        let Some(mut state) = self.rows[row].clone() else { return };
        let tokens = Tokens::new(&state.tokens, &[]);
        self.real.commit(RowId::new(row as u32), tokens, state.num_computed as u32);
        if !self.config.enable_prefix_caching {
            return;
        }
        while (state.num_committed + 1) * self.size() <= state.num_computed {
            let column = state.num_committed;
            for g in 0..state.columns.len() {
                let block = state.columns[g][column] as usize;
                let prefix = state.tokens[..(column + 1) * self.size()].to_vec();
                let content = (state.tenant, g, prefix);
                if block != 0
                    && self.pool.holder(&content).is_none()
                    && self.pool.content[block].is_none()
                {
                    self.pool.content[block] = Some(content);
                }
            }
            state.num_committed += 1;
        }
        self.rows[row] = Some(state);
    }

    /// A row that the batch being planned uses stays open, unless that batch is cancelled.
    fn close(&mut self, row: usize, is_cancelled: bool) {
        let is_used = |row: &Row| row.batch > self.pool.num_begun && !is_cancelled;
        let Some(state) = self.rows[row].take_if(|row| !is_used(row)) else { return };
        self.real.close_row(RowId::new(row as u32));
        for column in (0..state.columns[0].len()).rev() {
            for g in 0..state.columns.len() {
                match state.columns[g][column] {
                    0 => {}
                    block => self.pool.release(block),
                }
            }
        }
    }

    /// Runs the batch on the memory: copies, writes, and reads by all rows that wrote.
    fn begin(&mut self) -> Result<(), String> {
        self.real.begin_batch();
        self.pool.num_begun += 1;
        let size = self.size();
        for (_, from, to) in std::mem::take(&mut self.copies) {
            for slot in 0..size {
                let content = self.memory[from as usize * size + slot].clone();
                self.memory[to as usize * size + slot] = content;
            }
        }
        let planned = std::mem::take(&mut self.planned);
        for (block, slot, content) in &planned.writes {
            self.memory[*block as usize * size + slot] = Some(content.clone());
        }
        self.in_flight.push_back(planned);
        for row in self.rows.iter_mut().flatten() {
            row.is_frozen = false;
        }
        for (r, row) in self.rows.iter().enumerate() {
            let Some(row) = row else { continue };
            for (g, kind) in self.config.groups.iter().enumerate() {
                let next = row.tokens.len();
                for position in first_visible(*kind, next)..next {
                    let block = row.columns[g][position / size] as usize;
                    let want = (row.tenant, g, row.tokens[..=position].to_vec());
                    if block == 0 || self.memory[block * size + position % size] != Some(want) {
                        return Err(format!("row {r} group {g} does not hold position {position}"));
                    }
                }
            }
        }
        Ok(())
    }

    fn end(&mut self) {
        let Some(planned) = self.in_flight.pop_front() else { return };
        self.real.end_batch();
        self.pool.num_ended += 1;
        for (row, len) in planned.rows {
            // A row that was closed since and opened again is at least in a later batch.
            if let Some(row) = &mut self.rows[row]
                && row.tokens.len() >= len
                && row.batch <= self.pool.num_ended
            {
                row.num_computed = row.num_computed.max(len);
            }
        }
        self.pool.release_due();
    }

    fn cancel(&mut self) {
        // What is being planned already counts on the newest batch.
        if !self.planned.rows.is_empty() {
            return;
        }
        let Some(planned) = self.in_flight.pop_back() else { return };
        for row in 0..self.rows.len() {
            if self.rows[row].as_ref().is_some_and(|row| row.batch == self.pool.num_begun) {
                self.close(row, true);
            }
        }
        for (block, slot, _) in planned.writes {
            let at = block as usize * self.size() + slot;
            self.memory[at] = None;
        }
        self.real.cancel_batch();
        self.pool.cancel_batch();
    }

    fn reset(&mut self) -> Result<(), String> {
        let is_idle = self.rows.iter().all(Option::is_none);
        if self.real.reset_prefix_cache() != is_idle {
            return Err("reset while rows are open, or refused at rest".to_owned());
        }
        if is_idle {
            self.pool.content.fill(None);
        }
        Ok(())
    }
}

/// The first key that a query at `position` sees, by the definition of the mask.
fn first_visible(kind: GroupKind, position: usize) -> usize {
    match kind {
        GroupKind::Full => 0,
        GroupKind::Sliding(window) => (position + 1).saturating_sub(window as usize),
        GroupKind::Chunked(chunk) => position - position % chunk as usize,
    }
}

/// A random test of 120 operations.
pub(crate) fn run(seed: u64) -> Result<(), String> {
    let mut rng = Rng::new(mix(seed, 0x006e_6169_7665));
    let config = random_config(&mut rng);
    let (num_rows, block_size) = (config.num_rows, config.block_size);
    let mut pair = Pair::new(config);
    for _ in 0..120 {
        let op = Op::random(&mut rng, num_rows, block_size);
        pair.apply(&op)?;
    }
    pair.wind_up()
}
