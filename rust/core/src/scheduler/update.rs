//! `update`: sampled tokens arrive, sequences end.

use super::{InFlight, Sample, Scheduler, Slot};
use crate::batch::Batch;
use crate::error::Error;
use crate::ids::TokenId;
use crate::request::Status;
use crate::stop::FinishReason;

/// One token of a request that is streamed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta {
    /// The request.
    pub request_id: u64,
    /// Index of the sequence within it.
    pub index: u32,
    /// The tokens: one, or all of a beam.
    pub token_ids: Vec<TokenId>,
    /// Text that became final with it; may be empty, and may belong to earlier tokens.
    pub text: String,
    /// Set on the last delta of a sequence.
    pub finish_reason: Option<FinishReason>,
}

/// What a step led to. Reused from step to step.
#[derive(Clone, Debug, Default)]
pub struct StepOutput {
    /// Per sample: whether the token counts. False for sequences that ended meanwhile.
    pub accepted: Vec<bool>,
    /// Requests that got their first token.
    pub first_tokens: Vec<u64>,
    /// Tokens of streamed requests.
    pub deltas: Vec<Delta>,
    /// Requests whose sequences have all ended; [`Scheduler::take_output`] has their results.
    pub finished: Vec<u64>,
}

/// `[samples, per_sample]` tokens and their log-probabilities.
pub(super) struct Sampled<'a> {
    token_ids: &'a [TokenId],
    logprobs: &'a [f32],
    per_sample: usize,
}

impl<'a> Sampled<'a> {
    /// Those of one sample.
    pub(super) fn candidates(&self, sample: usize) -> (&'a [TokenId], &'a [f32]) {
        let range = sample * self.per_sample..(sample + 1) * self.per_sample;
        (&self.token_ids[range.clone()], &self.logprobs[range])
    }
}

impl Scheduler {
    /// Takes the tokens sampled for the oldest batch in flight, with their log-probabilities: of each
    /// sample `num_candidates` of the batch, most likely first. Of a sample that wants fewer, the first
    /// count; a log-probability of minus infinity means that there are no more.
    ///
    /// This alone decides which sequences end.
    ///
    /// # Errors
    /// `batch` is not the oldest in flight, or the lengths differ from its samples; nothing has
    /// changed then.
    pub fn update(
        &mut self,
        batch: &Batch,
        token_ids: &[TokenId],
        logprobs: &[f32],
        output: &mut StepOutput,
    ) -> Result<(), Error> {
        let expected = self.in_flight.front().map_or(0, |record| record.id);
        if batch.id != expected || expected == 0 {
            return Err(Error::BatchOrder { verb: "updated", given: batch.id, expected });
        }
        let per_sample = batch.num_candidates.max(1) as usize;
        let expected = batch.num_samples as usize * per_sample;
        for (name, actual) in [("token_ids", token_ids.len()), ("logprobs", logprobs.len())] {
            if actual != expected {
                return Err(Error::Shape { name, expected, actual });
            }
        }
        output.accepted.clear();
        output.first_tokens.clear();
        output.deltas.clear();
        output.finished.clear();
        let record = self.in_flight.pop_front().expect("checked above");
        self.kv.end_batch();
        self.commit(&record);
        let sampled = Sampled { token_ids, logprobs, per_sample };
        for samples in record.samples.chunk_by(|a, b| a.slot == b.slot) {
            let first = output.accepted.len();
            if samples[0].is_beam {
                self.accept_beams(samples, &sampled, first, output);
                continue;
            }
            for (i, sample) in samples.iter().enumerate() {
                let at = (first + i) * per_sample;
                let is_accepted = self.accept(*sample, token_ids[at], logprobs[at], output);
                output.accepted.push(is_accepted);
            }
        }
        if !output.finished.is_empty() {
            let requests = &self.requests;
            self.running.retain(|slot| {
                requests[*slot as usize]
                    .as_ref()
                    .is_some_and(|request| request.status == Status::Running)
            });
        }
        self.recycle(record);
        Ok(())
    }

