//! A run of one scenario: arrivals, steps, faults, and everything checked after each.

use std::collections::{BTreeMap, VecDeque};

use super::inspect::{inspect_batch, touched_blocks};
use super::oracle::{Oracle, Samples};
use super::report::{Failure, Report};
use super::rng::{Rng, mix};
use super::scenario::Scenario;
use super::truth::Truth;
use crate::batch::{Batch, StepBuffers};
use crate::error::Error;
use crate::ids::BlockId;
use crate::request::RequestResult;
use crate::scheduler::{Scheduler, StepOutput};
use crate::stats::Stats;
use crate::stop::FinishReason;

/// A batch in flight. It runs as late as it can: just before its update.
struct Flight {
    batch: Batch,
    arena: usize,
    samples: Option<Samples>,
    touched: Vec<BlockId>,
}

#[derive(Default)]
struct Stream {
    text: String,
    token_ids: Vec<u32>,
    finish_reason: Option<FinishReason>,
}

/// A scheduler, an oracle and the requests between them.
pub struct Simulation {
    scenario: Scenario,
    rng: Rng,
    scheduler: Scheduler,
    oracle: Oracle,
    arenas: Vec<StepBuffers>,
    /// The block tables of a host; all arenas share them.
    tables: Vec<i32>,
    flights: VecDeque<Flight>,
    output: StepOutput,
    truths: BTreeMap<u64, Truth>,
    /// Requests that have not ended.
    live: Vec<u64>,
    /// Requests that have ended and wait to be taken.
    ended: Vec<u64>,
    streams: BTreeMap<(u64, u32), Stream>,
    has_first_token: BTreeMap<u64, bool>,
    num_arrivals: u32,
    num_idle_steps: u32,
    report: Report,
}

type Checked = Result<(), String>;

/// Runs the scenario of `seed` to its end.
///
/// # Errors
/// The first statement found to be false.
pub fn simulate(seed: u64) -> Result<Report, Failure> {
    Simulation::new(Scenario::new(seed)).run()
}

impl Simulation {
    /// A run that has not begun.
    pub fn new(scenario: Scenario) -> Self {
        let scheduler = Scheduler::new(scenario.config.clone()).expect("a scenario is valid");
        let sizes = scheduler.sizes();
        Self {
            rng: Rng::new(mix(scenario.seed, 0x0072_756e)),
            oracle: Oracle::new(&scenario.config),
            arenas: (0..scenario.config.max_in_flight).map(|_| StepBuffers::new(sizes)).collect(),
            tables: vec![0; sizes.num_groups * sizes.num_rows * sizes.blocks_per_row],
            scheduler,
            flights: VecDeque::new(),
            output: StepOutput::default(),
            truths: BTreeMap::new(),
            live: Vec::new(),
            ended: Vec::new(),
            streams: BTreeMap::new(),
            has_first_token: BTreeMap::new(),
            num_arrivals: 0,
            num_idle_steps: 0,
            report: Report {
                num_operations: 0,
                num_refused: 0,
                num_discarded: 0,
                num_repeating: 0,
                trace: scenario.seed,
                stats: Stats::default(),
            },
            scenario,
        }
    }

    /// Runs until every request has ended and everything is given back.
    ///
    /// # Errors
    /// The first statement found to be false.
    pub fn run(mut self) -> Result<Report, Failure> {
        let mut result = Ok(());
        while result.is_ok() && !self.is_done() {
            result = self.tick();
        }
        result = result.and_then(|()| self.check_end());
        self.report.stats = self.scheduler.stats();
        let Report { num_operations, .. } = self.report;
        result.map(|()| self.report).map_err(|message| Failure {
            seed: self.scenario.seed,
            num_operations,
            message,
        })
    }

    fn is_done(&self) -> bool {
        self.num_arrivals == self.scenario.num_requests
            && self.live.is_empty()
            && self.ended.is_empty()
            && self.flights.is_empty()
    }

    /// One opportunity for everything that can happen.
    fn tick(&mut self) -> Checked {
        let events = self.scenario.events;
        while self.num_arrivals < self.scenario.num_requests && self.rng.chance(events.arrival) {
            self.arrive()?;
        }
        if self.rng.chance(events.abort) {
            self.abort()?;
        }
        if self.rng.chance(events.reset) {
            self.reset()?;
        }
        let max_in_flight = self.scenario.config.max_in_flight as usize;
        let mut is_planned = false;
        if self.flights.len() < max_in_flight
            && (self.flights.is_empty() || self.rng.chance(events.overlap))
        {
            is_planned = self.plan()?;
        }
        if is_planned && self.rng.chance(events.failure) {
            self.fail()?;
        }
        if !self.flights.is_empty()
            && (self.flights.len() == max_in_flight || !is_planned || self.rng.chance(50))
        {
            self.update()?;
        }
        if self.rng.chance(events.take) {
            self.take()?;
        }
        Ok(())
    }

