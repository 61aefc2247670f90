//! A request and its sequences.

use crate::beam::{BeamOptions, Beams, Hypothesis};
use crate::fork::ForkPoint;
use crate::ids::{RowId, TokenId};
use crate::kv_cache::{SlotUse, Swapped};
use crate::logprobs::TokenLogprob;
use crate::prefix_cache::CacheKey;
use crate::repetition::RepetitionScan;
use crate::stop::{FinishReason, StopConditions};
use crate::text::SequenceText;
use crate::tokens::Tokens;

/// What a caller asks for.
pub struct NewRequest {
    /// The caller's name for it, unique among live requests.
    pub id: u64,
    /// The prompt; at least one token.
    pub prompt: Vec<TokenId>,
    /// Sequences to generate from it.
    pub num_sequences: u32,
    /// When they end.
    pub stop: StopConditions,
    /// Rank under [`Policy::Priority`](crate::Policy::Priority): lower is sooner.
    pub priority: i32,
    /// What its cached content is shared under.
    pub key: CacheKey,
    /// The text of each sequence, if anyone wants it; forked for every sequence.
    pub text: Option<Box<dyn SequenceText>>,
    /// Beam search instead of sampling; `num_sequences` is then its width.
    pub beams: Option<BeamOptions>,
    /// Whether an ending id adds to the text.
    pub include_stop_in_text: bool,
    /// Whether `update` reports each token.
    pub stream: bool,
}

/// A sequence that has ended.
#[derive(Clone, Debug)]
pub struct SequenceResult {
    /// Index within the request; of beams, the rank by score.
    pub index: u32,
    /// The generated tokens, an ending id included.
    pub token_ids: Vec<TokenId>,
    /// The generated text; empty without a text decoder.
    pub text: String,
    /// Sum of the tokens' log-probabilities.
    pub cumulative_logprob: f64,
    /// Of beams: the sum, divided by (generated tokens) ^ length penalty.
    pub score: Option<f32>,
    /// Of beams, if asked for: one entry per token.
    pub logprobs: Option<Vec<TokenLogprob>>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// A request that has ended.
#[derive(Clone, Debug)]
pub struct RequestResult {
    /// Its sequences, by index.
    pub sequences: Vec<SequenceResult>,
    /// Prompt tokens that were found in the prefix cache when it first ran.
    pub num_cached_tokens: u32,
    /// How often it gave up its blocks.
    pub num_preemptions: u32,
    /// Of those, how often they were moved to the host.
    pub num_swaps: u32,
    /// Tokens whose computation was lost because it gave up its blocks.
    pub num_tokens_lost: u64,
    /// The slots of its blocks when the first of its sequences ended.
    pub slot_use: SlotUse,
}

/// One continuation of a request's prompt.
pub(crate) struct Sequence {
    pub(crate) output: Vec<TokenId>,
    /// Its row, while the request runs.
    pub(crate) row: Option<RowId>,
    /// Where it will share the past of another; none once it holds blocks of its own.
    pub(crate) fork: Option<ForkPoint>,
    /// It stands for no beam at present and holds no tokens; of requests with beam search only.
    pub(crate) is_idle: bool,
    /// The batch that forked it: it runs from the next one on.
    pub(crate) forked_by: u64,
    /// Tokens whose keys and values are computed, or will be by a batch in flight.
    pub(crate) num_computed: u32,
    /// Tokens sampled by batches in flight: 0 or 1.
    pub(crate) num_pending: u32,
    /// Which sample of its batch the pending token is.
    pub(crate) pending_sample: u32,
    pub(crate) text: Option<Box<dyn SequenceText>>,
    /// Bytes of the text already reported.
    pub(crate) num_delivered: usize,
    pub(crate) cumulative_logprob: f64,
    pub(crate) finish_reason: Option<FinishReason>,
}

impl Sequence {
    fn into_result(self, index: usize) -> SequenceResult {
        let is_live = self.is_live();
        let text = self.text.map(|text| if is_live { finished(text) } else { text });
        SequenceResult {
            index: index as u32,
            token_ids: self.output,
            text: text.map_or_else(String::new, |text| text.text().to_owned()),
            cumulative_logprob: self.cumulative_logprob,
            score: None,
            logprobs: None,
            finish_reason: self.finish_reason.unwrap_or(FinishReason::Abort),
        }
    }

