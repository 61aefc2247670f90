//! Alternatives of a lexeme that are spelled alike are one: derivre, which builds the automata of llguidance, panics
//! where two of them differ in nothing but how they are put together (`"ab"` and `"a" "b"`).

use std::collections::HashSet;
use std::fmt::Write;

use super::automaton::Fuel;
use super::expression::{Class, Expression, Rules};

/// Expressions in one another, rules among them, that are looked into.
const MAX_DEPTH: usize = 200;

/// The alternatives of `elements`, those of choices in them among them, each spelling once; none where that would
/// take too long.
pub(super) fn alternatives(
    elements: &[Expression],
    rules: &Rules,
    fuel: &mut Fuel,
) -> Option<Vec<Expression>> {
    let mut distinct = Distinct::default();
    let mut speller = Speller { rules, fuel, depth: 0 };
    elements.iter().try_for_each(|element| speller.add(element, &mut distinct))?;
    Some(distinct.alternatives)
}

/// Alternatives and their spellings.
#[derive(Default)]
struct Distinct {
    seen: HashSet<String>,
    alternatives: Vec<Expression>,
}

struct Speller<'a> {
    rules: &'a Rules,
    fuel: &'a mut Fuel,
    depth: usize,
}

impl Speller<'_> {
    /// Calls `inside` one level deeper, if there is one.
    fn deeper(&mut self, inside: impl FnOnce(&mut Self) -> Option<()>) -> Option<()> {
        self.fuel.burn(1)?;
        if self.depth == MAX_DEPTH {
            return None;
        }
        self.depth += 1;
        let result = inside(self);
        self.depth -= 1;
        result
    }

    fn add(&mut self, expression: &Expression, to: &mut Distinct) -> Option<()> {
        self.deeper(|own| match expression {
            Expression::Either(elements) => elements.iter().try_for_each(|each| own.add(each, to)),
            Expression::Rule(rule) => own.add(&own.rules.rules[*rule], to),
            Expression::Repeat { what, min: 1, max: Some(1) } => own.add(what, to),
            Expression::Repeat { what, min: 0, max: Some(1) } => {
                own.add(what, to)?;
                own.add(&Expression::Text(String::new()), to)
            }
            other => {
                let mut spelling = String::new();
                own.spell(other, &mut spelling)?;
                if to.seen.insert(spelling) {
                    to.alternatives.push(other.clone());
                }
                Some(())
            }
        })
    }

    /// Writes what an expression comes to where rules are replaced by what they stand for and sequences are one row.
    fn spell(&mut self, expression: &Expression, to: &mut String) -> Option<()> {
        self.deeper(|own| match expression {
            Expression::Text(text) => {
                own.fuel.burn(text.len())?;
                text.chars().for_each(|character| spell_character(character, to));
                Some(())
            }
            Expression::Class(Class { ranges, is_negated }) => match ranges.as_slice() {
                [(first, last)] if first == last && !is_negated => {
                    spell_character(*first, to);
                    Some(())
                }
                _ => {
                    own.fuel.burn(ranges.len())?;
                    write!(to, "{is_negated}{ranges:?}").ok()
                }
            },
            Expression::Sequence(elements) => {
                elements.iter().try_for_each(|element| own.spell(element, to))
            }
            Expression::Either(elements) => {
                let mut distinct = Distinct::default();
                elements.iter().try_for_each(|element| own.add(element, &mut distinct))?;
                let mut spellings: Vec<String> = distinct.seen.into_iter().collect();
                own.fuel.burn(spellings.iter().map(String::len).sum())?;
                spellings.sort_unstable();
                match spellings.as_slice() {
                    [only] => to.push_str(only),
                    all => write!(to, "({})", all.join("|")).ok()?,
                }
                Some(())
            }
            Expression::Repeat { max: Some(0), .. } => Some(()),
            Expression::Repeat { what, min: 1, max: Some(1) } => own.spell(what, to),
            Expression::Repeat { what, min, max } => {
                to.push('{');
                own.spell(what, to)?;
                write!(to, "}}{min},{max:?}").ok()
            }
            Expression::Rule(rule) => own.spell(&own.rules.rules[*rule], to),
            Expression::Pattern(_) | Expression::Free(_) | Expression::Json(_) => {
                write!(to, "{expression:?}").ok()
            }
        })
    }
}

fn spell_character(character: char, to: &mut String) {
    write!(to, "{character:?}").expect("strings can be written to");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Expression {
        Expression::Text(text.to_owned())
    }

    fn row(elements: Vec<Expression>) -> Expression {
        Expression::Sequence(elements)
    }

    #[test]
    fn alternatives_that_are_spelled_alike_are_one() {
        let a = Expression::Class(Class { ranges: vec![('a', 'a')], is_negated: false });
        let rules = Rules {
            rules: vec![text("ab"), Expression::Either(vec![text("ab"), text("c")])],
            start: 0,
        };
        let elements = [
            text("aab"),
            row(vec![a, text("ab")]),
            row(vec![text("a"), Expression::Rule(0)]),
            row(vec![text("a"), Expression::Rule(0).repeated(1, Some(1))]),
            text("aab").repeated(0, Some(1)),
            Expression::Rule(1),
            Expression::Rule(0),
            row(vec![text("a"), Expression::Either(vec![text("ab"), text("ab")])]),
        ];
        assert_eq!(
            alternatives(&elements, &rules, &mut Fuel(1000)),
            Some(vec![text("aab"), text(""), text("ab"), text("c")])
        );
        assert_eq!(alternatives(&elements, &rules, &mut Fuel(10)), None);
    }

    #[test]
    fn what_is_too_deep_is_not_looked_into() {
        let nested = |depth| (0..depth).fold(text("a"), |inner, _| inner.repeated(2, Some(2)));
        let all = |depth| alternatives(&[nested(depth)], &Rules::default(), &mut Fuel(1000));
        assert!(all(MAX_DEPTH - 2).is_some());
        assert_eq!(all(MAX_DEPTH - 1), None);
    }

    #[test]
    fn alternatives_that_differ_stay() {
        let elements = [
            text("a'b"),
            row(vec![text("a"), text("b").repeated(0, None)]),
            row(vec![text("a"), text("b").repeated(1, None)]),
            Expression::Class(Class { ranges: vec![('a', 'a')], is_negated: true }),
            text("{'b'}0,None"),
        ];
        let all = alternatives(&elements, &Rules::default(), &mut Fuel(1000));
        assert_eq!(all.map(|all| all.len()), Some(elements.len()));
    }
}
