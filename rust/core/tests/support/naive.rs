//! The allocator as one would write it without a thought for speed: vectors that are searched, whole
//! prefixes as keys. Every operation is done on both; then both must be in the same state, block
//! for block and in the same order.
#![allow(dead_code, reason = "each test that includes this file uses a part of it")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use pagedkv_core::simulator::{Rng, mix};
use pagedkv_core::{
    BlockId, CacheConfig, CacheKey, GroupKind, KvCacheManager, RowId, TokenId, Tokens,
};

/// One step of a test. An operation that makes no sense in the state it meets does nothing.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    /// Opens a row with whatever is cached of a prompt.
    Open {
        row: u32,
        tenant: u32,
        prompt: Vec<TokenId>,
    },
    /// Plans to compute more tokens of a row.
    Append {
        row: u32,
        tokens: Vec<TokenId>,
    },
    Fork {
        parent: u32,
        child: u32,
    },
    /// Makes what has been computed findable.
    Commit {
        row: u32,
    },
    Close {
        row: u32,
    },
    /// The batch that was planned is on its way.
    Begin,
    /// The oldest batch has run.
    End,
    /// The newest batch failed: its rows close.
    Cancel,
    Reset,
}

impl Op {
    pub(crate) fn random(rng: &mut Rng, num_rows: u32, block_size: u32) -> Self {
        let row = rng.below(num_rows);
        let tokens = |rng: &mut Rng, max| (0..rng.range(1, max)).map(|_| rng.below(2)).collect();
        match rng.below(20) {
            0..=3 => Self::Open { row, tenant: rng.below(2), prompt: tokens(rng, 3 * block_size) },
            4..=8 => Self::Append { row, tokens: tokens(rng, 2 * block_size) },
            9..=10 => Self::Fork { parent: row, child: rng.below(num_rows) },
            11..=12 => Self::Commit { row },
            13 => Self::Close { row },
            14..=16 => Self::Begin,
            17..=18 => Self::End,
            _ if rng.chance(70) => Self::Cancel,
            _ => Self::Reset,
        }
    }
}