    fn new(text: Option<Box<dyn SequenceText>>) -> Self {
        Self {
            output: Vec::new(),
            row: None,
            fork: None,
            is_idle: false,
            forked_by: 0,
            num_computed: 0,
            num_pending: 0,
            pending_sample: 0,
            text,
            num_delivered: 0,
            cumulative_logprob: 0.0,
            finish_reason: None,
        }
    }

    pub(crate) fn is_live(&self) -> bool {
        self.finish_reason.is_none()
    }

    /// Whether it is live and stands for something.
    pub(crate) fn has_tokens(&self) -> bool {
        self.is_live() && !self.is_idle
    }

    /// Whether it has a row, or will get one, but holds no blocks.
    pub(crate) fn is_parked(&self) -> bool {
        self.is_idle || self.fork.is_some()
    }

    pub(crate) fn num_output(&self) -> u32 {
        self.output.len() as u32
    }
}

/// A text that grows no more.
pub(crate) fn finished(mut text: Box<dyn SequenceText>) -> Box<dyn SequenceText> {
    text.finish();
    text
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Waiting,
    Running,
    Finished,
}

/// Service order: smaller is served first and preempted last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    pub(crate) priority: i32,
    pub(crate) arrival: u64,
}

pub(crate) struct Request {
    pub(crate) id: u64,
    pub(crate) rank: Rank,
    pub(crate) status: Status,
    pub(crate) prompt: Vec<TokenId>,
    pub(crate) stop: StopConditions,
    repetition: Option<RepetitionScan>,
    /// `stop.max_tokens`, or less where the context ends.
    pub(crate) max_output: u32,
    pub(crate) key: CacheKey,
    pub(crate) include_stop_in_text: bool,
    pub(crate) stream: bool,
    pub(crate) sequences: Vec<Sequence>,
    pub(crate) beams: Option<Beams>,
    /// Its blocks, while it waits with what it computed.
    pub(crate) swapped: Option<Swapped>,
    pub(crate) num_live: u32,
    /// Sequences that have a row but no blocks.
    pub(crate) num_parked: u32,
    /// Samples of batches in flight that belong to it.
    pub(crate) num_in_flight: u32,
    pub(crate) num_cached_tokens: Option<u32>,
    pub(crate) num_preemptions: u32,
    pub(crate) num_swaps: u32,
    pub(crate) num_tokens_lost: u64,
    /// None until one of its sequences that holds blocks ends.
    pub(crate) slot_use: Option<SlotUse>,
    pub(crate) has_output: bool,
    /// Times it started to run; tells apart the rows of different runs.
    pub(crate) run: u32,
}

impl Request {
    pub(crate) fn new(new: NewRequest, rank: Rank, max_output: u32) -> Self {
        let mut text = new.text;
        let beams = new.beams.map(|options| Beams::new(options, new.num_sequences));
        let sequences = (0..new.num_sequences)
            .rev()
            .map(|i| {
                // A search begins with one beam.
                let is_idle = beams.is_some() && i > 0;
                let own = match i {
                    0 => text.take(),
                    _ if is_idle => None,
                    _ => text.as_ref().map(|text| text.fork()),
                };
                Sequence { is_idle, ..Sequence::new(own) }
            })
            .collect::<Vec<_>>();
        let sequences = sequences.into_iter().rev().collect();
        Self {
            id: new.id,
            rank,
            status: Status::Waiting,
            prompt: new.prompt,
            repetition: new.stop.repetition.map(RepetitionScan::new),
            stop: new.stop,
            max_output,
            key: new.key,
            include_stop_in_text: new.include_stop_in_text,
            stream: new.stream,
            sequences,
            beams,
            swapped: None,
            num_live: new.num_sequences,
            num_parked: 0,
            num_in_flight: 0,
            num_cached_tokens: None,
            num_preemptions: 0,
            num_swaps: 0,
            num_tokens_lost: 0,
            slot_use: None,
            has_output: false,
            run: 0,
        }
    }

