//! Continuous batching: which sequences run which tokens in each step.
//!
//! There are no phases. A sequence has tokens and computed tokens; a step lets the second catch up
//! with the first under a token budget. Chunked prefill, prefix hits, forks and resumption after a
//! preemption are this one rule.
//!
//! [`Scheduler::schedule`] fills the arrays of a step, the caller runs it, [`Scheduler::update`]
//! takes the sampled tokens. Same calls, same result: no clock, no randomness, no threads.

mod admit;
mod arrays;
mod beams;
mod invariants;
mod masks;
mod plan;
mod swap;
mod update;

use std::collections::{BTreeMap, VecDeque};

use hashbrown::HashMap;
use siphasher::sip::SipHasher13;

use crate::batch::StepSizes;
use crate::config::{Policy, SchedulerConfig};
use crate::error::Error;
use crate::ids::RowId;
use crate::kv_cache::KvCacheManager;
use crate::request::{NewRequest, Rank, Request, RequestResult, Status};
use crate::stats::{Counters, Stats};

pub use masks::SampleMasks;
pub use update::{Delta, StepOutput};

/// Position of a live request in the scheduler's table.
type Slot = u32;

type FixedState = std::hash::BuildHasherDefault<SipHasher13>;

/// One sequence of a batch in flight.
#[derive(Clone, Copy, Debug)]
struct ScheduledRow {
    slot: Slot,
    /// Arrival and run of the request: what is in the slot may have changed since.
    arrival: u64,
    run: u32,
    index: u32,
    row: RowId,
    /// Tokens computed once the batch has run.
    end: u32,
}

/// One sample of a batch in flight.
#[derive(Clone, Copy, Debug)]
struct Sample {
    slot: Slot,
    arrival: u64,
    index: u32,
    is_beam: bool,
}

/// The head of the queue did not fit.
#[derive(Clone, Copy, Debug)]
struct Blocked {
    arrival: u64,
    /// Blocks that it needs for itself.
    num_blocks: u32,
    /// The batch from which on it is looked at again in any case.
    retry_at: u64,
}

#[derive(Debug, Default)]
struct InFlight {
    id: u64,
    rows: Vec<ScheduledRow>,
    samples: Vec<Sample>,
    /// Requests with their arrival whose blocks it moves to the host.
    swapped_out: Vec<(Slot, u64)>,
}

/// The requests, their order and their blocks.
pub struct Scheduler {
    config: SchedulerConfig,
    sizes: StepSizes,
    kv: KvCacheManager,
    requests: Vec<Option<Request>>,
    vacant: Vec<Slot>,
    slot_of: HashMap<u64, Slot, FixedState>,
    waiting: BTreeMap<Rank, Slot>,
    blocked: Option<Blocked>,
    /// Sorted by rank.
    running: Vec<Slot>,
    free_rows: Vec<RowId>,
    /// Rows of sequences that still wait to be forked.
    num_parked: u32,
    in_flight: VecDeque<InFlight>,
    /// Emptied records, kept for their allocations.
    spare: Vec<InFlight>,
    num_arrivals: u64,
    num_batches: u64,
    counters: Counters,
    /// Rows filled since the last batch.
    row_fills: Vec<(RowId, u64, u32)>,
    /// Requests moved to the host since the last batch.
    swapped_out: Vec<(Slot, u64)>,
}

impl Scheduler {
    /// An idle scheduler.
    ///
    /// # Errors
    /// A setting out of range.
    pub fn new(config: SchedulerConfig) -> Result<Self, Error> {
        check_config(&config)?;
        let sizes = StepSizes::new(&config);
        let rows = config.max_num_seqs();
        let reserved = sizes.num_groups
            * (config.max_num_batched_tokens / config.cache.block_size + 2 * rows) as usize;
        let kv = KvCacheManager::new(config.cache.clone(), sizes.num_table_updates - reserved);
        Ok(Self {
            sizes,
            kv,
            requests: Vec::new(),
            vacant: Vec::new(),
            slot_of: HashMap::default(),
            waiting: BTreeMap::new(),
            blocked: None,
            running: Vec::with_capacity(rows as usize),
            free_rows: (0..rows).rev().map(RowId::new).collect(),
            num_parked: 0,
            in_flight: VecDeque::with_capacity(config.max_in_flight as usize),
            spare: Vec::new(),
            num_arrivals: 0,
            num_batches: 0,
            counters: Counters::default(),
            row_fills: Vec::with_capacity(2 * rows as usize),
            swapped_out: Vec::new(),
            config,
        })
    }

    /// The configuration.
    pub const fn config(&self) -> &SchedulerConfig {
        &self.config
    }

    /// The lengths that the step arrays must have.
    pub const fn sizes(&self) -> StepSizes {
        self.sizes
    }

