//! Divides the lexemes that would take characters which what follows them needs.
//!
//! A lexeme goes on for as long as it can. Where another one that may stand at the same place has ended, and what
//! follows that begins with the character with which the first one goes on, a text of the grammar would be lost, and
//! with it perhaps every end. Such lexemes are divided into their parts, at last into single characters.

use super::automaton::{Automaton, Characters, Fuel};
use super::expression::Rules;
use super::json_lexemes;
use super::layout::{Layout, Node};

/// Steps of all analyses of one grammar, for about 50 ms.
const FUEL: usize = 4_000_000;
const MAX_LEXEMES: usize = 4096;

/// Divides lexemes until none takes what another needs. Lexemes of which nothing is known, and those that llguidance
/// makes of JSON, stay as they are; so do all where that would take too long.
pub(super) fn divide(layout: &mut Layout, rules: &Rules) {
    let mut fuel = Fuel(FUEL);
    while layout.lexemes.len() <= MAX_LEXEMES
        && let Some(greedy) = greedy_lexemes(layout, rules, &mut fuel)
        && !greedy.is_empty()
    {
        layout.divide(&greedy, rules);
    }
}

/// Sets of lexemes as bits.
type Set = Vec<u64>;

/// Where a part of a grammar begins and ends.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Edges {
    is_nullable: bool,
    first: Set,
    last: Set,
}

/// Which lexemes come first, last, and after one another.
struct Order<'a> {
    /// Those of the layout, and behind them the first and any later one of JSON.
    lexemes: &'a [Option<Automaton>],
    rules: Vec<Edges>,
    following: Vec<Set>,
}

/// The lexemes that are to be divided.
fn greedy_lexemes(layout: &Layout, rules: &Rules, fuel: &mut Fuel) -> Option<Vec<usize>> {
    let json = [json_lexemes::first(), json_lexemes::later()];
    let automata: Vec<Option<Automaton>> = layout
        .lexemes
        .iter()
        .chain(&json)
        .map(|lexeme| Automaton::new(lexeme, rules, fuel))
        .collect();
    let order = Order::new(layout, &automata, fuel)?;
    let mut beginnings = Vec::with_capacity(automata.len());
    for automaton in &automata {
        beginnings.push(match automaton {
            Some(automaton) => automaton.beginnings(fuel)?,
            None => Characters::default(),
        });
    }
    let mut after = Vec::with_capacity(order.following.len());
    for set in &order.following {
        after.push(Characters::any(members(set).map(|lexeme| &beginnings[lexeme]), fuel)?);
    }
    let mut greedy = vec![false; layout.lexemes.len()];
    let mut together = Together::new(automata.len());
    together.add(&order.rules[rules.start].first, &order.rules[rules.start].first, fuel)?;
    for set in &order.following {
        together.add(set, set, fuel)?;
    }
    while let Some((this, that)) = together.pairs.pop() {
        let (Some(a), Some(b)) = (&automata[this], &automata[that]) else {
            continue;
        };
        let comparison = a.compare(b, &after[this], fuel)?;
        if comparison.goes_on && layout.is_divisible(that) {
            greedy[that] = true;
        }
        if comparison.have_common_text && this != that {
            together.add(&order.following[this], &order.following[that], fuel)?;
        }
    }
    Some((0..greedy.len()).filter(|lexeme| greedy[*lexeme]).collect())
}

/// Pairs of lexemes that may come at one place.
struct Together {
    seen: Vec<Set>,
    pairs: Vec<(usize, usize)>,
}

impl Together {
    fn new(num_lexemes: usize) -> Self {
        Self { seen: vec![empty(num_lexemes); num_lexemes], pairs: Vec::new() }
    }

    /// Adds every pair of one of `some` and one of `others`, in both orders.
    fn add(&mut self, some: &Set, others: &Set, fuel: &mut Fuel) -> Option<()> {
        for (some, others) in [(some, others), (others, some)] {
            for this in members(some) {
                fuel.burn(others.len())?;
                let seen = &mut self.seen[this];
                let fresh: Set = others.iter().zip(&*seen).map(|(new, old)| new & !old).collect();
                unite(seen, &fresh);
                let known = self.pairs.len();
                self.pairs.extend(members(&fresh).map(|that| (this, that)));
                fuel.burn(self.pairs.len() - known)?;
            }
        }
        Some(())
    }
}

impl<'a> Order<'a> {
    fn new(layout: &Layout, lexemes: &'a [Option<Automaton>], fuel: &mut Fuel) -> Option<Self> {
        let size = lexemes.len();
        let unknown = Edges { is_nullable: false, first: empty(size), last: empty(size) };
        let rules = vec![unknown; layout.rules.len()];
        let mut order = Self { lexemes, rules, following: vec![empty(size); size] };
        let mut has_changed = true;
        while has_changed {
            has_changed = false;
            for (i, node) in layout.rules.iter().enumerate() {
                let Some(node) = node else { continue };
                let edges = order.edges(node, fuel)?;
                has_changed |= edges != order.rules[i];
                order.rules[i] = edges;
            }
        }
        Some(order)
    }

