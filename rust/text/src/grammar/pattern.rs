//! Regular expressions as expressions, so that they can be compared and divided.

use regex_syntax::hir::{Class as HirClass, Hir, HirKind, Look};

use super::expression::{Class, Expression};

/// What a pattern matches as a whole; none where llguidance sees more in it than characters in an order.
pub(super) fn to_expression(pattern: &str) -> Option<Expression> {
    let hir = regex_syntax::Parser::new().parse(pattern).ok()?;
    Some(expression(&hir, Edges { is_start: true, is_end: true })?.flattened())
}

/// Whether a part begins and ends the pattern, so that anchors may stand there.
#[derive(Debug, Clone, Copy)]
struct Edges {
    is_start: bool,
    is_end: bool,
}

fn expression(hir: &Hir, edges: Edges) -> Option<Expression> {
    match hir.kind() {
        HirKind::Empty => Some(Expression::Sequence(vec![])),
        HirKind::Look(Look::Start) if edges.is_start => Some(Expression::Sequence(vec![])),
        HirKind::Look(Look::End) if edges.is_end => Some(Expression::Sequence(vec![])),
        HirKind::Look(_) | HirKind::Class(HirClass::Bytes(_)) => None,
        HirKind::Literal(literal) => {
            Some(Expression::Text(std::str::from_utf8(&literal.0).ok()?.to_owned()))
        }
        HirKind::Class(HirClass::Unicode(class)) => {
            let ranges: Vec<_> =
                class.ranges().iter().map(|range| (range.start(), range.end())).collect();
            (!ranges.is_empty()).then_some(Expression::Class(Class { ranges, is_negated: false }))
        }
        HirKind::Repetition(repetition) => {
            let inside = Edges { is_start: false, is_end: false };
            let what = expression(&repetition.sub, inside)?;
            Some(what.repeated(repetition.min, repetition.max))
        }
        // llguidance gives a group of this name a meaning of its own.
        HirKind::Capture(capture) if capture.name.as_deref() == Some("stop") => None,
        HirKind::Capture(capture) => expression(&capture.sub, edges),
        HirKind::Concat(parts) => sequence(parts, edges),
        HirKind::Alternation(parts) => {
            let all = parts.iter().map(|part| expression(part, edges)).collect::<Option<_>>()?;
            Some(Expression::Either(all))
        }
    }
}

fn sequence(parts: &[Hir], edges: Edges) -> Option<Expression> {
    let is = |part: &Hir, look| *part.kind() == HirKind::Look(look);
    let first = parts.iter().position(|part| !is(part, Look::Start)).unwrap_or(parts.len());
    let last = parts.iter().rposition(|part| !is(part, Look::End)).unwrap_or(0);
    let all = parts.iter().enumerate().map(|(i, part)| {
        let is_start = edges.is_start && i <= first;
        expression(part, Edges { is_start, is_end: edges.is_end && i >= last })
    });
    Some(Expression::Sequence(all.collect::<Option<_>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Expression {
        Expression::Text(text.to_owned())
    }

    #[test]
    fn patterns_become_what_they_match() {
        let digit = Class { ranges: vec![('0', '9')], is_negated: false };
        let number = Expression::Class(digit).repeated(1, None);
        assert_eq!(
            to_expression("^(?:no|(?P<n>[0-9]+)\\.é{2,5}?)$"),
            Some(Expression::Either(vec![
                text("no"),
                Expression::Sequence(vec![number, text("."), text("é").repeated(2, Some(5))]),
            ]))
        );
        assert_eq!(to_expression("^^a$$"), Some(text("a")));
        assert_eq!(to_expression("^a|b$"), Some(Expression::Either(vec![text("a"), text("b")])));
        assert_eq!(to_expression("()"), Some(text("")));
    }

    #[test]
    fn what_is_not_characters_in_an_order_is_none() {
        for pattern in [
            "a^b",
            "a$b",
            "(?:^a)+",
            "\\ba",
            "(?m)^a$",
            "(?P<stop>a)",
            "[a&&b]",
            "(",
            "(?-u:\\xff)",
        ] {
            assert_eq!(to_expression(pattern), None, "{pattern}");
        }
    }
}