    /// The blocks.
    pub const fn kv_cache(&self) -> &KvCacheManager {
        &self.kv
    }

    /// Requests that run.
    pub fn num_running(&self) -> u32 {
        self.running.len() as u32
    }

    /// Requests that wait, preempted ones included.
    pub fn num_waiting(&self) -> u32 {
        self.waiting.len() as u32
    }

    /// Whether any request has not ended.
    pub fn has_unfinished(&self) -> bool {
        !self.running.is_empty() || !self.waiting.is_empty()
    }

    /// Queues a request. It starts when its turn comes and there is room.
    ///
    /// # Errors
    /// A parameter out of range, a request that could not run even alone, or a full queue; nothing
    /// has changed then.
    pub fn add_request(&mut self, new: NewRequest) -> Result<(), Error> {
        let max_output = self.check_request(&new)?;
        let priority = match self.config.policy {
            Policy::Fcfs => 0,
            Policy::Priority => new.priority,
        };
        let rank = Rank { priority, arrival: self.num_arrivals };
        self.num_arrivals += 1;
        let id = new.id;
        let request = Request::new(new, rank, max_output);
        let slot = if let Some(slot) = self.vacant.pop() {
            self.requests[slot as usize] = Some(request);
            slot
        } else {
            self.requests.push(Some(request));
            self.requests.len() as Slot - 1
        };
        self.slot_of.insert(id, slot);
        self.waiting.insert(rank, slot);
        self.counters.num_requests += 1;
        Ok(())
    }

    /// Ends a request in whatever state it is. What it generated so far is returned; none if the id
    /// is unknown (already taken or aborted), so that a second abort is harmless.
    pub fn abort(&mut self, id: u64) -> Option<RequestResult> {
        let slot = *self.slot_of.get(&id)?;
        match self.request(slot).status {
            Status::Waiting => {
                let rank = self.request(slot).rank;
                self.waiting.remove(&rank);
            }
            Status::Running => {
                self.note_slot_use(slot);
                self.give_up_rows(slot);
                self.running.retain(|other| *other != slot);
            }
            Status::Finished => {}
        }
        if self.request(slot).status != Status::Finished {
            self.counters.num_aborted += 1;
        }
        Some(self.remove(slot).into_result())
    }

    /// Removes a request that has ended and returns what it generated.
    ///
    /// # Errors
    /// The id is unknown, or the request has not ended.
    pub fn take_output(&mut self, id: u64) -> Result<RequestResult, Error> {
        let slot = *self.slot_of.get(&id).ok_or(Error::UnknownRequest { id })?;
        if self.request(slot).status != Status::Finished {
            return Err(Error::NotFinished { id });
        }
        Ok(self.remove(slot).into_result())
    }

    /// The tokens that sequence `index` of a live request has generated.
    ///
    /// # Errors
    /// The id is unknown, or the request has no such sequence.
    pub fn output_token_ids(&self, id: u64, index: u32) -> Result<&[u32], Error> {
        let slot = *self.slot_of.get(&id).ok_or(Error::UnknownRequest { id })?;
        let sequences = &self.request(slot).sequences;
        let sequence = sequences.get(index as usize).ok_or_else(|| Error::Parameter {
            name: "index",
            bound: format!("below {}", sequences.len()),
            value: u64::from(index),
        })?;
        Ok(&sequence.output)
    }

    /// Forgets all cached content. False, and nothing done, while a request runs.
    pub fn reset_prefix_cache(&mut self) -> bool {
        self.running.is_empty() && self.kv.reset_prefix_cache()
    }

    /// Counters and the state of the pool.
    pub fn stats(&self) -> Stats {
        Stats::new(&self.counters, &self.kv, self.num_running(), self.num_waiting())
    }

    fn request(&self, slot: Slot) -> &Request {
        self.requests[slot as usize].as_ref().expect("a listed slot is taken")
    }

    fn request_mut(&mut self, slot: Slot) -> &mut Request {
        self.requests[slot as usize].as_mut().expect("a listed slot is taken")
    }

    /// The request in `slot`, if it is still the one that arrived then.
    fn live(&mut self, slot: Slot, arrival: u64) -> Option<&mut Request> {
        self.requests[slot as usize].as_mut().filter(|request| request.rank.arrival == arrival)
    }

    fn remove(&mut self, slot: Slot) -> Request {
        self.drop_swapped(slot);
        let request = self.requests[slot as usize].take().expect("a listed slot is taken");
        self.slot_of.remove(&request.id);
        self.vacant.push(slot);
        request
    }

