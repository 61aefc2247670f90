//! From a source to a grammar, within limits.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use llguidance::ParserFactory;
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::InferenceCapabilities;

use super::matcher::Grammar;
use super::permits::{Permit, Permits};
use super::source::GrammarSource;
use super::vocabulary::Vocabulary;
use super::{GrammarError, guarded};
use crate::table::TokenTable;

/// Compilation recurses along definitions and rules, whose numbers are bounded for a stack of this size. It is
/// reserved, not used.
const STACK_BYTES: usize = 256 << 20;

/// What a grammar may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrammarLimits {
    /// Time to compile one.
    pub compile_time: Duration,
    /// Grammars that are compiled at a time.
    pub num_compilations: usize,
}

impl Default for GrammarLimits {
    fn default() -> Self {
        Self { compile_time: Duration::from_secs(10), num_compilations: 2 }
    }
}

/// Compiles grammars over the tokens of one tokenizer. Any number of threads may call it.
pub struct GrammarCompiler {
    factory: Arc<ParserFactory>,
    is_text: Arc<[u32]>,
    end_id: u32,
    limits: GrammarLimits,
    permits: Arc<Permits>,
}

impl GrammarCompiler {
    /// Builds the trie of the tokens; a tenth of a second for a large vocabulary.
    ///
    /// `vocab_size` is the number of the model's logits; masks have as many bits.
    ///
    /// # Errors
    /// A vocabulary that no trie can hold.
    pub fn new(
        table: &TokenTable,
        vocab_size: usize,
        limits: GrammarLimits,
    ) -> Result<Self, GrammarError> {
        let vocabulary = Vocabulary::new(table, vocab_size)?;
        let capabilities = InferenceCapabilities::default();
        let slices = SlicedBiasComputer::general_slices();
        let mut factory =
            guarded(|| ParserFactory::new(&vocabulary.token_env, capabilities, &slices))
                .map_err(GrammarError::Invalid)?;
        factory.quiet();
        *factory.limits_mut() = parser_limits();
        Ok(Self {
            factory: Arc::new(factory),
            is_text: vocabulary.is_text.into(),
            end_id: vocabulary.end_id,
            limits,
            permits: Permits::new(limits.num_compilations),
        })
    }

    /// Bits of a mask.
    pub fn vocab_size(&self) -> usize {
        self.end_id as usize
    }

    /// Compiles a grammar and its first mask on a thread of its own, and waits for it.
    ///
    /// # Errors
    /// Whatever is wrong with the source; it takes too long; nothing satisfies it.
    pub fn compile(&self, source: &GrammarSource) -> Result<Grammar, GrammarError> {
        let grammar = source.to_grammar()?;
        let is_translated = source.is_translated();
        let limit = self.limits.compile_time;
        let too_slow = || GrammarError::TooSlow { seconds: limit.as_secs() };
        let permit = self.permits.take(limit).ok_or_else(too_slow)?;
        let (sender, receiver) = sync_channel(1);
        let factory = Arc::clone(&self.factory);
        let is_text = Arc::clone(&self.is_text);
        let end_id = self.end_id;
        let compile = move |_permit: Permit| {
            // Nobody listens after the time limit.
            let _ = sender.send(compile(&factory, grammar, is_text, end_id));
        };
        thread::Builder::new()
            .name("pagedkv-grammar".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || compile(permit))
            .map_err(|error| GrammarError::Invalid(format!("no thread to compile on: {error}")))?;
        let result = receiver.recv_timeout(limit).map_err(|error| match error {
            RecvTimeoutError::Timeout => too_slow(),
            RecvTimeoutError::Disconnected => GrammarError::invalid("the compiler panicked"),
        })?;
        result.map_err(|error| match error {
            GrammarError::Invalid(reason) if is_translated => {
                GrammarError::Invalid(in_our_words(without_place(&reason)))
            }
            error => error,
        })
    }
}

fn compile(
    factory: &ParserFactory,
    grammar: TopLevelGrammar,
    is_text: Arc<[u32]>,
    end_id: u32,
) -> Result<Grammar, GrammarError> {
    let parser = guarded(|| {
        let mut parser = factory.create_parser(grammar)?;
        parser.start_without_prompt();
        Ok(parser)
    })
    .map_err(|reason| GrammarError::Invalid(in_our_words(&reason)))?;
    Grammar::new(parser, is_text, end_id)
}

/// Bounds for untrusted grammars: a mask takes at most about 20 ms, a lexer at most some 100 MB.
fn parser_limits() -> ParserLimits {
    ParserLimits { max_lexer_states: 50_000, verbose_errors: false, ..ParserLimits::default() }
}

/// A reason without the place in the Lark that was compiled.
fn without_place(reason: &str) -> &str {
    let rest = match reason.strip_prefix("at ").and_then(|rest| rest.split_once("): ")) {
        Some((place, rest)) if place.starts_with(|first: char| first.is_ascii_digit()) => rest,
        _ => reason,
    };
    rest.strip_prefix("failed to compile JSON schema: ").unwrap_or(rest)
}

/// Replaces what only a caller of llguidance could follow.
fn in_our_words(reason: &str) -> String {
    if reason.starts_with("oneOf constraints are not supported") {
        return "oneOf is only supported where no value satisfies two of its schemas; use anyOf"
            .to_owned();
    }
    if reason.starts_with("panic: ") {
        return "it is more than can be compiled; simplify it".to_owned();
    }
    reason.to_owned()
}
