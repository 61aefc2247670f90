//! The bytes of each token id.

use crate::TextError;
use crate::spelling::{Spelling, Strip, append_byte_level, fallback_byte};

const IS_PRESENT: u8 = 1;
const IS_SPECIAL: u8 = 2;
const IS_BYTE: u8 = 4;
const HAS_MARKER: u8 = 8;

/// A token as the decoder reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token<'a> {
    /// What it stands for, its markers replaced by spaces.
    pub bytes: &'a [u8],
    /// Whether it is a `<0xNN>` token, part of a run.
    pub is_byte: bool,
    /// Whether its spaces are markers, which the first token of a text loses.
    pub has_marker: bool,
}

/// What is known of a tokenizer: one arena of bytes and, per id, its end and four flags.
#[derive(Debug, Clone)]
pub struct TokenTable {
    arena: Vec<u8>,
    ends: Vec<u32>,
    flags: Vec<u8>,
    spelling: Spelling,
}

impl TokenTable {
    /// Reads the string of each id, in order; an id without a token has none. `is_special` is asked
    /// by content, as the `tokenizers` library does.
    ///
    /// # Errors
    /// A token that the spelling cannot express.
    pub fn new<'a>(
        spelling: Spelling,
        tokens: impl IntoIterator<Item = Option<&'a str>>,
        is_special: impl Fn(&str) -> bool,
    ) -> Result<Self, TextError> {
        let tokens = tokens.into_iter();
        let num_tokens = tokens.size_hint().0;
        let mut table = Self {
            arena: Vec::with_capacity(num_tokens * 8),
            ends: Vec::with_capacity(num_tokens),
            flags: Vec::with_capacity(num_tokens),
            spelling,
        };
        for (id, token) in tokens.enumerate() {
            let flags = match token {
                Some(token) => {
                    let special = if is_special(token) { IS_SPECIAL } else { 0 };
                    IS_PRESENT | special | table.append(token, id as u32)?
                }
                None => 0,
            };
            table.ends.push(table.arena.len() as u32);
            table.flags.push(flags);
        }
        table.arena.shrink_to_fit();
        Ok(table)
    }

    /// Ids are below this; some may be absent.
    pub fn len(&self) -> usize {
        self.flags.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.flags.is_empty()
    }

    /// Heap memory of the table.
    pub fn num_bytes(&self) -> usize {
        self.arena.capacity() + 4 * self.ends.capacity() + self.flags.capacity()
    }

    /// A token, or `None` for an id that the tokenizer does not have (models often pad their
    /// vocabulary, so such ids are sampled; they decode to nothing).
    pub fn token(&self, id: u32) -> Option<Token<'_>> {
        let index = id as usize;
        let flags = *self.flags.get(index)?;
        if flags & IS_PRESENT == 0 {
            return None;
        }
        let start = if index == 0 { 0 } else { self.ends[index - 1] as usize };
        Some(Token {
            bytes: &self.arena[start..self.ends[index] as usize],
            is_byte: flags & IS_BYTE != 0,
            has_marker: flags & HAS_MARKER != 0,
        })
    }

    /// The token, unless the text passes over it: an absent id, or a special one that is skipped.
    pub fn visible_token(&self, id: u32, skip_special_tokens: bool) -> Option<Token<'_>> {
        self.token(id).filter(|_| !(skip_special_tokens && self.is_special(id)))
    }

    /// Whether `skip_special_tokens` leaves the token out.
    pub fn is_special(&self, id: u32) -> bool {
        self.flags.get(id as usize).is_some_and(|flags| flags & IS_SPECIAL != 0)
    }

    /// Whether the bytes of neighbouring tokens join into characters (else only byte tokens' do).
    pub fn joins_bytes(&self) -> bool {
        matches!(self.spelling, Spelling::ByteLevel)
    }

    /// Whether the first token of a text loses its markers.
    pub fn first_loses_marker(&self) -> bool {
        matches!(self.spelling, Spelling::Metaspace { first_loses_marker: true, .. })
    }

    /// What the start of a text loses.
    pub fn strip(&self) -> Option<Strip> {
        match self.spelling {
            Spelling::Fallback { strip, .. } => strip,
            Spelling::ByteLevel | Spelling::Metaspace { .. } => None,
        }
    }

    /// Appends a token's bytes to the arena and returns its flags.
    fn append(&mut self, token: &str, id: u32) -> Result<u8, TextError> {
        match &self.spelling {
            Spelling::ByteLevel => append_byte_level(token, &mut self.arena),
            Spelling::Fallback { replacements, has_byte_tokens, .. } => {
                let mut text = std::borrow::Cow::Borrowed(token);
                for (pattern, content) in replacements {
                    if text.contains(pattern.as_str()) {
                        text = text.replace(pattern.as_str(), content).into();
                    }
                }
                if let Some(byte) = fallback_byte(&text).filter(|_| *has_byte_tokens) {
                    self.arena.push(byte);
                    return Ok(IS_BYTE);
                }
                self.arena.extend_from_slice(text.as_bytes());
            }
            Spelling::Metaspace { marker, first_loses_marker } => {
                let has_marker = token.contains(*marker);
                if has_marker && *first_loses_marker && token.contains(' ') {
                    return Err(TextError::MixedSpaces { id, marker: *marker });
                }
                let text = token.replace(*marker, " ");
                self.arena.extend_from_slice(text.as_bytes());
                return Ok(if has_marker { HAS_MARKER } else { 0 });
            }
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_ids_and_ids_beyond_the_vocabulary_have_no_token() {
        let tokens = [Some("a"), None, None, Some("Ġb")];
        let table = TokenTable::new(Spelling::ByteLevel, tokens, |_| false).unwrap();
        assert_eq!(table.len(), 4);
        assert_eq!(table.token(3).unwrap().bytes, b" b");
        assert!(table.token(1).is_none() && table.token(4).is_none());
        assert!(table.token(u32::MAX).is_none());
    }

    #[test]
    fn special_tokens_are_visible_unless_skipped() {
        let tokens = [Some("<s>"), Some("b")];
        let table = TokenTable::new(Spelling::ByteLevel, tokens, |token| token == "<s>").unwrap();
        assert!(table.is_special(0) && !table.is_special(1));
        assert!(table.visible_token(0, true).is_none() && table.visible_token(0, false).is_some());
    }

    #[test]
    fn replacements_come_before_byte_tokens() {
        let spelling = Spelling::Fallback {
            replacements: vec![("▁".into(), " ".into())],
            has_byte_tokens: true,
            strip: None,
        };
        let tokens = [Some("▁a▁"), Some("<0x41>"), Some("")];
        let table = TokenTable::new(spelling, tokens, |_| false).unwrap();
        assert_eq!(table.token(0).unwrap().bytes, b" a ");
        let byte = Token { bytes: b"A", is_byte: true, has_marker: false };
        assert_eq!(table.token(1), Some(byte));
        assert_eq!(table.token(2).unwrap().bytes, b"");
    }

    #[test]
    fn a_first_token_whose_markers_cannot_be_told_from_spaces_is_refused() {
        let spelling = Spelling::Metaspace { marker: '▁', first_loses_marker: true };
        let mixed = TokenTable::new(spelling, [Some("▁a b")], |_| false).unwrap_err();
        assert_eq!(mixed, TextError::MixedSpaces { id: 0, marker: '▁' });
    }
}
