//! `schedule`: running sequences first, then waiting requests.

use super::arrays::BatchBuilder;
use super::{InFlight, Sample, ScheduledRow, Scheduler, Slot};
use crate::batch::{Batch, StepArrays};
use crate::error::Error;
use crate::fork::next_fork;

impl Scheduler {
    /// Plans the next step and writes its arrays. None if nothing can run now: there are no requests,
    /// or all of them wait for a batch in flight.
    ///
    /// # Errors
    /// `max_in_flight` batches are in flight already.
    pub fn schedule(&mut self, arrays: &mut StepArrays<'_>) -> Result<Option<Batch>, Error> {
        if self.in_flight.len() >= self.config.max_in_flight as usize {
            let expected = self.in_flight.front().map_or(0, |batch| batch.id);
            let given = self.num_batches + 1;
            return Err(Error::BatchOrder { verb: "scheduled", given, expected });
        }
        let mut record = self.spare.pop().unwrap_or_default();
        record.id = self.num_batches + 1;
        let budget = self.config.max_num_batched_tokens;
        let mut builder = BatchBuilder::new(arrays, record.id, budget);
        self.plan_running(&mut builder, &mut record);
        if !builder.is_short_of_blocks {
            self.admit_waiting(&mut builder, &mut record);
        }
        if record.rows.is_empty() {
            self.spare.push(record);
            return Ok(None);
        }
        let mut batch = builder.finish(&self.kv, &self.row_fills);
        batch.num_constrained = self.num_constrained(&record);
        self.kv.begin_batch();
        self.row_fills.clear();
        record.swapped_out.append(&mut self.swapped_out);
        self.num_batches += 1;
        self.in_flight.push_back(record);
        self.counters.note_step(&batch, &self.kv);
        Ok(Some(batch))
    }

    fn plan_running(&mut self, builder: &mut BatchBuilder<'_, '_>, record: &mut InFlight) {
        let mut num_left = self.num_active();
        let mut i = 0;
        while let Some(&slot) = self.running.get(i) {
            if self.request(slot).beams.is_some()
                && !self.begin_beam_step(slot, i, &mut num_left, builder)
            {
                i += 1;
                continue;
            }
            for index in 0..self.request(slot).sequences.len() {
                let sequence = &self.request(slot).sequences[index];
                if sequence.row.is_none() || sequence.is_parked() || sequence.forked_by == record.id
                {
                    continue;
                }
                num_left -= 1;
                // A long chunk leaves one token for each sequence after it, so that all advance.
                let budget = builder.budget - num_left.min(builder.budget);
                while !self.plan_sequence(slot, index, budget, builder, record) {
                    if !self.make_room(i, &mut num_left, builder) {
                        break;
                    }
                }
            }
            i += 1;
        }
        let is_stuck = record.rows.is_empty() && builder.is_short_of_blocks;
        assert!(
            !is_stuck || self.kv.has_deferred() || !self.in_flight.is_empty(),
            "a request that fits alone cannot run"
        );
    }

    /// Blocks are short for the request at place `i`: takes those of the one served last. False if
    /// there is nobody after it, or if blocks come back soon in any case.
    pub(super) fn make_room(
        &mut self,
        i: usize,
        num_left: &mut u32,
        builder: &mut BatchBuilder<'_, '_>,
    ) -> bool {
        builder.is_short_of_blocks = true;
        if self.kv.has_deferred() || self.running.len() == i + 1 {
            return false;
        }
        *num_left -= self.preempt_last();
        true
    }

    /// Sequences that hold blocks.
    pub(super) fn num_active(&self) -> u32 {
        self.config.max_num_seqs() - self.free_rows.len() as u32 - self.num_parked
    }

