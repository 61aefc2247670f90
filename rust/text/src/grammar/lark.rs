//! Grammars of requests: what is checked before llguidance reads them. GBNF is translated.

use llguidance::api::TopLevelGrammar;

use super::{GrammarError, check, gbnf, writer};

const MAX_BYTES: usize = 1 << 18;
const MAX_NESTING: usize = 64;
/// Rules are compiled inside one another, so that their number bounds the stack.
const MAX_RULES: usize = 4096;

pub(super) fn to_grammar(text: &str) -> Result<TopLevelGrammar, GrammarError> {
    check("bytes of the grammar", text.len(), MAX_BYTES)?;
    let shape = Shape::measure(text);
    if shape.has_gbnf_rule {
        return writer::to_grammar(&gbnf::to_rules(text)?);
    }
    if shape.has_token_name {
        return Err(GrammarError::invalid(
            "the grammar names a token (<...>); only text can be constrained",
        ));
    }
    check("nesting of the grammar", shape.nesting, MAX_NESTING)?;
    check("rules of the grammar", shape.num_rules, MAX_RULES)?;
    Ok(TopLevelGrammar::from_lark(text.to_owned()))
}

/// Whether a text is GBNF rather than Lark.
pub(super) fn is_gbnf(text: &str) -> bool {
    Shape::measure(text).has_gbnf_rule
}

/// What a grammar is made of, outside its strings, regexes and comments.
#[derive(Debug, Default, PartialEq, Eq)]
struct Shape {
    nesting: usize,
    num_rules: usize,
    has_gbnf_rule: bool,
    has_token_name: bool,
}

impl Shape {
    /// Reads the text once, in the lexical grammar of Lark as llguidance has it.
    fn measure(text: &str) -> Self {
        let mut shape = Self::default();
        let mut depth = 0_usize;
        let mut rest = text.as_bytes();
        while let Some((&byte, after)) = rest.split_first() {
            rest = match byte {
                b'"' => after_closing(after, b'"'),
                b'/' if after.first() == Some(&b'/') => after_line(after),
                b'/' => after_closing(after, b'/'),
                b'#' => after_line(after),
                b'(' | b'[' | b'{' => {
                    depth += 1;
                    shape.nesting = shape.nesting.max(depth);
                    after
                }
                b')' | b']' | b'}' => {
                    depth = depth.saturating_sub(1);
                    after
                }
                b':' => {
                    shape.num_rules += 1;
                    shape.has_gbnf_rule |= after.starts_with(b":=");
                    after
                }
                b'<' => {
                    shape.has_token_name = true;
                    after
                }
                _ => after,
            };
        }
        shape
    }
}

/// What follows the next `quote` that no backslash escapes.
fn after_closing(text: &[u8], quote: u8) -> &[u8] {
    let mut is_escaped = false;
    for (i, byte) in text.iter().enumerate() {
        if is_escaped {
            is_escaped = false;
        } else if *byte == b'\\' {
            is_escaped = true;
        } else if *byte == quote {
            return &text[i + 1..];
        }
    }
    &[]
}

fn after_line(text: &[u8]) -> &[u8] {
    text.iter().position(|byte| *byte == b'\n').map_or(&[], |end| &text[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_regexes_and_comments_do_not_count() {
        let text = "start: (\"((<\\\"\" /[(<:\\/]/) // (((\n# <<< ((\nB: [\"x\"]\n";
        let expected = Shape { nesting: 1, num_rules: 2, ..Shape::default() };
        assert_eq!(Shape::measure(text), expected);
    }

    #[test]
    fn other_notations_and_token_names_are_seen() {
        assert!(Shape::measure("root ::= \"a\"").has_gbnf_rule);
        assert!(Shape::measure("start: <|eos|>").has_token_name);
        assert!(!Shape::measure("start: \"a\" b::1").has_gbnf_rule);
    }
}