    /// The rows of its sequences that hold blocks, by index.
    pub(crate) fn rows(&self) -> Vec<Option<RowId>> {
        let held = |sequence: &Sequence| sequence.row.filter(|_| !sequence.is_parked());
        self.sequences.iter().map(held).collect()
    }

    pub(crate) fn prompt_len(&self) -> u32 {
        self.prompt.len() as u32
    }

    /// The known tokens of a sequence.
    pub(crate) fn tokens(&self, index: usize) -> Tokens<'_> {
        Tokens::new(&self.prompt, &self.sequences[index].output)
    }

    /// Tokens of a sequence, the pending one included.
    pub(crate) fn num_tokens(&self, index: usize) -> u32 {
        let sequence = &self.sequences[index];
        self.prompt_len() + sequence.num_output() + sequence.num_pending
    }

    /// Whether a sequence has something left to compute that is worth computing.
    pub(crate) fn is_runnable(&self, index: usize) -> bool {
        let sequence = &self.sequences[index];
        sequence.has_tokens()
            && sequence.fork.is_none()
            && sequence.num_output() + sequence.num_pending < self.max_output
    }

    /// Adds `token`, which is to follow the output of sequence `index`, to a `text` of that output, and
    /// says why the sequence ends with it, if it does.
    pub(crate) fn judge(
        &mut self,
        index: usize,
        token: TokenId,
        text: &mut Option<Box<dyn SequenceText>>,
    ) -> Option<FinishReason> {
        let output = &self.sequences[index].output;
        let num_output = output.len() as u32 + 1;
        let may_stop = num_output >= self.stop.min_tokens;
        let mut reason = self.stop.check_id(token, num_output);
        if let Some(text) = text
            && (reason.is_none() || self.include_stop_in_text)
        {
            let stopped = text.push(token, may_stop).map(FinishReason::StopString);
            reason = reason.or(stopped);
            if text.is_complete() && !self.stop.can_end_by_id(num_output + 1) {
                reason = reason.or(Some(FinishReason::Grammar));
            }
        }
        let at_limit = num_output >= self.max_output;
        reason = reason.or(at_limit.then_some(FinishReason::Length));
        if let Some(scan) = &mut self.repetition
            && may_stop
            && reason.is_none()
            && scan.is_repeating(output, token)
        {
            reason = Some(FinishReason::Repetition);
        }
        if let (Some(text), Some(_)) = (text, reason) {
            text.finish();
        }
        reason
    }

    pub(crate) fn into_result(mut self) -> RequestResult {
        let beams = self.beams.take();
        let sequences = self.sequences.into_iter().enumerate();
        let sequences: Vec<_> = if let Some(mut beams) = beams {
            // What an aborted search had so far counts as ended.
            for (index, sequence) in sequences.filter(|(_, sequence)| sequence.has_tokens()) {
                beams.keep(Hypothesis {
                    score: 0.0,
                    sum: beams.sums[index],
                    output: sequence.output,
                    text: sequence.text.map(finished),
                    reason: FinishReason::Abort,
                    history: beams.histories.get(index).cloned(),
                });
            }
            let ended = beams.into_ended().into_iter().enumerate();
            ended.map(|(rank, hypothesis)| hypothesis.into_result(rank)).collect()
        } else {
            sequences.map(|(index, sequence)| sequence.into_result(index)).collect()
        };
        RequestResult {
            sequences,
            num_cached_tokens: self.num_cached_tokens.unwrap_or(0),
            num_preemptions: self.num_preemptions,
            num_swaps: self.num_swaps,
            num_tokens_lost: self.num_tokens_lost,
            slot_use: self.slot_use.unwrap_or_default(),
        }
    }
}
