//! Beam search in the scheduler: the beams of a request run their last tokens in one step, and what
//! follows them is decided for all of them together.

use super::arrays::BatchBuilder;
use super::{Sample, Scheduler, Slot, StepOutput};
use crate::beam::{Candidate, Continuations, Hypothesis};
use crate::ids::{RowId, TokenId};
use crate::logprobs::History;
use crate::request::{Request, Status};
use crate::stop::FinishReason;
use crate::text::SequenceText;

use super::update::{Delta, Sampled};

/// A candidate that goes on, with its text.
struct Survivor {
    candidate: Candidate,
    text: Option<Box<dyn SequenceText>>,
    history: Option<History>,
}

/// A sequence that continues another one's beam.
struct Move {
    index: usize,
    parent: usize,
    survivor: Survivor,
    output: Vec<TokenId>,
}

impl Scheduler {
    /// Decides whether the running request at place `i` runs the last tokens of its beams in this step,
    /// and makes room for them; `num_left` is the number of sequences that are not planned yet. False
    /// if the request does not run at all.
    pub(super) fn begin_beam_step(
        &mut self,
        slot: Slot,
        i: usize,
        num_left: &mut u32,
        builder: &mut BatchBuilder<'_, '_>,
    ) -> bool {
        let num_beams = self.hold_beams(slot);
        let request = self.request(slot);
        let is_in_step = request.beams.as_ref().is_some_and(|beams| beams.is_in_step);
        if request.num_in_flight > 0 {
            *num_left -= num_beams;
            return false;
        }
        if !is_in_step || num_beams == 1 {
            return true;
        }
        let rows: Vec<(RowId, u32)> = request
            .sequences
            .iter()
            .filter(|sequence| !sequence.is_parked())
            .filter_map(|sequence| Some((sequence.row?, sequence.num_computed)))
            .collect();
        while self.kv.blocks_for_next_token(&rows) > self.kv.pool().num_free() {
            if !self.make_room(i, num_left, builder) {
                *num_left -= num_beams;
                return false;
            }
        }
        true
    }

    /// Decides whether all beams of a request are as far as their last token; returns how many
    /// there are with blocks. One that is alone has nobody to wait for.
    pub(super) fn hold_beams(&mut self, slot: Slot) -> u32 {
        let request = self.request_mut(slot);
        let is_waited_for = |index: usize| {
            let sequence = &request.sequences[index];
            sequence.has_tokens()
                && (sequence.fork.is_some()
                    || sequence.num_computed + 1 < request.num_tokens(index))
        };
        let num_beams = request.sequences.iter().filter(|sequence| sequence.has_tokens()).count();
        let is_ready = num_beams == 1 || !(0..request.sequences.len()).any(is_waited_for);
        let num_parked =
            request.sequences.iter().filter(|sequence| sequence.fork.is_some()).count();
        if let Some(beams) = &mut request.beams {
            beams.is_in_step = is_ready;
        }
        (num_beams - num_parked) as u32
    }

    /// Takes the continuations of all beams of a request.
    pub(super) fn accept_beams(
        &mut self,
        samples: &[Sample],
        continuations: &Sampled<'_>,
        first: usize,
        output: &mut StepOutput,
    ) {
        let slot = samples[0].slot;
        let Some(request) = self.live(slot, samples[0].arrival) else {
            output.accepted.extend(samples.iter().map(|_| false));
            return;
        };
        request.num_in_flight -= samples.len() as u32;
        for sample in samples {
            request.sequences[sample.index as usize].num_pending -= 1;
        }
        let is_live = request.num_live > 0;
        output.accepted.extend(samples.iter().map(|_| is_live));
        if !is_live {
            return;
        }
        if !std::mem::replace(&mut request.has_output, true) {
            output.first_tokens.push(request.id);
        }
        let lists: Vec<_> = samples
            .iter()
            .enumerate()
            .map(|(i, sample)| {
                let (token_ids, logprobs) = continuations.candidates(first + i);
                Continuations { parent: sample.index, token_ids, logprobs }
            })
            .collect();
        let survivors = select(request, &lists);
        self.counters.num_generated_tokens += survivors.len().max(1) as u64;
        let request = self.request(slot);
        let beams = request.beams.as_ref().expect("it has beams");
        let num_output = request.sequences[samples[0].index as usize].num_output() + 1;
        let goes_on = survivors
            .first()
            .is_some_and(|best| beams.goes_on(best.candidate.sum, num_output, request.max_output));
        if goes_on {
            self.move_beams(slot, survivors);
        } else {
            self.end_search(slot, output);
        }
    }