    fn note(&mut self, values: impl IntoIterator<Item = u64>) {
        self.report.trace = values.into_iter().fold(self.report.trace, mix);
    }

    fn check(&mut self) -> Checked {
        self.report.num_operations += 1;
        let pool = self.scheduler.kv_cache().pool();
        for block in self.flights.iter().flat_map(|flight| &flight.touched) {
            if pool.is_free(*block) {
                return Err(format!("block {} is free while a batch uses it", block.get()));
            }
        }
        self.scheduler.check_invariants()
    }

    fn arrive(&mut self) -> Checked {
        let id = u64::from(self.num_arrivals) * 3 + 1;
        self.num_arrivals += 1;
        let (request, truth) = self.scenario.request(&mut self.rng, id);
        match self.scheduler.add_request(request) {
            Ok(()) => {
                self.truths.insert(id, truth);
                self.live.push(id);
                self.has_first_token.insert(id, false);
            }
            Err(
                Error::PromptTooLong { .. } | Error::NeverFits { .. } | Error::QueueFull { .. },
            ) => {
                self.report.num_refused += 1;
            }
            Err(error) => return Err(format!("request {id} was refused: {error}")),
        }
        self.check()
    }

    fn abort(&mut self) -> Checked {
        let known: Vec<u64> = self.live.iter().chain(&self.ended).copied().collect();
        if known.is_empty() {
            return Ok(());
        }
        let id = self.rng.pick(&known);
        let result = self.scheduler.abort(id).ok_or("a known request could not be aborted")?;
        let was_live = self.live.contains(&id);
        self.live.retain(|other| *other != id);
        self.ended.retain(|other| *other != id);
        self.finish(id, &result, was_live)?;
        if self.scheduler.abort(id).is_some() {
            return Err(format!("request {id} was aborted twice"));
        }
        self.num_idle_steps = 0;
        self.check()
    }

    fn reset(&mut self) -> Checked {
        let is_idle = self.scheduler.num_running() == 0;
        if self.scheduler.reset_prefix_cache() != is_idle {
            return Err("the prefix cache is reset while requests run, or not at rest".to_owned());
        }
        if is_idle && self.scheduler.kv_cache().num_cached_blocks() != 0 {
            return Err("a reset cache holds blocks".to_owned());
        }
        self.check()
    }

    /// Plans a batch; false if there was nothing to plan.
    fn plan(&mut self) -> Result<bool, String> {
        let in_use: Vec<_> = self.flights.iter().map(|flight| flight.arena).collect();
        let arena = (0..self.arenas.len()).find(|i| !in_use.contains(i)).expect("one is free");
        let mut arrays = self.arenas[arena].arrays();
        arrays.block_tables = &mut self.tables;
        let batch = self.scheduler.schedule(&mut arrays).map_err(|error| error.to_string())?;
        self.check()?;
        let Some(batch) = batch else {
            return if self.flights.is_empty() && self.scheduler.has_unfinished() {
                Err("nothing is in flight and nothing can run".to_owned())
            } else {
                Ok(false)
            };
        };
        let mut arrays = self.arenas[arena].arrays();
        arrays.block_tables = &mut self.tables;
        inspect_batch(&batch, &arrays, &self.scheduler)?;
        let touched = touched_blocks(&batch, &arrays, &self.scheduler);
        let t = batch.num_tokens as usize;
        let trace =
            (arrays.input_ids[..t].iter().chain(&arrays.row_ids[..batch.num_rows as usize]))
                .map(|value| *value as u64)
                .chain(arrays.slot_mapping[..t].iter().map(|slot| *slot as u64))
                .collect::<Vec<_>>();
        self.note(trace);
        self.note([batch.id, u64::from(batch.num_samples), u64::from(batch.num_block_copies)]);
        self.flights.push_back(Flight { batch, arena, samples: None, touched });
        Ok(true)
    }

    /// Runs the oldest batch that has not run.
    fn execute(&mut self) -> Checked {
        let Some(flight) = self.flights.iter_mut().find(|flight| flight.samples.is_none()) else {
            return Ok(());
        };
        let mut arrays = self.arenas[flight.arena].arrays();
        arrays.block_tables = &mut self.tables;
        flight.samples = Some(self.oracle.execute(&flight.batch, &arrays, &self.truths)?);
        Ok(())
    }

