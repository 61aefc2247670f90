//! Beam search: which continuations of a request's sequences live on, and which are kept as ended.
//!
//! The rules are those of transformers 5 (`GenerationMixin._beam_search`), in f32 as there, so that
//! its `generate(num_beams=k)` is an exact oracle:
//!
//! - Of all continuations of all beams, the best `(1 + max(1, ending ids)) * width` are candidates.
//! - A candidate that ends is kept if it is among the best `width` candidates. Its score is the sum
//!   of its log-probabilities divided by (generated tokens) ^ length penalty.
//! - The best `width` candidates that do not end are the beams of the next step.
//! - The search ends when no beam is left, or when `width` are kept and no beam can do better.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use crate::ids::TokenId;
use crate::logprobs::{History, TokenLogprob};
use crate::request::SequenceResult;
use crate::stop::{FinishReason, StopConditions};
use crate::text::SequenceText;

/// When a search with `width` ended sequences ends itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EarlyStopping {
    /// As soon as there are as many.
    Always,
    /// When the best beam, ended now, would score no better than the worst of them.
    #[default]
    Heuristic,
    /// When the best beam could not score better, whatever follows.
    Never,
}

/// What a request with beam search asks for; its `num_sequences` is the width.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BeamOptions {
    /// Ended sequences to return, the best first: from 1 to the width.
    pub num_returned: u32,
    /// Exponent of the length that a score is divided by.
    pub length_penalty: f64,
    /// When the search ends.
    pub early_stopping: EarlyStopping,
    /// Whether rows are reported as filled whenever they continue another beam: for callers that keep
    /// state of the generated tokens.
    pub track_rows: bool,
    /// How many of the most likely tokens to report for each position; none reports nothing.
    pub num_logprobs: Option<u32>,
}

/// A sequence that has ended.
pub(crate) struct Hypothesis {
    pub(crate) score: f32,
    pub(crate) sum: f32,
    pub(crate) output: Vec<TokenId>,
    pub(crate) text: Option<Box<dyn SequenceText>>,
    pub(crate) reason: FinishReason,
    pub(crate) history: Option<History>,
}

impl Hypothesis {
    pub(crate) fn into_result(self, rank: usize) -> SequenceResult {
        SequenceResult {
            index: rank as u32,
            token_ids: self.output,
            text: self.text.map_or_else(String::new, |text| text.text().to_owned()),
            cumulative_logprob: f64::from(self.sum),
            score: Some(self.score),
            logprobs: self.history.map(|history| history.to_vec()),
            finish_reason: self.reason,
        }
    }
}

/// A beam and a token to go on with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Candidate {
    /// Sum of the log-probabilities.
    pub(crate) sum: f32,
    /// Index of the beam's sequence.
    pub(crate) parent: u32,
    pub(crate) token: TokenId,
    /// Which of the beam's lists it is from, and its place there.
    pub(crate) list: usize,
    pub(crate) place: usize,
}

/// The continuations of one beam, most likely first.
pub(crate) struct Continuations<'a> {
    pub(crate) parent: u32,
    pub(crate) token_ids: &'a [TokenId],
    pub(crate) logprobs: &'a [f32],
}

impl Continuations<'_> {
    /// What is reported of the continuation at `place`.
    pub(crate) fn report(&self, place: usize, num_top: u32) -> TokenLogprob {
        let most = self.token_ids.iter().copied().zip(self.logprobs.iter().copied());
        let top =
            most.take(num_top as usize).take_while(|(_, logprob)| *logprob > f32::NEG_INFINITY);
        TokenLogprob { logprob: self.logprobs[place], rank: place as u32 + 1, top: top.collect() }
    }
}

/// The search of one request.
pub(crate) struct Beams {
    pub(crate) options: BeamOptions,
    width: usize,
    /// Of each sequence.
    pub(crate) sums: Vec<f32>,
    /// Of each sequence, where log-probabilities are reported.
    pub(crate) histories: Vec<History>,
    /// Best first, at most `width`.
    ended: Vec<Hypothesis>,
    /// Whether the batch being built runs the last token of every beam.
    pub(crate) is_in_step: bool,
}

impl Beams {
    pub(crate) fn new(options: BeamOptions, width: u32) -> Self {
        let width = width as usize;
        let num_histories = if options.num_logprobs.is_some() { width } else { 0 };
        Self {
            options,
            width,
            sums: vec![0.0; width],
            histories: vec![History::default(); num_histories],
            ended: Vec::new(),
            is_in_step: false,
        }
    }

    /// Continuations that are wanted of each beam.
    pub(crate) fn num_wanted(&self, stop: &StopConditions) -> usize {
        self.num_candidates(stop).max(self.options.num_logprobs.unwrap_or(0) as usize)
    }

    /// Candidates of a step.
    pub(crate) fn num_candidates(&self, stop: &StopConditions) -> usize {
        let num_eos = if stop.ignore_eos { 0 } else { stop.eos_token_ids.len() };
        (1 + (num_eos + stop.stop_token_ids.len()).max(1)) * self.width
    }