    /// Gives each survivor a sequence: the best of a beam goes on in its place, the others take the
    /// places of beams that end here.
    fn move_beams(&mut self, slot: Slot, survivors: Vec<Survivor>) {
        let request = self.requests[slot as usize].as_mut().expect("it was live");
        let num_sequences = request.sequences.len();
        let mut is_taken = vec![false; num_sequences];
        let (mut stay, mut go) = (Vec::new(), Vec::new());
        for survivor in survivors {
            let parent = survivor.candidate.parent as usize;
            let is_first = !std::mem::replace(&mut is_taken[parent], true);
            if is_first { &mut stay } else { &mut go }.push(survivor);
        }
        let mut vacant = (0..num_sequences).filter(|index| !is_taken[*index]);
        let mut moves: Vec<Move> = Vec::with_capacity(go.len());
        for survivor in go {
            let parent = survivor.candidate.parent as usize;
            let mut output = Vec::with_capacity(request.max_output as usize);
            output.extend_from_slice(&request.sequences[parent].output);
            let index = vacant.next().expect("no more beams than sequences");
            moves.push(Move { index, parent, survivor, output });
        }
        // The rows of beams that end are closed before any is filled anew; parents all stay.
        for (_, sequence) in
            request.sequences.iter_mut().enumerate().filter(|(index, _)| !is_taken[*index])
        {
            if sequence.is_idle {
                continue;
            }
            if let Some(row) = sequence.row {
                self.kv.close_row(row);
                request.num_parked += 1;
                self.num_parked += 1;
            }
            sequence.is_idle = true;
            sequence.num_computed = 0;
            sequence.output.clear();
            sequence.text = None;
        }
        for survivor in stay {
            let index = survivor.candidate.parent as usize;
            put(request, index, survivor);
        }
        for Move { index, parent, survivor, output } in moves {
            let num_computed = request.sequences[parent].num_computed;
            let parent_row = request.sequences[parent].row;
            let sequence = &mut request.sequences[index];
            sequence.output = output;
            sequence.is_idle = false;
            sequence.num_computed = num_computed;
            if let (Some(parent_row), Some(row)) = (parent_row, sequence.row) {
                request.num_parked -= 1;
                self.num_parked -= 1;
                self.kv.fork(parent_row, row, num_computed);
            }
            put(request, index, survivor);
        }
        if request.beams.as_ref().is_some_and(|beams| beams.options.track_rows) {
            for (index, sequence) in request.sequences.iter().enumerate() {
                if let Some(row) = sequence.row.filter(|_| !sequence.is_idle) {
                    self.row_fills.push((row, request.id, index as u32));
                }
            }
        }
    }

    fn end_search(&mut self, slot: Slot, output: &mut StepOutput) {
        self.note_slot_use(slot);
        self.give_up_rows(slot);
        let request = self.requests[slot as usize].as_mut().expect("it was live");
        for sequence in &mut request.sequences {
            // What did not end is no result.
            sequence.is_idle = true;
            sequence.finish_reason = Some(FinishReason::Length);
        }
        request.num_live = 0;
        if request.status == Status::Waiting {
            self.waiting.remove(&request.rank);
        }
        request.status = Status::Finished;
        self.counters.num_finished += 1;
        output.finished.push(request.id);
        if !request.stream {
            return;
        }
        let returned = request.beams.as_ref().map_or(&[][..], |beams| beams.returned());
        for (rank, hypothesis) in returned.iter().enumerate() {
            let text = hypothesis.text.as_ref().map_or("", |text| text.text());
            output.deltas.push(Delta {
                request_id: request.id,
                index: rank as u32,
                token_ids: hypothesis.output.clone(),
                text: text.to_owned(),
                finish_reason: Some(hypothesis.reason),
            });
        }
    }
}

/// Sorts the candidates of a step into ended ones, which the search keeps, and survivors, best first.
fn select(request: &mut Request, lists: &[Continuations<'_>]) -> Vec<Survivor> {
    let width = request.sequences.len();
    let mut beams = request.beams.take().expect("it has beams");
    let candidates = beams.best(lists, beams.num_candidates(&request.stop));
    let mut survivors = Vec::with_capacity(width);
    for (rank, candidate) in candidates.into_iter().enumerate() {
        if rank >= width && survivors.len() == width {
            break;
        }
        let parent = candidate.parent as usize;
        let mut text = request.sequences[parent].text.as_ref().map(|text| text.fork());
        let reason = request.judge(parent, candidate.token, &mut text);
        let history = beams.options.num_logprobs.map(|num_top| {
            let report = lists[candidate.list].report(candidate.place, num_top);
            beams.histories[parent].with(report)
        });
        let Some(reason) = reason else {
            if survivors.len() < width {
                survivors.push(Survivor { candidate, text, history });
            }
            continue;
        };
        if rank < width {
            let mut output = request.sequences[parent].output.clone();
            output.push(candidate.token);
            let sum = candidate.sum;
            let hypothesis = Hypothesis { score: 0.0, sum, output, text, reason, history };
            beams.keep(hypothesis);
        }
    }
    request.beams = Some(beams);
    survivors
}

/// Lets a survivor go on in a sequence that has the tokens before it.
fn put(request: &mut Request, index: usize, survivor: Survivor) {
    let sequence = &mut request.sequences[index];
    sequence.output.push(survivor.candidate.token);
    sequence.text = survivor.text;
    let sum = survivor.candidate.sum;
    sequence.cumulative_logprob = f64::from(sum);
    if let Some(beams) = &mut request.beams {
        beams.sums[index] = sum;
        if let Some(history) = survivor.history {
            beams.histories[index] = history;
        }
    }
}
