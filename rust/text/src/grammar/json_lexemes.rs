//! What llguidance makes of JSON, as far as it matters to the lexemes that may stand where JSON may.
//!
//! Its lexemes depend on the schema. Those here match at least the same texts, and end wherever one of them ends.

use super::expression::{Class, Expression};

/// What JSON may begin with.
pub(super) fn first() -> Expression {
    Expression::Either(values())
}

/// What may come after the beginning.
pub(super) fn later() -> Expression {
    let mut any = values();
    any.extend(["}", "]", ",", ":"].map(text));
    Expression::Either(any)
}

fn values() -> Vec<Expression> {
    let space = [' ', '\t', '\r', '\n'].map(|space| (space, space));
    let number = [('-', '-'), ('0', '9'), ('.', '.'), ('e', 'e'), ('E', 'E'), ('+', '+')];
    let inside = Expression::Class(Class { ranges: vec![], is_negated: true }).repeated(0, None);
    let mut all = vec![
        any_of(&space).repeated(1, None),
        Expression::Sequence(vec![any_of(&number[..2]), any_of(&number).repeated(0, None)]),
        Expression::Sequence(vec![text("\""), inside, text("\"")]),
    ];
    all.extend(["{", "[", "true", "false", "null"].map(text));
    all
}

fn text(text: &str) -> Expression {
    Expression::Text(text.to_owned())
}

fn any_of(ranges: &[(char, char)]) -> Expression {
    Expression::Class(Class { ranges: ranges.to_vec(), is_negated: false })
}
