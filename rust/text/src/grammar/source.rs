//! What a grammar is written in.

use llguidance::api::TopLevelGrammar;
use llguidance::regex_to_lark;

use super::{GrammarError, check, lark, schema, tag};

const MAX_REGEX_BYTES: usize = 1 << 15;
const MAX_CHOICES: usize = 1 << 16;
const MAX_CHOICE_BYTES: usize = 1 << 20;

/// A constraint as a request states it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GrammarSource {
    /// JSON text that satisfies a schema.
    JsonSchema {
        /// The schema, as JSON text.
        schema: String,
        /// How it is read.
        options: JsonOptions,
    },
    /// Text that a regular expression matches as a whole.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A context-free grammar, in llguidance's variant of Lark or in GBNF.
    Grammar(String),
    /// Text of any form between parts that have one.
    StructuralTag {
        /// The parts, as JSON text.
        tag: String,
        /// How its schemas are read.
        options: JsonOptions,
    },
}

/// How a JSON schema is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonOptions {
    /// Whether white space may stand between tokens of JSON: some spaces, or a new line and its indentation.
    pub any_whitespace: bool,
    /// What may stand there instead, as a regular expression.
    pub whitespace_pattern: Option<String>,
    /// Whether objects may have properties that their schema does not name, where it does not say.
    pub additional_properties: bool,
}

impl GrammarSource {
    /// Checks the limits and writes it as llguidance reads it.
    pub(super) fn to_grammar(&self) -> Result<TopLevelGrammar, GrammarError> {
        match self {
            Self::JsonSchema { schema, options } => schema::to_grammar(schema, options),
            Self::Regex(pattern) => Ok(TopLevelGrammar::from_regex(checked_pattern(pattern)?)),
            Self::Choice(choices) => choice_grammar(choices),
            Self::Grammar(text) => lark::to_grammar(text),
            Self::StructuralTag { tag, options } => tag::to_grammar(tag, options),
        }
    }

    /// Whether the Lark that is compiled was written here, so that its lines mean nothing to a request.
    pub(super) fn is_translated(&self) -> bool {
        match self {
            Self::StructuralTag { .. } => true,
            Self::Grammar(text) => lark::is_gbnf(text),
            Self::JsonSchema { .. } | Self::Regex(_) | Self::Choice(_) => false,
        }
    }
}

/// A regular expression of a length that is compiled.
pub(super) fn checked_pattern(pattern: &str) -> Result<&str, GrammarError> {
    check("bytes of the regular expression", pattern.len(), MAX_REGEX_BYTES)?;
    if pattern.is_empty() {
        return Err(GrammarError::invalid("the regular expression is empty"));
    }
    if pattern.bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 1 {
        let message = "the regular expression ends in a backslash that escapes nothing";
        return Err(GrammarError::invalid(message));
    }
    Ok(pattern)
}

fn choice_grammar(choices: &[String]) -> Result<TopLevelGrammar, GrammarError> {
    if choices.is_empty() {
        return Err(GrammarError::invalid("the list is empty; give at least one choice"));
    }
    if let Some(i) = choices.iter().position(String::is_empty) {
        let message = format!("choice {i} is empty; every choice needs a character");
        return Err(GrammarError::Invalid(message));
    }
    check("number of choices", choices.len(), MAX_CHOICES)?;
    check("bytes of all choices", choices.iter().map(String::len).sum(), MAX_CHOICE_BYTES)?;
    let escaped: Vec<String> = choices.iter().map(|choice| escape(choice)).collect();
    let pattern = regex_to_lark(&escaped.join("|"), "");
    Ok(TopLevelGrammar::from_lark(format!("start: /{pattern}/")))
}

/// The regular expression that matches a text and nothing else.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        if character.is_ascii_punctuation() {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_with_a_meaning_are_escaped() {
        assert_eq!(escape("a.b|c é\n"), "a\\.b\\|c é\n");
    }
}
