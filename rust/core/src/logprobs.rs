//! Log-probabilities of the tokens of a beam, shared by the beams that part from it.

use std::sync::Arc;

use crate::ids::TokenId;

/// One token's log-probability and the most likely tokens in its place.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    /// Its log-probability.
    pub logprob: f32,
    /// 1 if it was the most likely one.
    pub rank: u32,
    /// The most likely tokens, best first.
    pub top: Vec<(TokenId, f32)>,
}

/// The tokens of a beam, from the last one back. A copy shares all of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct History(Option<Arc<Entry>>);

#[derive(Debug)]
struct Entry {
    before: History,
    token: TokenLogprob,
}

impl History {
    /// The same with one more token.
    pub(crate) fn with(&self, token: TokenLogprob) -> Self {
        Self(Some(Arc::new(Entry { before: self.clone(), token })))
    }

    /// All tokens, the first one first.
    pub(crate) fn to_vec(&self) -> Vec<TokenLogprob> {
        let mut tokens = Vec::new();
        let mut next = &self.0;
        while let Some(entry) = next {
            tokens.push(entry.token.clone());
            next = &entry.before.0;
        }
        tokens.reverse();
        tokens
    }
}

impl Drop for Entry {
    /// Without recursion, which a long history would be too deep for.
    fn drop(&mut self) {
        let mut next = self.before.0.take();
        while let Some(mut entry) = next.and_then(Arc::into_inner) {
            next = entry.before.0.take();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(logprob: f32) -> TokenLogprob {
        TokenLogprob { logprob, rank: 1, top: vec![] }
    }

    #[test]
    fn histories_share_their_past_and_long_ones_are_dropped() {
        let mut history = History::default();
        for i in 0..1_000_000_u32 {
            history = history.with(token(i as f32));
        }
        let (left, right) = (history.with(token(-1.0)), history.with(token(-2.0)));
        drop(history);
        drop(left);
        let tokens = right.to_vec();
        assert_eq!(tokens.len(), 1_000_001);
        assert_eq!((tokens[0].logprob, tokens[1_000_000].logprob), (0.0, -2.0));
    }
}
