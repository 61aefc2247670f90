//! An executor that knows what every slot must hold.

use std::collections::BTreeMap;

use super::rng::mix;
use super::truth::Truth;
use crate::batch::{Batch, StepArrays};
use crate::config::{GroupKind, SchedulerConfig};
use crate::ids::TokenId;

/// What one slot of the KV memory holds. The hash stands for the keys and values: like them, it
/// depends on the token and on everything before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Content {
    hash: u64,
    token: TokenId,
    position: u32,
}

/// What a forward pass returns for each sample of its batch.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    /// The sampled tokens.
    pub token_ids: Vec<TokenId>,
    /// Their log-probabilities.
    pub logprobs: Vec<f32>,
}

/// A device without arithmetic: block tables mirrored from the updates of each batch, and a KV
/// memory that remembers what was written. Running a batch checks every key that it would read.
#[derive(Debug)]
pub struct Oracle {
    config: SchedulerConfig,
    /// `[group, row, column]`
    tables: Vec<i32>,
    /// `[block, slot]`; all groups draw from the same bytes.
    memory: Vec<Content>,
    /// `[host block, slot]`
    host: Vec<Content>,
    /// The sequence in each row: request and index within it.
    rows: Vec<Option<(u64, u32)>>,
    previous: Samples,
}

impl Oracle {
    /// A device for `config` whose memory holds nothing.
    pub fn new(config: &SchedulerConfig) -> Self {
        let cache = &config.cache;
        let rows = cache.num_rows as usize;
        Self {
            tables: vec![0; cache.groups.len() * rows * cache.blocks_per_row() as usize],
            memory: vec![Content::default(); (cache.num_blocks * cache.block_size) as usize],
            host: vec![Content::default(); (cache.num_swap_blocks * cache.block_size) as usize],
            rows: vec![None; rows],
            previous: Samples::default(),
            config: config.clone(),
        }
    }

    /// Runs `batch`: table updates, forks, fills, copies, writes, reads, samples.
    ///
    /// # Errors
    /// The first array that contradicts another, or the first read of anything but the sequence's
    /// own past.
    pub fn execute(
        &mut self,
        batch: &Batch,
        arrays: &StepArrays<'_>,
        truths: &BTreeMap<u64, Truth>,
    ) -> Result<Samples, String> {
        self.prepare(batch, arrays)?;
        for r in 0..batch.num_rows as usize {
            self.write_row(r, arrays, truths)?;
        }
        for r in 0..batch.num_rows as usize {
            self.read_row(r, arrays, truths)?;
        }
        let mut samples = Samples::default();
        for s in 0..batch.num_samples as usize {
            let (token, logprob) = self.sample(s, batch, arrays, truths)?;
            samples.token_ids.push(token);
            samples.logprobs.push(logprob);
        }
        self.previous.clone_from(&samples);
        Ok(samples)
    }

    /// Runs `batch` on a device that fails half-way: its writes are rubbish, nothing is sampled.
    ///
    /// # Errors
    /// As [`execute`](Self::execute).
    pub fn execute_and_fail(
        &mut self,
        batch: &Batch,
        arrays: &StepArrays<'_>,
    ) -> Result<(), String> {
        self.prepare(batch, arrays)?;
        let size = self.config.cache.block_size as usize;
        let rubbish = Content { hash: u64::MAX, token: 0, position: 0 };
        // It may have failed before anything was moved.
        for copy in arrays.swap_out.chunks(3).take(batch.num_swap_out as usize) {
            self.host[copy[2] as usize * size..][..size].fill(rubbish);
        }
        for group in 0..self.num_groups() {
            for t in 0..batch.num_tokens as usize {
                let slot = arrays.slot_mapping[group * arrays.slot_stride + t];
                self.memory[slot as usize] = rubbish;
            }
        }
        Ok(())
    }

    fn num_groups(&self) -> usize {
        self.config.cache.groups.len()
    }

    fn table_index(&self, group: usize, row: usize, column: usize) -> usize {
        let columns = self.config.cache.blocks_per_row() as usize;
        (group * self.rows.len() + row) * columns + column
    }

