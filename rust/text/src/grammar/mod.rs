//! Grammars that constrain what a sequence may generate.
//!
//! A [`GrammarCompiler`] belongs to one tokenizer and turns a [`GrammarSource`] into a [`Grammar`]. A
//! [`GrammarMatcher`] is the place that one sequence has reached in it: it says which tokens may follow and
//! takes the one that did. Parsing and masks are llguidance's; limits and the isolation of requests are ours.

mod automaton;
mod compiler;
mod distinct;
mod division;
mod exact;
mod expression;
mod fields;
mod free_states;
mod gbnf;
mod json_lexemes;
mod lark;
mod layout;
mod matcher;
mod part;
mod pattern;
mod permits;
mod schema;
mod source;
mod tag;
mod text;
mod triggers;
mod vocabulary;
mod writer;

pub use compiler::{GrammarCompiler, GrammarLimits};
pub use matcher::{Grammar, GrammarMatcher};
pub use source::{GrammarSource, JsonOptions};
pub use text::ConstrainedText;

/// What is wrong with a grammar, or with a sequence under one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// The source is longer, deeper or otherwise more than what is compiled.
    #[error("{what} must be at most {max}, got {got}")]
    TooLarge {
        /// What was measured.
        what: &'static str,
        /// The limit.
        max: usize,
        /// What it is.
        got: usize,
    },
    /// It cannot be compiled.
    #[error("{0}")]
    Invalid(String),
    /// It was not compiled in time.
    #[error("it was not compiled within {seconds} s; simplify it")]
    TooSlow {
        /// The limit.
        seconds: u64,
    },
    /// Sampling under it cannot go on.
    #[error("the grammar cannot go on: {0}")]
    Stuck(String),
}

impl GrammarError {
    fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid(message.into())
    }
}

/// Checks that `got` is at most `max`.
fn check(what: &'static str, got: usize, max: usize) -> Result<(), GrammarError> {
    if got > max { Err(GrammarError::TooLarge { what, max, got }) } else { Ok(()) }
}

/// Runs llguidance; an error or a panic of it as one line without addresses.
fn guarded<T>(run: impl FnOnce() -> anyhow::Result<T>) -> Result<T, String> {
    let run = std::panic::AssertUnwindSafe(run);
    llguidance::panic_utils::catch_unwind(run).map_err(|error| one_line(&error.to_string()))
}

/// The line of a message that says what is wrong, of a readable length: the first one, unless a parser drew
/// a picture before it.
fn one_line(message: &str) -> String {
    const MAX_CHARS: usize = 300;
    let mut lines = message.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or("unknown");
    let line = lines.find_map(|line| line.strip_prefix("error: ")).unwrap_or(first);
    if line.chars().count() <= MAX_CHARS {
        return line.to_owned();
    }
    line.chars().take(MAX_CHARS).chain("...".chars()).collect()
}