    /// Preempts the running request that is served last; returns how many sequences held blocks.
    fn preempt_last(&mut self) -> u32 {
        let slot = *self.running.last().expect("someone runs");
        let num_active = self.num_active();
        let num_lost = if self.swap_out(slot) { 0 } else { self.preempt(slot) };
        let request = self.request_mut(slot);
        request.num_preemptions += 1;
        request.num_tokens_lost += num_lost;
        self.counters.num_preemptions += 1;
        self.counters.num_tokens_lost += num_lost;
        num_active - self.num_active()
    }

    /// Adds as many tokens of a sequence as budget and blocks allow. False if a block was needed and
    /// there was none.
    pub(super) fn plan_sequence(
        &mut self,
        slot: Slot,
        index: usize,
        budget: u32,
        builder: &mut BatchBuilder<'_, '_>,
        record: &mut InFlight,
    ) -> bool {
        let request = self.requests[slot as usize].as_mut().expect("a listed slot is taken");
        if !request.is_runnable(index) {
            return true;
        }
        let start = request.sequences[index].num_computed;
        let num_tokens = request.num_tokens(index);
        // Beams run their last tokens together.
        let is_held = request.beams.as_ref().is_some_and(|beams| !beams.is_in_step);
        let num_tokens = num_tokens - u32::from(is_held);
        let stop = next_fork(request, index).unwrap_or(num_tokens).min(num_tokens);
        let want = stop.min(start + budget);
        if want == start {
            return true;
        }
        let row = request.sequences[index].row.expect("a runnable sequence has a row");
        let end = self.kv.reserve(row, start, want);
        if end == start {
            return false;
        }
        builder.push_row(&self.kv, request, index, row, (start, end));
        request.sequences[index].num_computed = end;
        let (arrival, run) = (request.rank.arrival, request.run);
        record.rows.push(ScheduledRow { slot, arrival, run, index: index as u32, row, end });
        if end == num_tokens && !is_held {
            self.plan_sample(slot, index, builder, record);
        }
        self.fork_children(slot, index, end, builder, record);
        true
    }

    /// Forks every sequence that waits for sequence `index` to reach `at`.
    fn fork_children(
        &mut self,
        slot: Slot,
        index: usize,
        at: u32,
        builder: &mut BatchBuilder<'_, '_>,
        record: &mut InFlight,
    ) {
        if self.request(slot).num_parked == 0 {
            return;
        }
        for child in 0..self.request(slot).sequences.len() {
            let request = self.request_mut(slot);
            let is_due = request.sequences[child].is_live()
                && request.sequences[child]
                    .fork
                    .is_some_and(|fork| fork.parent as usize == index && fork.at == at);
            if !is_due {
                continue;
            }
            let parent_row = request.sequences[index].row.expect("a runnable sequence has a row");
            let sequence = &mut request.sequences[child];
            let row = sequence.row.expect("rows are given out together");
            sequence.fork = None;
            sequence.num_computed = at;
            sequence.forked_by = record.id;
            let is_complete = request.beams.is_none() && request.num_tokens(child) == at;
            request.num_parked -= 1;
            self.num_parked -= 1;
            self.kv.fork(parent_row, row, at);
            if is_complete {
                self.plan_sample(slot, child, builder, record);
            }
        }
    }

    /// Samples the next token of a sequence whose tokens are all computed.
    fn plan_sample(
        &mut self,
        slot: Slot,
        index: usize,
        builder: &mut BatchBuilder<'_, '_>,
        record: &mut InFlight,
    ) {
        let request = self.request_mut(slot);
        request.num_in_flight += 1;
        let arrival = request.rank.arrival;
        let beams = request.beams.as_ref();
        let is_beam = beams.is_some();
        let num_candidates = beams.map_or(1, |beams| beams.num_wanted(&request.stop) as u32);
        let sequence = &mut request.sequences[index];
        let row = sequence.row.expect("a runnable sequence has a row");
        let output_position = sequence.num_output() + sequence.num_pending;
        sequence.pending_sample = builder.push_sample(row, index, output_position, num_candidates);
        sequence.num_pending += 1;
        record.samples.push(Sample { slot, arrival, index: index as u32, is_beam });
    }
}
