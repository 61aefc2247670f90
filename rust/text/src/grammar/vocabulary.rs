//! A token table as llguidance reads it.

use std::sync::Arc;

use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};

use super::{GrammarError, guarded};
use crate::table::TokenTable;

/// A byte that no UTF-8 text has; llguidance marks special tokens with it.
const NEVER_IN_TEXT: u8 = 0xFF;

/// The tokens that a grammar may allow, and one id more than there are that stands for every end.
pub(super) struct Vocabulary {
    pub(super) token_env: TokEnv,
    /// Bit per id: the tokens that stand for text.
    pub(super) is_text: Vec<u32>,
    /// The id that llguidance allows where the text may end: the first one beyond the vocabulary, because a
    /// model may have several ending ids, and a request some of its own.
    pub(super) end_id: u32,
}

impl Vocabulary {
    /// Ids from `vocab_size` on are left out, and so are special tokens, absent ones and bytes that no text has.
    pub(super) fn new(table: &TokenTable, vocab_size: usize) -> Result<Self, GrammarError> {
        let mut is_text = vec![0; vocab_size.div_ceil(32)];
        let mut words: Vec<Vec<u8>> = (0..vocab_size as u32)
            .map(|id| match table.visible_token(id, true) {
                Some(token) if !token.bytes.contains(&NEVER_IN_TEXT) => token.bytes.to_vec(),
                _ => Vec::new(),
            })
            .collect();
        for (id, word) in words.iter().enumerate() {
            is_text[id / 32] |= u32::from(!word.is_empty()) << (id % 32);
        }
        let end_id = vocab_size as u32;
        words.push(Vec::new());
        let info = TokRxInfo::new(end_id + 1, end_id);
        // Duplicate words and sizes beyond its bit fields are assertions of the trie.
        let trie = guarded(|| Ok(TokTrie::from(&info, &words))).map_err(|reason| {
            GrammarError::Invalid(format!("the vocabulary has no trie: {reason}"))
        })?;
        Ok(Self { token_env: Arc::new(ApproximateTokEnv::new(trie)), is_text, end_id })
    }
}
