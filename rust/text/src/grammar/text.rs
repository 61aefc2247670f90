//! A sequence's text that a grammar constrains.

use pagedkv_core::text::SequenceText;

use super::matcher::{Grammar, GrammarMatcher};

/// A text, if anyone wants it, and its place in a grammar.
pub struct ConstrainedText {
    text: Option<Box<dyn SequenceText>>,
    matcher: GrammarMatcher,
}

impl ConstrainedText {
    /// Puts an empty `text` under a grammar.
    pub fn new(text: Option<Box<dyn SequenceText>>, grammar: &Grammar) -> Self {
        Self { text, matcher: grammar.matcher() }
    }
}

impl SequenceText for ConstrainedText {
    fn push(&mut self, token: u32, may_stop: bool) -> Option<u32> {
        // A failure is kept, and comes back from the next mask.
        let _ = self.matcher.push(token);
        self.text.as_mut().and_then(|text| text.push(token, may_stop))
    }

    fn finish(&mut self) {
        if let Some(text) = &mut self.text {
            text.finish();
        }
    }

    fn text(&self) -> &str {
        self.text.as_ref().map_or("", |text| text.text())
    }

    fn fork(&self) -> Box<dyn SequenceText> {
        let text = self.text.as_ref().map(|text| text.fork());
        Box::new(Self { text, matcher: self.matcher.fork() })
    }

    fn is_constrained(&self) -> bool {
        true
    }

    fn fill_mask(&mut self, mask: &mut [u32]) -> Result<bool, String> {
        self.matcher.fill_mask(mask).map_err(|error| error.to_string())
    }

    fn is_complete(&self) -> bool {
        self.matcher.is_complete()
    }
}