    /// Closes all rows of a running request; what its sequences computed is lost.
    fn give_up_rows(&mut self, slot: Slot) -> u64 {
        let mut num_lost = 0;
        let request = self.requests[slot as usize].as_mut().expect("a listed slot is taken");
        for sequence in request.sequences.iter_mut().rev() {
            let Some(row) = sequence.row.take() else { continue };
            if sequence.is_parked() {
                sequence.fork = None;
                request.num_parked -= 1;
                self.num_parked -= 1;
            } else {
                self.kv.close_row(row);
            }
            num_lost += u64::from(std::mem::take(&mut sequence.num_computed));
            self.free_rows.push(row);
        }
        let id = request.id;
        self.row_fills.retain(|fill| fill.1 != id);
        num_lost
    }

    /// Takes a running request's blocks; it waits, in its old place, to be computed again.
    fn preempt(&mut self, slot: Slot) -> u64 {
        let num_lost = self.give_up_rows(slot);
        self.set_waiting(slot);
        num_lost
    }

    /// Checks what can be said before a request runs. Returns the most tokens it can generate per
    /// sequence.
    fn check_request(&self, new: &NewRequest) -> Result<u32, Error> {
        let prompt_len = new.prompt.len() as u32;
        let max_model_len = self.config.cache.max_model_len;
        let max_num_seqs = self.config.max_num_seqs();
        let parameter = |name, bound: String, value: u32| {
            Err(Error::Parameter { name, bound, value: u64::from(value) })
        };
        if self.slot_of.contains_key(&new.id) {
            return Err(Error::DuplicateRequest { id: new.id });
        }
        if prompt_len == 0 {
            return Err(Error::EmptyPrompt);
        }
        if new.prompt.len() >= max_model_len as usize {
            return Err(Error::PromptTooLong { prompt_len, max_model_len });
        }
        if new.num_sequences == 0 || new.num_sequences > max_num_seqs {
            let bound = format!("from 1 to max_num_seqs ({max_num_seqs})");
            return parameter("n", bound, new.num_sequences);
        }
        if let Some(beams) = &new.beams
            && !(1..=new.num_sequences).contains(&beams.num_returned)
        {
            let bound = format!("from 1 to the width ({})", new.num_sequences);
            return parameter("num_returned", bound, beams.num_returned);
        }
        if new.stop.max_tokens == 0 {
            return parameter("max_tokens", "at least 1".to_owned(), 0);
        }
        if new.stop.min_tokens > new.stop.max_tokens {
            let bound = format!("at most max_tokens ({})", new.stop.max_tokens);
            return parameter("min_tokens", bound, new.stop.min_tokens);
        }
        if let Some(limits) = &new.stop.repetition {
            limits.check()?;
        }
        if self.waiting.len() >= self.config.max_num_waiting as usize {
            return Err(Error::QueueFull { waiting: self.num_waiting() });
        }
        let max_output = new.stop.max_tokens.min(max_model_len - prompt_len);
        // The last token generated is never an input, so it needs no slot.
        let num_tokens = prompt_len + max_output - 1;
        let needed = self.config.cache.worst_case_blocks(prompt_len, num_tokens, new.num_sequences);
        let available = self.config.cache.num_usable_blocks();
        if needed > u64::from(available) {
            let num_sequences = new.num_sequences;
            return Err(Error::NeverFits { needed, available, num_sequences, num_tokens });
        }
        Ok(max_output)
    }
}

fn check_config(config: &SchedulerConfig) -> Result<(), Error> {
    let cache = &config.cache;
    let bad = |name, bound: &str, value: u32| {
        Err(Error::Config { name, bound: bound.to_owned(), value: u64::from(value) })
    };
    if !cache.block_size.is_power_of_two() {
        return bad("block_size", "a power of two", cache.block_size);
    }
    if cache.num_blocks < 2 {
        return bad("num_blocks", "at least 2 (one is the null block)", cache.num_blocks);
    }
    if cache.groups.is_empty() {
        return bad("kv_groups", "at least one group", 0);
    }
    if cache
        .groups
        .iter()
        .any(|group| matches!(group, crate::GroupKind::Sliding(0) | crate::GroupKind::Chunked(0)))
    {
        return bad("kv_groups", "windows of at least 1 token", 0);
    }
    if cache.max_model_len < 2 {
        return bad("max_model_len", "at least 2", cache.max_model_len);
    }
    if cache.num_rows == 0 {
        return bad("max_num_seqs", "at least 1", 0);
    }
    if config.max_num_batched_tokens < cache.num_rows {
        let bound = format!("at least max_num_seqs ({})", cache.num_rows);
        return bad("max_num_batched_tokens", &bound, config.max_num_batched_tokens);
    }
    if !(1..=2).contains(&config.max_in_flight) {
        return bad("max_in_flight", "1 or 2", config.max_in_flight);
    }
    Ok(())
}