/// What a block or a slot holds: everything from the start of the sequence.
type Content = (u32, usize, Vec<TokenId>);
type Pins = VecDeque<(u64, u32)>;

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
    refs: Vec<u32>,
    pins: Vec<u32>,
    content: Vec<Option<Content>>,
    free: Vec<u32>,
    rows: Vec<Option<Row>>,
    deferred: Pins,
    sources: Pins,
    num_begun: u64,
    num_ended: u64,
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
            refs: vec![0; num_blocks],
            pins: vec![0; num_blocks],
            content: vec![None; num_blocks],
            free: (1..config.num_blocks).collect(),
            rows: vec![None; config.num_rows as usize],
            deferred: Pins::new(),
            sources: Pins::new(),
            num_begun: 0,
            num_ended: 0,
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
        if self.free.len() + 1 != self.refs.len() {
            return Err("blocks are missing at the end".to_owned());
        }
        self.apply(&Op::Reset)
    }

    /// A summary in which equal states are equal.
    pub(crate) fn fingerprint(&self) -> String {
        let batches = (self.num_begun - self.num_ended, &self.planned, &self.in_flight);
        let age = |batch: u64| batch as i64 - self.num_ended as i64;
        let pins = [&self.deferred, &self.sources]
            .map(|pins| pins.iter().map(|(batch, id)| (age(*batch), *id)).collect::<Vec<_>>());
        // Which row is which does not matter: all operations exist for all rows.
        let rows: Vec<_> = (self.rows.iter().flatten())
            .map(|row| {
                let plan = (age(row.batch), row.is_frozen, row.num_computed);
                (&row.tokens, &row.columns, row.num_committed, plan)
            })
            .collect();
        format!("{:?}{:?}{rows:?}{batches:?}{pins:?}{:?}", self.free, self.content, self.recent)
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
                let block = if column < first { 0 } else { self.holder(&content).expect("a hit") };
                if block != 0 {
                    self.take_from_free(block);
                    self.refs[block as usize] += 1;
                }
                columns[g].push(block);
            }
        }
        let mut num_tokens = num_whole * self.size();
        if let Some((child, equal)) = partial
            && self.free.len() >= 3 * columns.len()
        {
            let from: Vec<_> = (0..columns.len())
                .map(|g| self.holder(&(tenant, g, child.clone())).expect("all groups have it"))
                .collect();
            from.iter().for_each(|block| self.pin_until_copied(*block));
            for (g, from) in from.into_iter().enumerate() {
                let to = self.allocate();
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
            batch: self.num_begun + 1,
            is_frozen: false,
        });
        self.planned.rows.push((row, num_tokens));
        Ok(())
    }

    /// Cached whole blocks, and the child of the last that can serve some more tokens.
    fn find(
        &self,
        tenant: u32,
        prompt: &[TokenId],
        limit: usize,
    ) -> (usize, Option<(Vec<TokenId>, usize)>) {
        if !self.config.enable_prefix_caching {
            return (0, None);
        }
        let size = self.size();
        let is_known = |n: &usize| self.entries.contains(&(tenant, prompt[..n * size].to_vec()));
        let num_known = (1..=limit / size).take_while(is_known).count();
        let is_usable = |n: &usize| {
            self.config.groups.iter().enumerate().all(|(g, kind)| {
                (first_visible(*kind, n * size) / size..*n).all(|column| {
                    self.holder(&(tenant, g, prompt[..(column + 1) * size].to_vec())).is_some()
                })
            })
        };
        let num_whole = (0..=num_known).rev().find(is_usable).unwrap_or(0);
        let start = num_whole * size;
        let wanted = &prompt[start..limit.min(start + size)];
        let Some(first) = wanted.first() else { return (num_whole, None) };
        let child = self.recent.get(&(tenant, prompt[..start].to_vec(), *first));
        let child = child.filter(|child| {
            (0..self.config.groups.len())
                .all(|g| self.holder(&(tenant, g, child.to_vec())).is_some())
        });
        let partial = child.map(|child| {
            let equal = child[start..].iter().zip(wanted).take_while(|(a, b)| a == b).count();
            (child.clone(), equal)
        });
        (num_whole, partial)
    }

    fn append(&mut self, row: usize, tokens: &[TokenId]) -> Result<(), String> {
        let Some(state) = self.rows[row].clone().filter(|row| !row.is_frozen) else {
            return Ok(());
        };
        let (size, groups) = (self.size(), self.config.groups.len());
        let start = state.tokens.len();
        let end = (start + tokens.len()).min(self.config.max_model_len as usize);
        if end == start {
            return Ok(());
        }
        let real = self.real.reserve(RowId::new(row as u32), start as u32, end as u32) as usize;

        let mut state = state;
        for (g, kind) in self.config.groups.clone().into_iter().enumerate() {
            let first = (first_visible(kind, start) / size).min(state.columns[g].len());
            for column in 0..first {
                match std::mem::take(&mut state.columns[g][column]) {
                    0 => {}
                    block => self.release(block),
                }
            }
        }
        let num_columns = state.columns[0].len();
        let is_open = start / size < num_columns;
        let shared: Vec<usize> = (0..groups)
            .filter(|g| is_open && self.refs[state.columns[*g][start / size] as usize] > 1)
            .collect();
        let room = self.free.len().checked_sub(shared.len());
        let room = room.map_or(start, |n| (num_columns + n / groups) * size);
        let end = end.min(room).max(start);
        if end > start {
            for g in shared {
                let from = state.columns[g][start / size];
                let to = self.allocate();
                self.pin_until_copied(from);
                self.refs[from as usize] -= 1;
                state.columns[g][start / size] = to;
                self.copies.push((g, from, to));
            }
            for _ in num_columns..end.div_ceil(size) {
                for column in &mut state.columns {
                    let block = self.allocate();
                    column.push(block);
                }
            }
            state.tokens.extend_from_slice(&tokens[..end - start]);
            state.is_frozen = true;
            state.batch = self.num_begun + 1;
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
            self.refs[*block as usize] += 1;
        }
        state.is_frozen = true;
        state.batch = self.num_begun + 1;
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
                if block != 0 && self.holder(&content).is_none() && self.content[block].is_none() {
                    self.content[block] = Some(content);
                }
            }
            state.num_committed += 1;
        }
        self.rows[row] = Some(state);
    }

    /// A row that the batch being planned uses stays open, unless that batch is cancelled.
    fn close(&mut self, row: usize, is_cancelled: bool) {
        let is_used = |row: &Row| row.batch > self.num_begun && !is_cancelled;
        let Some(state) = self.rows[row].take_if(|row| !is_used(row)) else { return };
        self.real.close_row(RowId::new(row as u32));
        for column in (0..state.columns[0].len()).rev() {
            for g in 0..state.columns.len() {
                match state.columns[g][column] {
                    0 => {}
                    block => self.release(block),
                }
            }
        }
    }

    /// Runs the batch on the memory: copies, writes, and reads by all rows that wrote.
    fn begin(&mut self) -> Result<(), String> {
        self.real.begin_batch();
        self.num_begun += 1;
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
        self.num_ended += 1;
        for (row, len) in planned.rows {
            // A row that was closed since and opened again is at least in a later batch.
            if let Some(row) = &mut self.rows[row]
                && row.tokens.len() >= len
                && row.batch <= self.num_ended
            {
                row.num_computed = row.num_computed.max(len);
            }
        }
        self.release_due();
    }

    fn cancel(&mut self) {
        // What is being planned already counts on the newest batch.
        if !self.planned.rows.is_empty() {
            return;
        }
        let Some(planned) = self.in_flight.pop_back() else { return };
        for row in 0..self.rows.len() {
            if self.rows[row].as_ref().is_some_and(|row| row.batch == self.num_begun) {
                self.close(row, true);
            }
        }
        for (block, slot, _) in planned.writes {
            let at = block as usize * self.size() + slot;
            self.memory[at] = None;
        }
        self.real.cancel_batch();
        self.num_begun -= 1;
        for (batch, _) in self.deferred.iter_mut().chain(&mut self.sources) {
            *batch = self.num_begun.min(*batch);
        }
        self.release_due();
    }

    fn reset(&mut self) -> Result<(), String> {
        let is_idle = self.rows.iter().all(Option::is_none);
        if self.real.reset_prefix_cache() != is_idle {
            return Err("reset while rows are open, or refused at rest".to_owned());
        }
        if is_idle {
            self.content.fill(None);
        }
        Ok(())
    }

    /// The block whose content is known to be `content`.
    fn holder(&self, content: &Content) -> Option<u32> {
        self.content.iter().position(|other| other.as_ref() == Some(content)).map(|id| id as u32)
    }

    fn allocate(&mut self) -> u32 {
        let block = self.free.remove(0);
        self.refs[block as usize] = 1;
        self.content[block as usize] = None;
        block
    }

    fn release(&mut self, block: u32) {
        if self.num_begun > self.num_ended && self.refs[block as usize] == 1 {
            self.pins[block as usize] += 1;
            self.deferred.push_back((self.num_begun, block));
        }
        self.refs[block as usize] -= 1;
        self.add_to_free(block);
    }

    fn pin_until_copied(&mut self, block: u32) {
        self.take_from_free(block);
        self.pins[block as usize] += 1;
        self.sources.push_back((self.num_begun + 1, block));
    }

    fn release_due(&mut self) {
        for is_source in [false, true] {
            loop {
                let queue = if is_source { &mut self.sources } else { &mut self.deferred };
                let Some((_, block)) = queue.pop_front_if(|(batch, _)| *batch <= self.num_ended)
                else {
                    break;
                };
                self.pins[block as usize] -= 1;
                self.add_to_free(block);
            }
        }
    }

    fn take_from_free(&mut self, block: u32) {
        self.free.retain(|other| *other != block);
    }

    fn add_to_free(&mut self, block: u32) {
        if self.refs[block as usize] == 0 && self.pins[block as usize] == 0 {
            let at = if self.content[block as usize].is_some() { self.free.len() } else { 0 };
            self.free.insert(at, block);
        }
    }

    /// A prefix is known while a block holds it, or something longer, or a row has committed it.
    fn note_entries(&mut self) {
        let size = self.size();
        let mut entries = BTreeSet::new();
        let mut add = |tenant: u32, tokens: &[TokenId]| {
            (1..=tokens.len() / size).for_each(|n| {
                entries.insert((tenant, tokens[..n * size].to_vec()));
            });
        };
        self.content.iter().flatten().for_each(|(tenant, _, tokens)| add(*tenant, tokens));
        for row in self.rows.iter().flatten() {
            add(row.tenant, &row.tokens[..row.num_committed * size]);
        }
        let place = |(tenant, tokens): &(u32, Vec<TokenId>)| {
            let parent = tokens.len() - size;
            (*tenant, tokens[..parent].to_vec(), tokens[parent])
        };
        for gone in self.entries.difference(&entries) {
            if self.recent.get(&place(gone)) == Some(&gone.1) {
                self.recent.remove(&place(gone));
            }
        }
        for new in entries.difference(&self.entries) {
            self.recent.insert(place(new), new.1.clone());
        }
        self.entries = entries;
    }

    fn compare(&self) -> Result<(), String> {
        let pool = self.real.pool();
        let free: Vec<_> = pool.free_blocks().map(BlockId::get).collect();
        if free != self.free || pool.num_free() as usize != free.len() {
            return Err(format!("free blocks are {free:?}, not {:?}", self.free));
        }
        for id in 1..self.config.num_blocks {
            let (block, i) = (BlockId::new(id), id as usize);
            let real = (pool.ref_count(block), pool.entry(block).is_some());
            if real != (self.refs[i], self.content[i].is_some()) {
                return Err(format!("block {id} is {real:?}, not {:?}", self.refs[i]));
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

/// The first key that a query at `position` sees, by the definition of the mask.
fn first_visible(kind: GroupKind, position: usize) -> usize {
    match kind {
        GroupKind::Full => 0,
        GroupKind::Sliding(window) => (position + 1).saturating_sub(window as usize),
        GroupKind::Chunked(chunk) => position - position % chunk as usize,
    }
}

pub(crate) fn random_config(rng: &mut Rng) -> CacheConfig {
    let kinds = [
        GroupKind::Full,
        GroupKind::Sliding(rng.range(1, 10)),
        GroupKind::Chunked(rng.range(1, 10)),
    ];
    CacheConfig {
        num_blocks: rng.range(4, 24),
        block_size: rng.pick(&[1, 2, 4]),
        groups: (0..rng.range(1, 2)).map(|_| rng.pick(&kinds)).collect(),
        num_rows: rng.range(2, 4),
        max_model_len: 24,
        enable_prefix_caching: rng.chance(80),
        hash_key: rng.next_u64(),
        hash_bits: rng.pick(&[64, 8, 1]),
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