    /// Takes back the newest batch in flight, whose forward pass failed or was interrupted: its
    /// requests wait to be computed again, and nothing of it counts. Returns their ids.
    ///
    /// # Errors
    /// `batch` is not the newest in flight.
    pub fn requeue(&mut self, batch: &Batch) -> Result<Vec<u64>, Error> {
        let expected = self.in_flight.back().map_or(0, |record| record.id);
        if batch.id != expected || expected == 0 {
            return Err(Error::BatchOrder { verb: "requeued", given: batch.id, expected });
        }
        let record = self.in_flight.pop_back().expect("checked above");
        for sample in &record.samples {
            let Some(request) = self.live(sample.slot, sample.arrival) else { continue };
            request.num_in_flight -= 1;
            request.sequences[sample.index as usize].num_pending -= 1;
        }
        let mut ids = Vec::new();
        for row in &record.rows {
            let Some(request) = self.live(row.slot, row.arrival) else { continue };
            if request.status != Status::Running || request.run != row.run {
                continue;
            }
            ids.push(request.id);
            self.preempt(row.slot);
        }
        self.undo_swap_out(&record.swapped_out);
        self.kv.cancel_batch();
        self.recycle(record);
        Ok(ids)
    }

    /// Makes the blocks that the batch completed findable.
    fn commit(&mut self, record: &InFlight) {
        for row in &record.rows {
            let Some(request) = &self.requests[row.slot as usize] else { continue };
            let index = row.index as usize;
            if request.rank.arrival != row.arrival
                || request.run != row.run
                || request.sequences[index].row != Some(row.row)
            {
                continue;
            }
            self.kv.commit(row.row, request.tokens(index), row.end);
        }
    }

    fn accept(
        &mut self,
        sample: Sample,
        token: TokenId,
        logprob: f32,
        output: &mut StepOutput,
    ) -> bool {
        let Some(request) = self.live(sample.slot, sample.arrival) else { return false };
        request.num_in_flight -= 1;
        let index = sample.index as usize;
        let sequence = &mut request.sequences[index];
        sequence.num_pending -= 1;
        if !sequence.is_live() {
            return false;
        }
        let mut text = sequence.text.take();
        let reason = request.judge(index, token, &mut text);
        let sequence = &mut request.sequences[index];
        sequence.output.push(token);
        sequence.cumulative_logprob += f64::from(logprob);
        sequence.text = text;
        sequence.finish_reason = reason;
        if !std::mem::replace(&mut request.has_output, true) {
            output.first_tokens.push(request.id);
        }
        if request.stream {
            let text = sequence.text.as_ref().map_or("", |text| text.text());
            let delta = text[sequence.num_delivered..].to_owned();
            sequence.num_delivered = text.len();
            output.deltas.push(Delta {
                request_id: request.id,
                index: sample.index,
                token_ids: vec![token],
                text: delta,
                finish_reason: reason,
            });
        }
        self.counters.num_generated_tokens += 1;
        if reason.is_some() {
            self.end_sequence(sample, output);
        }
        true
    }

    fn end_sequence(&mut self, sample: Sample, output: &mut StepOutput) {
        self.note_slot_use(sample.slot);
        let request = self.requests[sample.slot as usize].as_mut().expect("it was live");
        let index = sample.index as usize;
        request.num_live -= 1;
        if let Some(row) = request.sequences[index].row.take() {
            self.kv.close_row(row);
            self.free_rows.push(row);
        }
        debug_assert!(request.sequences[index].fork.is_none(), "a parked sequence is not sampled");
        if request.num_live > 0 {
            return;
        }
        if request.status == Status::Waiting {
            self.waiting.remove(&request.rank);
        }
        request.status = Status::Finished;
        self.counters.num_finished += 1;
        output.finished.push(request.id);
    }

    /// Records the slots that a request holds, if it has any and this is the first time.
    pub(super) fn note_slot_use(&mut self, slot: Slot) {
        let request = self.request(slot);
        if request.slot_use.is_none() && request.status == Status::Running {
            let slot_use = self.kv.slot_use(&request.rows());
            self.request_mut(slot).slot_use = Some(slot_use);
        }
    }

    fn recycle(&mut self, mut record: InFlight) {
        record.rows.clear();
        record.samples.clear();
        record.swapped_out.clear();
        self.spare.push(record);
    }
}
