//! What a request must get, whatever else runs beside it.

use super::rng::mix;
use super::toy_text::ToyText;
use crate::ids::TokenId;
use crate::request::{NewRequest, RequestResult, SequenceResult};
use crate::stop::{FinishReason, StopConditions};
use crate::text::SequenceText;

/// How the toy model answers one request.
#[derive(Clone, Copy, Debug)]
pub struct Voice {
    /// Requests with equal seeds and prompts get equal answers.
    pub seed: u64,
    /// Token ids that the model knows.
    pub vocabulary: u32,
    /// For a request with text: the tokens that are stop strings.
    pub stop_modulus: Option<u32>,
}

/// A request's sequences as they are when it runs alone: every token, and for every position a hash
/// of the whole past up to it. The toy model's next token is a function of that hash, so a single
/// wrong key or value anywhere in the past would change it.
#[derive(Clone, Debug)]
pub struct Truth {
    voice: Voice,
    prompt_len: u32,
    stop: StopConditions,
    include_stop_in_text: bool,
    /// `[index]`: prompt and output.
    tokens: Vec<Vec<TokenId>>,
    hashes: Vec<Vec<u64>>,
}

impl Truth {
    /// Generates all sequences of `request` as far as they can come under `max_model_len`.
    pub fn new(request: &NewRequest, voice: Voice, max_model_len: u32) -> Self {
        let prompt_len = request.prompt.len() as u32;
        let max_output = request.stop.max_tokens.min(max_model_len.saturating_sub(prompt_len));
        let salt = request.key.salt.iter().fold(0, |hash, byte| mix(hash, u64::from(*byte)));
        let root = mix(u64::from(request.key.adapter_id), salt);
        let mut hashes = Vec::new();
        let mut hash = root;
        for token in &request.prompt {
            hash = mix(hash, u64::from(*token));
            hashes.push(hash);
        }
        let mut truth = Self {
            voice,
            prompt_len,
            stop: request.stop.clone(),
            include_stop_in_text: request.include_stop_in_text,
            tokens: vec![request.prompt.clone(); request.num_sequences as usize],
            hashes: vec![hashes; request.num_sequences as usize],
        };
        for index in 0..truth.tokens.len() {
            let mut hash = *truth.hashes[index].last().unwrap_or(&root);
            for _ in 0..max_output {
                let token = truth.sample(index as u32, hash);
                hash = mix(hash, u64::from(token));
                truth.tokens[index].push(token);
                truth.hashes[index].push(hash);
            }
        }
        truth
    }

    /// Tokens in the prompt.
    pub const fn prompt_len(&self) -> u32 {
        self.prompt_len
    }

    /// Sequences of the request.
    pub const fn num_sequences(&self) -> u32 {
        self.tokens.len() as u32
    }

    /// The token of sequence `index` at `position`; none beyond its longest possible end.
    pub fn token(&self, index: u32, position: u32) -> Option<TokenId> {
        self.tokens[index as usize].get(position as usize).copied()
    }

    /// The hash of sequence `index` up to and including `position`.
    pub fn hash(&self, index: u32, position: u32) -> Option<u64> {
        self.hashes[index as usize].get(position as usize).copied()
    }

    /// The log-probability that the model gives to the token at `position`.
    pub fn logprob(&self, index: u32, position: u32) -> f32 {
        let hash = self.hashes[index as usize][position as usize];
        -((hash % 4096) as f32) / 1024.0
    }

    /// One in four tokens is the same for all sequences with this past; the others differ by index.
    fn sample(&self, index: u32, hash: u64) -> TokenId {
        let hash = mix(hash, self.voice.seed);
        let is_common = hash.is_multiple_of(4);
        let hash = if is_common { hash >> 8 } else { mix(hash, u64::from(index)) };
        (hash % u64::from(self.voice.vocabulary)) as TokenId
    }

    /// Checks a result against what the request gets when it runs alone. `was_aborted`: its
    /// sequences may end early, and only then.
    ///
    /// # Errors
    /// The first difference.
    pub fn check_result(&self, result: &RequestResult, was_aborted: bool) -> Result<(), String> {
        if result.sequences.len() != self.tokens.len() {
            return Err(format!("{} sequences returned", result.sequences.len()));
        }
        for (index, sequence) in result.sequences.iter().enumerate() {
            let is_early = sequence.finish_reason == FinishReason::Abort;
            if is_early && !was_aborted {
                return Err(format!("sequence {index} was aborted by nobody"));
            }
            let limit = is_early.then_some(sequence.token_ids.len());
            let want = self.run_alone(index, limit);
            let got = (&sequence.token_ids, &sequence.text, sequence.finish_reason);
            if got != (&want.token_ids, &want.text, want.finish_reason) {
                return Err(format!("sequence {index} is {got:?}, alone it is {want:?}"));
            }
            if (sequence.cumulative_logprob - want.cumulative_logprob).abs() > 1e-9 {
                return Err(format!("sequence {index} has a wrong log-probability"));
            }
        }
        Ok(())
    }

    /// The sequence alone, to its end or aborted after `limit` tokens.
    fn run_alone(&self, index: usize, limit: Option<usize>) -> SequenceResult {
        let mut text = self.voice.stop_modulus.map(ToyText::new);
        let output = &self.tokens[index][self.prompt_len as usize..];
        let mut cumulative_logprob = 0.0;
        let mut num_output = 0;
        let mut reason = FinishReason::Length;
        for token in output {
            if limit == Some(num_output) {
                reason = FinishReason::Abort;
                break;
            }
            num_output += 1;
            let position = self.prompt_len + num_output as u32 - 1;
            cumulative_logprob += f64::from(self.logprob(index as u32, position));
            let end = self.ending(*token, num_output, text.as_mut());
            let repeats = num_output < output.len() && self.is_repeating(&output[..num_output]);
            if let Some(end) = end.or(repeats.then_some(FinishReason::Repetition)) {
                reason = end;
                break;
            }
        }
        if let Some(text) = &mut text {
            text.finish();
        }
        SequenceResult {
            index: index as u32,
            token_ids: output[..num_output].to_vec(),
            text: text.map_or_else(String::new, |text| text.text().to_owned()),
            cumulative_logprob,
            score: None,
            logprobs: None,
            finish_reason: reason,
        }
    }

    fn ending(
        &self,
        token: TokenId,
        num_output: usize,
        text: Option<&mut ToyText>,
    ) -> Option<FinishReason> {
        let may_stop = num_output >= self.stop.min_tokens as usize;
        let mut end = None;
        if may_stop && self.stop.stop_token_ids.contains(&token) {
            end = Some(FinishReason::StopToken(token));
        }
        if may_stop && !self.stop.ignore_eos && self.stop.eos_token_ids.contains(&token) {
            end = Some(FinishReason::Eos);
        }
        match text {
            Some(text) if end.is_none() || self.include_stop_in_text => {
                let stopped = text.push(token, may_stop).map(FinishReason::StopString);
                end.or(stopped)
            }
            _ => end,
        }
    }

    /// Whether the last tokens are copies of one pattern, where that ends a sequence.
    fn is_repeating(&self, output: &[TokenId]) -> bool {
        let Some(limits) = self.stop.repetition else { return false };
        let may_stop = output.len() >= self.stop.min_tokens as usize;
        let is_repeated = |size: usize| {
            let mut copies = output.rchunks_exact(size).take(limits.min_count as usize);
            output.len() >= size * limits.min_count as usize
                && copies.all(|copy| output.ends_with(copy))
        };
        may_stop && (limits.min_pattern..=limits.max_pattern).any(|size| is_repeated(size as usize))
    }
}