    fn prepare(&mut self, batch: &Batch, arrays: &StepArrays<'_>) -> Result<(), String> {
        let forks = &arrays.row_forks[..2 * batch.num_row_forks as usize];
        let (first_forks, forks) = forks.split_at(2 * batch.num_first_forks as usize);
        self.fork_rows(first_forks);
        for update in arrays.table_updates.chunks(4).take(batch.num_table_updates as usize) {
            let [group, row, column, block] = [0, 1, 2, 3].map(|i| update[i] as usize);
            let at = self.table_index(group, row, column);
            self.tables[at] = block as i32;
        }
        self.fork_rows(forks);
        for fill in arrays.row_fills.chunks(3).take(batch.num_row_fills as usize) {
            self.rows[fill[0] as usize] = Some((fill[1] as u64, fill[2] as u32));
        }
        self.swap(batch, arrays);
        let copies: Vec<_> =
            arrays.block_copies.chunks(3).take(batch.num_block_copies as usize).collect();
        let size = self.config.cache.block_size as usize;
        for copy in &copies {
            let (from, to) = (copy[1] as usize, copy[2] as usize);
            if from == 0 || to == 0 || copies.iter().any(|other| other[2] == copy[1]) {
                return Err(format!("copy {copy:?}: the source is null or a destination too"));
            }
            if copies.iter().filter(|other| other[2] == copy[2]).count() > 1 {
                return Err(format!("copy {copy:?}: the destination is written twice"));
            }
            self.memory.copy_within(from * size..(from + 1) * size, to * size);
        }
        Ok(())
    }

    /// Out first, then in.
    fn swap(&mut self, batch: &Batch, arrays: &StepArrays<'_>) {
        let size = self.config.cache.block_size as usize;
        let slots = |block: i32| block as usize * size..(block as usize + 1) * size;
        for copy in arrays.swap_out.chunks(3).take(batch.num_swap_out as usize) {
            self.host[slots(copy[2])].copy_from_slice(&self.memory[slots(copy[1])]);
        }
        for copy in arrays.swap_in.chunks(3).take(batch.num_swap_in as usize) {
            self.memory[slots(copy[2])].copy_from_slice(&self.host[slots(copy[1])]);
        }
    }

    fn fork_rows(&mut self, forks: &[i32]) {
        for fork in forks.chunks(2) {
            for group in 0..self.num_groups() {
                let from = self.table_index(group, fork[0] as usize, 0);
                let to = self.table_index(group, fork[1] as usize, 0);
                let columns = self.config.cache.blocks_per_row() as usize;
                self.tables.copy_within(from..from + columns, to);
            }
        }
    }