    /// The edges of a part, as far as those of the rules are known; notes what follows what in it.
    fn edges(&mut self, node: &Node, fuel: &mut Fuel) -> Option<Edges> {
        let size = self.following.len();
        fuel.burn(1 + size.div_ceil(64))?;
        let mut edges = Edges { is_nullable: false, first: empty(size), last: empty(size) };
        match node {
            Node::Lexeme(lexeme) => {
                // Of a lexeme that is not looked into, the worst is assumed.
                edges.is_nullable =
                    self.lexemes[*lexeme].as_ref().is_none_or(|automaton| automaton.is_nullable);
                insert(&mut edges.first, *lexeme);
                insert(&mut edges.last, *lexeme);
            }
            Node::Json(_) => {
                let (first, later) = (size - 2, size - 1);
                insert(&mut edges.first, first);
                insert(&mut edges.last, first);
                insert(&mut edges.last, later);
                insert(&mut self.following[first], later);
                insert(&mut self.following[later], later);
            }
            Node::Rule(rule) => return Some(self.rules[*rule].clone()),
            Node::Sequence(nodes) => {
                edges.is_nullable = true;
                for node in nodes {
                    let next = self.edges(node, fuel)?;
                    self.follow(&edges.last, &next.first, fuel)?;
                    if edges.is_nullable {
                        unite(&mut edges.first, &next.first);
                    }
                    if !next.is_nullable {
                        edges.last = empty(size);
                    }
                    unite(&mut edges.last, &next.last);
                    edges.is_nullable &= next.is_nullable;
                }
            }
            Node::Either(nodes) => {
                for node in nodes {
                    let one = self.edges(node, fuel)?;
                    edges.is_nullable |= one.is_nullable;
                    unite(&mut edges.first, &one.first);
                    unite(&mut edges.last, &one.last);
                }
            }
            Node::Repeat { what, min, max } => {
                edges = self.edges(what, fuel)?;
                if *max != Some(1) {
                    let (first, last) = (edges.first.clone(), edges.last.clone());
                    self.follow(&last, &first, fuel)?;
                }
                edges.is_nullable |= *min == 0;
            }
        }
        Some(edges)
    }

    fn follow(&mut self, before: &Set, after: &Set, fuel: &mut Fuel) -> Option<()> {
        for lexeme in members(before) {
            fuel.burn(after.len())?;
            unite(&mut self.following[lexeme], after);
        }
        Some(())
    }
}

fn empty(size: usize) -> Set {
    vec![0; size.div_ceil(64)]
}

fn insert(set: &mut Set, member: usize) {
    set[member / 64] |= 1 << (member % 64);
}

fn unite(set: &mut Set, other: &Set) {
    for (word, other) in set.iter_mut().zip(other) {
        *word |= other;
    }
}

fn members(set: &Set) -> impl Iterator<Item = usize> {
    set.iter().enumerate().flat_map(|(i, word)| {
        (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| i * 64 + bit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grammar::expression::{Class, Expression};
    use crate::grammar::gbnf;

    /// The lexemes of a grammar in GBNF.
    fn lexemes(grammar: &str) -> Vec<Expression> {
        let rules = gbnf::to_rules(grammar).unwrap();
        let mut layout = Layout::new(&rules);
        divide(&mut layout, &rules);
        layout.lexemes
    }

    fn num_divided(grammar: &str) -> usize {
        let rules = gbnf::to_rules(grammar).unwrap();
        lexemes(grammar).len() - Layout::new(&rules).lexemes.len()
    }

    #[test]
    fn lexemes_whose_end_can_be_told_stay_whole() {
        assert_eq!(num_divided("root ::= \"(\" root \")\" | [0-9]+"), 0);
        assert_eq!(
            num_divided("root ::= \"[\" (root (\", \" root)*)? \"]\" | \"\\\"\" [^\"]* \"\\\"\""),
            0
        );
        assert_eq!(num_divided("root ::= ([a-z]+ \"end\")* | \"1\" [a-z]*"), 0);
    }

    #[test]
    fn a_lexeme_that_takes_what_follows_it_is_divided() {
        let grammar = "root ::= x \"\\n\"\nx ::= [0-9]+ ws | \"(\" x \")\"\nws ::= [ \\n]*";
        let divided = lexemes(grammar);
        let ws =
            Expression::Class(Class { ranges: vec![(' ', ' '), ('\n', '\n')], is_negated: false });
        assert!(divided.contains(&ws), "{divided:?}");
        assert!(!divided.contains(&Expression::Rule(2)), "{divided:?}");
        let digits = Class { ranges: vec![('0', '9')], is_negated: false };
        assert!(divided.contains(&Expression::Class(digits).repeated(1, None)), "{divided:?}");
    }

    #[test]
    fn a_lexeme_that_begins_as_another_ends_is_divided() {
        let grammar = "root ::= \"ab\" root \"x\" | [a-b] root \"y\" | \".\"";
        let single = |text: &str| Expression::Text(text.to_owned());
        let divided = lexemes(grammar);
        assert!(divided.contains(&single("a")) && !divided.contains(&single("ab")), "{divided:?}");
    }

    #[test]
    fn an_analysis_that_takes_too_long_leaves_the_lexemes_as_they_are() {
        let rules = gbnf::to_rules("root ::= [a-z]+ root | [a-z]+ \".\"").unwrap();
        let layout = Layout::new(&rules);
        for fuel in 0..40 {
            assert_eq!(greedy_lexemes(&layout, &rules, &mut Fuel(fuel)), None, "{fuel}");
        }
        assert!(!greedy_lexemes(&layout, &rules, &mut Fuel(FUEL)).unwrap().is_empty());
    }
}
