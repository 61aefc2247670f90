//! A compiled grammar, and where a sequence is in it.

use std::sync::Arc;

use llguidance::TokenParser;
use llguidance::api::StopReason;

use super::{GrammarError, guarded};

/// A compiled grammar; cheap to clone.
#[derive(Clone)]
pub struct Grammar(Arc<Compiled>);

struct Compiled {
    /// At the start. Its copies share what the lexer finds out as it goes.
    parser: TokenParser,
    /// The same with a lexer of its own, which nothing has used.
    pristine: TokenParser,
    is_text: Arc<[u32]>,
    end_id: u32,
}

impl Grammar {
    /// Checks that some token can come first.
    pub(super) fn new(
        mut parser: TokenParser,
        is_text: Arc<[u32]>,
        end_id: u32,
    ) -> Result<Self, GrammarError> {
        let first = guarded(|| {
            let pristine = parser.deep_clone();
            Ok((pristine, parser.compute_mask()?))
        });
        let (pristine, mask) = first.map_err(|reason| GrammarError::Invalid(reason_of(&reason)))?;
        let allowed = mask.as_slice().iter().zip(&*is_text);
        if allowed.map(|(word, text)| word & text).all(|word| word == 0) {
            return Err(GrammarError::invalid("nothing but the empty text satisfies it"));
        }
        Ok(Self(Arc::new(Compiled { parser, pristine, is_text, end_id })))
    }

    /// A sequence at its start.
    pub fn matcher(&self) -> GrammarMatcher {
        GrammarMatcher {
            parser: self.0.parser.clone(),
            grammar: self.clone(),
            tokens: Vec::new(),
            has_own_lexer: false,
            is_complete: false,
            error: None,
        }
    }

    /// Heap memory, about; it grows while sequences use the grammar.
    pub fn num_bytes(&self) -> usize {
        let lexer = |parser: &TokenParser| {
            guarded(|| Ok(parser.parser.lexer_stats().num_bytes)).unwrap_or(0)
        };
        lexer(&self.0.parser) + lexer(&self.0.pristine)
    }
}

/// The place of a sequence in a grammar.
#[derive(Clone)]
pub struct GrammarMatcher {
    grammar: Grammar,
    parser: TokenParser,
    /// What was pushed, for the second attempt of [`Self::run`].
    tokens: Vec<u32>,
    has_own_lexer: bool,
    is_complete: bool,
    error: Option<GrammarError>,
}

impl GrammarMatcher {
    /// Sets the bits of the tokens that may come next and clears all others; returns whether the text may end
    /// here. `mask` has a bit per id of the vocabulary.
    ///
    /// # Errors
    /// A limit is exceeded or no token continues the text; so says every later call.
    pub fn fill_mask(&mut self, mask: &mut [u32]) -> Result<bool, GrammarError> {
        mask.fill(0);
        if self.is_complete {
            return Ok(true);
        }
        let allowed = self.run(TokenParser::compute_mask)?;
        let is_text = &self.grammar.0.is_text;
        assert_eq!(mask.len(), is_text.len(), "a mask has a bit per id");
        for ((to, word), text) in mask.iter_mut().zip(allowed.as_slice()).zip(&**is_text) {
            *to = word & text;
        }
        Ok(allowed.is_allowed(self.grammar.0.end_id))
    }

    /// Takes the next token.
    ///
    /// # Errors
    /// The grammar does not allow it, or a limit is exceeded; so says every later call.
    pub fn push(&mut self, token: u32) -> Result<(), GrammarError> {
        if self.is_complete {
            let error = GrammarError::Stuck("its text is complete".to_owned());
            return Err(self.error.get_or_insert(error).clone());
        }
        self.is_complete = self.run(|parser| consume(parser, token))?;
        self.tokens.push(token);
        Ok(())
    }

    /// Whether nothing but an end can follow.
    pub fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// An independent copy.
    #[must_use]
    pub fn fork(&self) -> Self {
        self.clone()
    }

    /// Calls llguidance. What fails is tried once more with a lexer of the sequence's own: the shared one may
    /// be spent, or lost to a panic, by another sequence.
    fn run<T>(
        &mut self,
        step: impl Fn(&mut TokenParser) -> anyhow::Result<T>,
    ) -> Result<T, GrammarError> {
        if let Some(error) = &self.error {
            return Err(error.clone());
        }
        let mut result = guarded(|| step(&mut self.parser));
        if result.is_err() && !self.has_own_lexer {
            self.has_own_lexer = true;
            result = guarded(|| {
                self.parser = self.grammar.0.pristine.deep_clone();
                for token in &self.tokens {
                    consume(&mut self.parser, *token)?;
                }
                step(&mut self.parser)
            });
        }
        result.map_err(|reason| {
            let error = GrammarError::Stuck(reason_of(&reason));
            self.error.insert(error).clone()
        })
    }
}

/// Returns whether the text is complete.
fn consume(parser: &mut TokenParser, token: u32) -> anyhow::Result<bool> {
    let num_withdrawn = parser.consume_token(token)?;
    anyhow::ensure!(num_withdrawn == 0, "it takes tokens back, which is not supported");
    parser.check_stop()
}

/// llguidance's reason in words, where it is the name of a code.
fn reason_of(reason: &str) -> String {
    if reason == StopReason::NoExtensionBias.to_string() {
        return "no token of the vocabulary can follow".to_owned();
    }
    reason.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grammar::{GrammarCompiler, GrammarLimits, GrammarSource};
    use crate::{Spelling, TokenTable};

    #[test]
    fn a_panic_is_an_error_of_one_line_and_other_sequences_of_the_grammar_go_on() {
        let bytes: Vec<String> = (0..=255u8).map(|byte| format!("<0x{byte:02X}>")).collect();
        let tokens = bytes.iter().map(|token| Some(token.as_str()));
        let spelling =
            Spelling::Fallback { replacements: vec![], has_byte_tokens: true, strip: None };
        let table = TokenTable::new(spelling, tokens, |_| false).unwrap();
        let compiler = GrammarCompiler::new(&table, 256, GrammarLimits::default()).unwrap();
        let source = GrammarSource::Regex("[a-c]{3}".to_owned());
        let grammar = compiler.compile(&source).unwrap();
        let (mut lost, mut other) = (grammar.matcher(), grammar.matcher());
        other.push(u32::from(b'a')).unwrap();
        let message = guarded(|| lost.parser.parser.test_trigger_lexer_error()).unwrap_err();
        assert_eq!(message, "panic: synthetic error");
        let mut mask = [0; 8];
        for matcher in [&mut other, &mut grammar.matcher()] {
            assert_eq!(matcher.fill_mask(&mut mask), Ok(false));
            assert_eq!(mask, [0, 0, 0, 0b1110, 0, 0, 0, 0]);
            assert!(matcher.has_own_lexer);
        }
        for _ in 0..2 {
            other.push(u32::from(b'b')).unwrap();
        }
        assert!(other.is_complete());
    }
}