    /// The newest batch fails: before it ran, or half-way through.
    fn fail(&mut self) -> Checked {
        if self.rng.chance(50) {
            while self.flights.iter().filter(|flight| flight.samples.is_none()).count() > 1 {
                self.execute()?;
            }
            let flight = self.flights.back().expect("one was planned");
            let arrays = self.arenas[flight.arena].arrays();
            self.oracle.execute_and_fail(&flight.batch, &arrays)?;
        }
        let flight = self.flights.pop_back().expect("one was planned");
        let ids = self.scheduler.requeue(&flight.batch).map_err(|error| error.to_string())?;
        self.note(ids);
        self.num_idle_steps = 0;
        self.check()
    }

    /// Runs the oldest batch and hands its samples back.
    fn update(&mut self) -> Checked {
        if self.flights.front().is_some_and(|flight| flight.samples.is_none()) {
            self.execute()?;
        }
        let flight = self.flights.pop_front().expect("asked for only with one in flight");
        let samples = flight.samples.expect("just run");
        self.scheduler
            .update(&flight.batch, &samples.token_ids, &samples.logprobs, &mut self.output)
            .map_err(|error| error.to_string())?;
        self.check()?;
        let num_accepted = self.output.accepted.iter().filter(|accepted| **accepted).count();
        self.report.num_discarded += (samples.token_ids.len() - num_accepted) as u64;
        self.check_progress(num_accepted)?;
        self.deliver()
    }

    /// The request that is served first always advances, so a token must come before it can have run
    /// all tokens of a request one by one.
    fn check_progress(&mut self, num_accepted: usize) -> Checked {
        self.num_idle_steps = if num_accepted > 0 { 0 } else { self.num_idle_steps + 1 };
        let config = &self.scenario.config;
        let limit = 8 + 2 * config.max_num_seqs() * config.cache.max_model_len;
        if self.num_idle_steps > limit {
            return Err(format!("no token in {limit} steps"));
        }
        Ok(())
    }

    fn deliver(&mut self) -> Checked {
        let output = std::mem::take(&mut self.output);
        for id in &output.first_tokens {
            if self.has_first_token.insert(*id, true) != Some(false) {
                return Err(format!("request {id} got its first token twice"));
            }
        }
        for delta in &output.deltas {
            let stream = self.streams.entry((delta.request_id, delta.index)).or_default();
            if stream.finish_reason.is_some() {
                return Err(format!("{delta:?} comes after the end"));
            }
            stream.text.push_str(&delta.text);
            stream.token_ids.extend(&delta.token_ids);
            stream.finish_reason = delta.finish_reason;
        }
        for id in &output.finished {
            if !self.live.contains(id) {
                return Err(format!("request {id} ended twice, or never lived"));
            }
            self.live.retain(|other| other != id);
            self.ended.push(*id);
        }
        self.output = output;
        Ok(())
    }

    fn take(&mut self) -> Checked {
        let Some(id) = self.ended.pop() else { return Ok(()) };
        let result = self.scheduler.take_output(id).map_err(|error| error.to_string())?;
        self.finish(id, &result, false)?;
        self.check()
    }

    fn finish(&mut self, id: u64, result: &RequestResult, was_aborted: bool) -> Checked {
        let error = |message: String| format!("request {id}: {message}");
        self.truths[&id].check_result(result, was_aborted).map_err(error)?;
        for sequence in &result.sequences {
            self.note(sequence.token_ids.iter().map(|token| u64::from(*token)));
            let is_repeating = sequence.finish_reason == FinishReason::Repetition;
            self.report.num_repeating += u64::from(is_repeating);
            let Some(stream) = self.streams.get(&(id, sequence.index)) else { continue };
            let ended = sequence.finish_reason != FinishReason::Abort;
            let is_whole = stream.text == sequence.text
                && stream.finish_reason == Some(sequence.finish_reason);
            if stream.token_ids != sequence.token_ids || ended && !is_whole {
                return Err(error(format!("sequence {} was streamed otherwise", sequence.index)));
            }
        }
        Ok(())
    }

    fn check_end(&mut self) -> Checked {
        let stats = self.scheduler.stats();
        let is_empty = stats.num_used_blocks == 0
            && stats.num_free_blocks == stats.num_blocks
            && stats.num_running == 0
            && stats.num_waiting == 0
            && !self.scheduler.kv_cache().has_deferred();
        if !is_empty {
            return Err(format!("something is left at the end: {stats:?}"));
        }
        if stats.num_requests != stats.num_finished + stats.num_aborted {
            return Err(format!("requests do not add up: {stats:?}"));
        }
        self.scheduler.reset_prefix_cache();
        if self.scheduler.kv_cache().num_cached_blocks() != 0 {
            return Err("a reset cache holds blocks".to_owned());
        }
        self.check()
    }
}
