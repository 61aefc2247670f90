//! When a sequence ends.

use crate::ids::TokenId;
use crate::repetition::RepetitionLimits;

/// Limits and ending ids of a request.
#[derive(Clone, Debug, Default)]
pub struct StopConditions {
    /// Tokens to generate at most. At least 1.
    pub max_tokens: u32,
    /// Tokens to generate before an ending id, a stop string or a repetition counts.
    pub min_tokens: u32,
    /// The model's ending ids.
    pub eos_token_ids: Vec<TokenId>,
    /// The request's own ending ids.
    pub stop_token_ids: Vec<TokenId>,
    /// Whether `eos_token_ids` are ordinary tokens.
    pub ignore_eos: bool,
    /// Which repetitions in the output end a sequence; none without limits.
    pub repetition: Option<RepetitionLimits>,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// One of the model's ending ids.
    Eos,
    /// One of the request's ending ids.
    StopToken(TokenId),
    /// The stop string with this index.
    StopString(u32),
    /// The grammar is complete, and no ending id can say so.
    Grammar,
    /// `max_tokens` or the model's context length.
    Length,
    /// Its last tokens repeat each other.
    Repetition,
    /// The caller gave up.
    Abort,
}

impl StopConditions {
    /// Whether `token`, which became output number `num_output`, ends the sequence by its id.
    pub fn check_id(&self, token: TokenId, num_output: u32) -> Option<FinishReason> {
        if num_output < self.min_tokens {
            return None;
        }
        if !self.ignore_eos && self.eos_token_ids.contains(&token) {
            return Some(FinishReason::Eos);
        }
        self.stop_token_ids.contains(&token).then_some(FinishReason::StopToken(token))
    }

    /// Whether some id can end a sequence as output number `num_output`.
    pub fn can_end_by_id(&self, num_output: u32) -> bool {
        num_output >= self.min_tokens && self.ending_ids().next().is_some()
    }

    /// All ids that end a sequence.
    pub fn ending_ids(&self) -> impl Iterator<Item = TokenId> + '_ {
        let eos: &[TokenId] = if self.ignore_eos { &[] } else { &self.eos_token_ids };
        eos.iter().chain(&self.stop_token_ids).copied()
    }
}