    /// The sequence that scheduled row `r` belongs to, with the tokens `start..end` that it runs and
    /// where they lie in the batch.
    fn scheduled<'t>(
        &self,
        r: usize,
        arrays: &StepArrays<'_>,
        truths: &'t BTreeMap<u64, Truth>,
    ) -> Result<Scheduled<'t>, String> {
        let row = arrays.row_ids[r] as usize;
        let (id, index) = self.rows[row].ok_or_else(|| format!("row {row} was never filled"))?;
        let truth = truths.get(&id).ok_or_else(|| format!("request {id} is unknown"))?;
        let first = arrays.query_start_loc[r] as usize;
        let len = arrays.query_start_loc[r + 1] as usize - first;
        let end = arrays.seq_lens[r] as u32;
        let start = end - len as u32;
        Ok(Scheduled { row, id, index, truth, first, start, end })
    }

    fn write_row(
        &mut self,
        r: usize,
        arrays: &StepArrays<'_>,
        truths: &BTreeMap<u64, Truth>,
    ) -> Result<(), String> {
        let it = self.scheduled(r, arrays, truths)?;
        let size = self.config.cache.block_size as usize;
        for (t, position) in (it.first..).zip(it.start..it.end) {
            let token = match (arrays.input_ids[t], arrays.input_source[t]) {
                (-1, source) => *self
                    .previous
                    .token_ids
                    .get(source as usize)
                    .ok_or_else(|| it.error(position, &format!("takes sample {source}")))?,
                (token, _) => token as TokenId,
            };
            if arrays.positions[t] != position as i32
                || it.truth.token(it.index, position) != Some(token)
            {
                return Err(it.error(position, &format!("runs token {token}")));
            }
            let hash = it.truth.hash(it.index, position).unwrap_or_default();
            for group in 0..self.num_groups() {
                let slot = arrays.slot_mapping[group * arrays.slot_stride + t] as usize;
                let at = self.table_index(group, it.row, position as usize / size);
                if slot != self.tables[at] as usize * size + position as usize % size || slot < size
                {
                    return Err(it.error(position, &format!("writes to slot {slot}")));
                }
                let hash = mix(hash, group as u64);
                self.memory[slot] = Content { hash, token, position };
            }
        }
        Ok(())
    }

    fn read_row(
        &self,
        r: usize,
        arrays: &StepArrays<'_>,
        truths: &BTreeMap<u64, Truth>,
    ) -> Result<(), String> {
        let it = self.scheduled(r, arrays, truths)?;
        let size = self.config.cache.block_size;
        // With two batches in flight the host's tables are those of the next one by now.
        let is_host_current = self.config.max_in_flight == 1;
        for (group, kind) in self.config.cache.groups.iter().enumerate() {
            for position in 0..it.end {
                // Of the queries that come after a key, the first one sees it if any does.
                if !attends(*kind, position.max(it.start), position) {
                    continue;
                }
                let at = self.table_index(group, it.row, (position / size) as usize);
                let block = self.tables[at];
                if block <= 0 || is_host_current && arrays.block_tables[at] != block {
                    return Err(it.error(position, &format!("has block {block} in group {group}")));
                }
                let hash = it.truth.hash(it.index, position).unwrap_or_default();
                let found = self.memory[(block as u32 * size + position % size) as usize];
                if found.hash != mix(hash, group as u64) {
                    let message = format!("group {group} block {block} holds {found:?}");
                    return Err(it.error(position, &message));
                }
            }
        }
        Ok(())
    }

    fn sample(
        &self,
        s: usize,
        batch: &Batch,
        arrays: &StepArrays<'_>,
        truths: &BTreeMap<u64, Truth>,
    ) -> Result<(TokenId, f32), String> {
        let row = arrays.sample_rows[s] as usize;
        let (id, index) = self.rows[row].ok_or_else(|| format!("row {row} was never filled"))?;
        let truth = &truths[&id];
        let t = arrays.logits_indices[s];
        let bounds = &arrays.query_start_loc[..=batch.num_rows as usize];
        let r = bounds.partition_point(|start| *start <= t) - 1;
        let source = self.scheduled(r, arrays, truths)?;
        let position = arrays.positions[t as usize] as u32;
        let error = |text: &str| Err(source.error(position, &format!("sample {s}: {text}")));
        if source.id != id
            || source.truth.hash(source.index, position) != truth.hash(index, position)
        {
            return error(&format!("sequence {index} of request {id} has another past"));
        }
        if arrays.sample_index[s] as u32 != index
            || arrays.sample_positions[s] as u32 + truth.prompt_len() != position + 1
            || arrays.num_candidates[s] != 1
        {
            return error("index, position or candidates are wrong");
        }
        match truth.token(index, position + 1) {
            Some(token) => Ok((token, truth.logprob(index, position + 1))),
            None => error("the sequence is complete"),
        }
    }
}

/// The mask of a layer, in the words of its definition.
fn attends(kind: GroupKind, query: u32, key: u32) -> bool {
    match kind {
        GroupKind::Full => true,
        GroupKind::Sliding(window) => query - key < window,
        GroupKind::Chunked(chunk) => query / chunk == key / chunk,
    }
}

struct Scheduled<'t> {
    row: usize,
    id: u64,
    index: u32,
    truth: &'t Truth,
    first: usize,
    start: u32,
    end: u32,
}

impl Scheduled<'_> {
    fn error(&self, position: u32, text: &str) -> String {
        let Self { row, id, index, start, end, .. } = self;
        format!(
            "request {id} sequence {index} (row {row}, tokens {start}..{end}) at {position}: {text}"
        )
    }
}
