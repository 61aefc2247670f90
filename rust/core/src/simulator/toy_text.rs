//! A text decoder small enough to be obviously right.

use crate::ids::TokenId;
use crate::text::SequenceText;

/// One letter per token; the last letter is held back until the next one comes. A token that
/// `stop_modulus` divides is a stop string: it ends the sequence and leaves no letter.
#[derive(Clone, Debug)]
pub struct ToyText {
    stop_modulus: u32,
    text: String,
    held: Option<char>,
}

impl ToyText {
    /// An empty text.
    pub const fn new(stop_modulus: u32) -> Self {
        Self { stop_modulus, text: String::new(), held: None }
    }
}

impl SequenceText for ToyText {
    fn push(&mut self, token: TokenId, may_stop: bool) -> Option<u32> {
        self.text.extend(self.held.take());
        if may_stop && token.is_multiple_of(self.stop_modulus) {
            return Some(token % 7);
        }
        self.held = char::from_u32('a' as u32 + token % 26);
        None
    }

    fn finish(&mut self) {
        self.text.extend(self.held.take());
    }

    fn text(&self) -> &str {
        &self.text
    }

    fn fork(&self) -> Box<dyn SequenceText> {
        Box::new(self.clone())
    }
}