    /// The best `limit` continuations, best first; of equal ones, the earlier beam's and the earlier
    /// in its list. Those of no probability are left out.
    pub(crate) fn best(&self, beams: &[Continuations<'_>], limit: usize) -> Vec<Candidate> {
        let at = |beam: usize, rank: usize| {
            let (token, logprob) = (*beams[beam].token_ids.get(rank)?, beams[beam].logprobs[rank]);
            let sum = self.sums[beams[beam].parent as usize] + logprob;
            (sum > f32::NEG_INFINITY).then_some(Next { sum, beam, rank, token })
        };
        let mut heads: BinaryHeap<Next> = (0..beams.len()).filter_map(|beam| at(beam, 0)).collect();
        let mut best = Vec::with_capacity(limit);
        while best.len() < limit
            && let Some(next) = heads.pop()
        {
            let parent = beams[next.beam].parent;
            let (list, place) = (next.beam, next.rank);
            best.push(Candidate { sum: next.sum, parent, token: next.token, list, place });
            heads.extend(at(next.beam, next.rank + 1));
        }
        best
    }

    /// Keeps a candidate that ended, if it is good enough.
    pub(crate) fn keep(&mut self, mut hypothesis: Hypothesis) {
        hypothesis.score = self.score(hypothesis.sum, hypothesis.output.len() as u32);
        let at = self.ended.partition_point(|other| other.score >= hypothesis.score);
        self.ended.insert(at, hypothesis);
        self.ended.truncate(self.width);
    }

    /// Whether the search goes on with beams of `num_output` tokens, the best of which has the sum
    /// `best`.
    pub(crate) fn goes_on(&self, best: f32, num_output: u32, max_output: u32) -> bool {
        let Some(worst) = self.ended.get(self.width - 1) else { return true };
        let length = match self.options.early_stopping {
            EarlyStopping::Always => return false,
            EarlyStopping::Never if self.options.length_penalty > 0.0 => max_output,
            EarlyStopping::Never | EarlyStopping::Heuristic => num_output,
        };
        self.score(best, length) > worst.score
    }

    /// The sequences to return.
    pub(crate) fn returned(&self) -> &[Hypothesis] {
        &self.ended[..self.ended.len().min(self.options.num_returned as usize)]
    }

    /// The sequences to return.
    pub(crate) fn into_ended(mut self) -> Vec<Hypothesis> {
        self.ended.truncate(self.options.num_returned as usize);
        self.ended
    }

    fn score(&self, sum: f32, length: u32) -> f32 {
        sum / f64::from(length).powf(self.options.length_penalty) as f32
    }
}

/// The best continuation of a beam that is not taken yet.
#[derive(Clone, Copy, Debug)]
struct Next {
    sum: f32,
    beam: usize,
    rank: usize,
    token: TokenId,
}

impl Ord for Next {
    fn cmp(&self, other: &Self) -> Ordering {
        self.sum.total_cmp(&other.sum).then(other.beam.cmp(&self.beam))
    }
}

impl PartialOrd for Next {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Next {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Next {}

#[cfg(test)]
mod tests {
    use super::*;

    fn beams(early_stopping: EarlyStopping, length_penalty: f64, width: u32) -> Beams {
        let options = BeamOptions {
            num_returned: width,
            length_penalty,
            early_stopping,
            track_rows: false,
            num_logprobs: None,
        };
        Beams::new(options, width)
    }

    fn hypothesis(sum: f32, length: usize) -> Hypothesis {
        let output = vec![0; length];
        Hypothesis { score: 0.0, sum, output, text: None, reason: FinishReason::Eos, history: None }
    }

    #[test]
    fn candidates_are_the_best_of_all_beams_in_order() {
        let mut search = beams(EarlyStopping::Heuristic, 1.0, 2);
        search.sums = vec![-1.0, -2.0];
        let lists = [
            Continuations { parent: 0, token_ids: &[7, 8, 9], logprobs: &[-0.5, -2.0, -9.0] },
            Continuations {
                parent: 1,
                token_ids: &[5, 6, 4],
                logprobs: &[-0.1, -1.0, f32::NEG_INFINITY],
            },
        ];
        let best: Vec<_> = search.best(&lists, 9).iter().map(|c| (c.parent, c.token)).collect();
        // -1.5, -2.1, then -3.0 twice: the earlier beam's first.
        assert_eq!(best, [(0, 7), (1, 5), (0, 8), (1, 6), (0, 9)]);
        assert_eq!(search.best(&lists, 2).len(), 2);
    }

    #[test]
    fn ended_sequences_are_kept_by_score_and_only_the_best() {
        let mut search = beams(EarlyStopping::Heuristic, 2.0, 2);
        search.keep(hypothesis(-4.0, 2));
        assert!(search.goes_on(-100.0, 2, 9), "one is missing");
        search.keep(hypothesis(-4.5, 3));
        search.keep(hypothesis(-9.0, 3));
        let scores: Vec<_> = search.into_ended().iter().map(|h| (h.score, h.sum)).collect();
        assert_eq!(scores, [(-0.5, -4.5), (-1.0, -4.0)]);
    }

    #[test]
    fn the_modes_of_early_stopping_differ_in_what_a_beam_could_still_reach() {
        for (mode, penalty, expected) in [
            (EarlyStopping::Always, 1.0, false),
            // -6 / 4 is worse than -1, but -6 / 10 would be better.
            (EarlyStopping::Heuristic, 1.0, false),
            (EarlyStopping::Never, 1.0, true),
            (EarlyStopping::Never, 0.0, false),
        ] {
            let mut search = beams(mode, penalty, 1);
            search.keep(hypothesis(-1.0, 1));
            assert_eq!(search.goes_on(-6.0, 4, 10), expected, "{mode:?} {penalty}");
        }
    }
}
