//! Automata of lexemes, as far as two of them can be compared: the positions of a regular expression.
//!
//! States are the characters of the expression (Glushkov's construction). A repetition is taken to go on for as
//! long as it likes, so that an automaton accepts, and continues, at least what its lexeme does.

use std::collections::HashSet;

use super::expression::{Class, Expression, Rules};
use super::free_states::FreeStates;
use super::pattern;

const MAX_POSITIONS: usize = 2000;
const MAX_DEPTH: usize = 200;
/// Ranges of characters that are compared in one step.
const RANGES_AT_A_TIME: usize = 8;

/// Work that is left. Whoever runs out of it gives up.
#[derive(Debug)]
pub(super) struct Fuel(pub(super) usize);

impl Fuel {
    /// Takes some; none if it is used up.
    pub(super) fn burn(&mut self, amount: usize) -> Option<()> {
        let left = self.0.checked_sub(amount);
        self.0 = left.unwrap_or(0);
        left.map(|_| ())
    }
}

/// Characters as sorted ranges of code points that do not touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Characters(Vec<(u32, u32)>);

impl Characters {
    pub(super) fn of(characters: &str) -> Self {
        let ranges = characters.chars().map(|character| (character, character)).collect();
        Self::of_class(&Class { ranges, is_negated: false })
    }

    pub(super) fn of_class(class: &Class) -> Self {
        let points = class.ranges.iter().map(|(first, last)| (u32::from(*first), u32::from(*last)));
        let mut all = Self::default();
        all.extend(points);
        if !class.is_negated {
            return all;
        }
        let mut others = Vec::with_capacity(all.0.len() + 1);
        let mut start = 0;
        for (first, last) in all.0 {
            if start < first {
                others.push((start, first - 1));
            }
            start = last + 1;
        }
        if start <= u32::from(char::MAX) {
            others.push((start, u32::from(char::MAX)));
        }
        Self(others)
    }

    /// Those that are in any of `sets`.
    pub(super) fn any<'a>(sets: impl Iterator<Item = &'a Self>, fuel: &mut Fuel) -> Option<Self> {
        let mut ranges = Vec::new();
        for set in sets {
            fuel.burn(1 + set.0.len())?;
            ranges.extend(&set.0);
        }
        let mut all = Self::default();
        all.extend(ranges.into_iter());
        Some(all)
    }

    fn extend(&mut self, ranges: impl Iterator<Item = (u32, u32)>) {
        self.0.extend(ranges);
        self.0.sort_unstable();
        let mut joined: Vec<(u32, u32)> = Vec::with_capacity(self.0.len());
        for (first, last) in self.0.drain(..) {
            match joined.last_mut() {
                Some(before) if first <= before.1 + 1 => before.1 = before.1.max(last),
                _ => joined.push((first, last)),
            }
        }
        self.0 = joined;
    }

    /// Whether some character is in both.
    fn meets(&self, other: &Self, fuel: &mut Fuel) -> Option<bool> {
        fuel.burn(1 + (self.0.len() + other.0.len()) / RANGES_AT_A_TIME)?;
        Some(self.overlaps(other))
    }

    fn overlaps(&self, other: &Self) -> bool {
        let (mut these, mut others) = (self.0.as_slice(), other.0.as_slice());
        while let (Some(this), Some(that)) = (these.first(), others.first()) {
            if this.1 < that.0 {
                these = &these[1..];
            } else if that.1 < this.0 {
                others = &others[1..];
            } else {
                return true;
            }
        }
        false
    }
}

/// The automaton of a lexeme.
#[derive(Debug)]
pub(super) struct Automaton {
    pub(super) is_nullable: bool,
    /// The positions that come first.
    first: Vec<usize>,
    positions: Vec<Position>,
}

#[derive(Debug)]
struct Position {
    characters: Characters,
    is_last: bool,
    next: Vec<usize>,
}

/// A part of an automaton that is being built.
struct Part {
    is_nullable: bool,
    first: Vec<usize>,
    last: Vec<usize>,
}

/// What two lexemes do that may come at one place.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Comparison {
    /// Whether some text is both of them.
    pub(super) have_common_text: bool,
    /// Whether the second one takes a character that may follow a text of the first one.
    pub(super) goes_on: bool,
}

impl Automaton {
    /// None of a lexeme that is too large, or of which some part is not looked into.
    pub(super) fn new(expression: &Expression, rules: &Rules, fuel: &mut Fuel) -> Option<Self> {
        let mut builder = Builder { positions: Vec::new(), rules, fuel };
        let Part { is_nullable, first, last } = builder.part(expression, 0)?;
        let mut positions = builder.positions;
        for last in last {
            positions[last].is_last = true;
        }
        Some(Self { is_nullable, first, positions })
    }

    /// The characters that come first.
    pub(super) fn beginnings(&self, fuel: &mut Fuel) -> Option<Characters> {
        Characters::any(self.first.iter().map(|first| &self.positions[*first].characters), fuel)
    }

    /// Compares it with a lexeme that may come at the same place. `following` may come after this one.
    pub(super) fn compare(
        &self,
        other: &Self,
        following: &Characters,
        fuel: &mut Fuel,
    ) -> Option<Comparison> {
        let mut comparison = Comparison::default();
        let mut seen = HashSet::new();
        let mut pairs = Vec::new();
        self.step(other, (&self.first, &other.first), &mut seen, &mut pairs, fuel)?;
        while let Some((this, that)) = pairs.pop() {
            let (this, that) = (&self.positions[this], &other.positions[that]);
            if this.is_last {
                comparison.have_common_text |= that.is_last;
                for next in &that.next {
                    comparison.goes_on |=
                        other.positions[*next].characters.meets(following, fuel)?;
                }
            }
            self.step(other, (&this.next, &that.next), &mut seen, &mut pairs, fuel)?;
        }
        Some(comparison)
    }

    /// Adds the pairs of positions that some character reaches.
    fn step(
        &self,
        other: &Self,
        (ours, theirs): (&[usize], &[usize]),
        seen: &mut HashSet<(usize, usize)>,
        pairs: &mut Vec<(usize, usize)>,
        fuel: &mut Fuel,
    ) -> Option<()> {
        for &this in ours {
            fuel.burn(1)?;
            for &that in theirs {
                let (a, b) = (&self.positions[this], &other.positions[that]);
                if a.characters.meets(&b.characters, fuel)? && seen.insert((this, that)) {
                    pairs.push((this, that));
                }
            }
        }
        Some(())
    }
}

/// What an automaton is built with.
struct Builder<'a> {
    positions: Vec<Position>,
    rules: &'a Rules,
    fuel: &'a mut Fuel,
}

impl Builder<'_> {
    fn part(&mut self, expression: &Expression, depth: usize) -> Option<Part> {
        if depth > MAX_DEPTH {
            return None;
        }
        match expression {
            Expression::Text(text) => {
                let mut row = Part::empty();
                for character in text.chars() {
                    let next = self.position(Characters::of(character.encode_utf8(&mut [0; 4])))?;
                    row = self.joined(row, next)?;
                }
                Some(row)
            }
            Expression::Class(class) => self.position(Characters::of_class(class)),
            Expression::Sequence(elements) => {
                let mut row = Part::empty();
                for element in elements {
                    let next = self.part(element, depth + 1)?;
                    row = self.joined(row, next)?;
                }
                Some(row)
            }
            Expression::Either(elements) => {
                let mut any = Part { is_nullable: false, ..Part::empty() };
                for element in elements {
                    let part = self.part(element, depth + 1)?;
                    any.is_nullable |= part.is_nullable;
                    any.first.extend(part.first);
                    any.last.extend(part.last);
                }
                Some(any)
            }
            Expression::Repeat { max: Some(0), .. } => Some(Part::empty()),
            Expression::Repeat { what, min, max } => {
                let part = self.part(what, depth + 1)?;
                if *max != Some(1) {
                    self.connect(&part.last, &part.first)?;
                }
                Some(Part { is_nullable: part.is_nullable || *min == 0, ..part })
            }
            Expression::Rule(rule) => self.part(&self.rules.rules[*rule], depth + 1),
            Expression::Free(free) => {
                let states = free.states(self.fuel)?;
                self.states(&states)
            }
            Expression::Pattern(pattern) => {
                self.fuel.burn(pattern.len())?;
                self.part(&pattern::to_expression(pattern)?, depth + 1)
            }
            Expression::Json(_) => None,
        }
    }

    fn states(&mut self, states: &FreeStates) -> Option<Part> {
        let mut after = Vec::with_capacity(states.next.len());
        let mut targets = Vec::new();
        for next in &states.next {
            let mut positions = Vec::with_capacity(next.len());
            for (class, target) in next {
                let part = self.position(Characters::of_class(class))?;
                targets.push((part.last[0], *target));
                positions.extend(part.first);
            }
            after.push(positions);
        }
        let mut last = Vec::new();
        for (position, target) in targets {
            self.connect(&[position], &after[target])?;
            if states.is_end[target] {
                last.push(position);
            }
        }
        Some(Part { is_nullable: states.is_end[0], first: after.swap_remove(0), last })
    }

    fn position(&mut self, characters: Characters) -> Option<Part> {
        self.fuel.burn(1 + characters.0.len())?;
        let position = self.positions.len();
        self.positions.push(Position { characters, is_last: false, next: Vec::new() });
        let (first, last) = (vec![position], vec![position]);
        (position < MAX_POSITIONS).then_some(Part { is_nullable: false, first, last })
    }

    fn joined(&mut self, mut before: Part, after: Part) -> Option<Part> {
        self.connect(&before.last, &after.first)?;
        if before.is_nullable {
            before.first.extend(after.first);
        }
        if !after.is_nullable {
            before.last.clear();
        }
        before.last.extend(after.last);
        Some(Part { is_nullable: before.is_nullable && after.is_nullable, ..before })
    }

    fn connect(&mut self, from: &[usize], to: &[usize]) -> Option<()> {
        for position in from {
            self.fuel.burn(1 + to.len())?;
            self.positions[*position].next.extend(to);
        }
        Some(())
    }
}

impl Part {
    fn empty() -> Self {
        Self { is_nullable: true, first: Vec::new(), last: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Expression {
        Expression::Text(text.to_owned())
    }

    fn class(first: char, last: char) -> Expression {
        Expression::Class(Class { ranges: vec![(first, last)], is_negated: false })
    }

    fn compare(this: &Expression, other: &Expression, following: &str) -> (bool, bool) {
        let automaton =
            |expression| Automaton::new(expression, &Rules::default(), &mut Fuel(1000)).unwrap();
        let following = Characters::of(following);
        let comparison =
            automaton(this).compare(&automaton(other), &following, &mut Fuel(1000)).unwrap();
        (comparison.have_common_text, comparison.goes_on)
    }

    #[test]
    fn ranges_are_joined_negated_and_compared() {
        let class = |is_negated| {
            let ranges = vec![('d', 'f'), ('a', 'b'), ('c', 'e'), ('\0', '\0')];
            Characters::of_class(&Class { ranges, is_negated })
        };
        assert_eq!(class(false).0, [(0, 0), (97, 102)]);
        assert_eq!(class(true).0, [(1, 96), (103, 0x0010_FFFF)]);
        assert!(class(false).overlaps(&Characters::of("xf")));
        assert!(!class(false).overlaps(&class(true)));
        assert!(!class(true).overlaps(&Characters::default()));
    }

    #[test]
    fn a_lexeme_goes_on_where_what_follows_another_could_begin() {
        let word = class('a', 'z').repeated(1, None);
        assert_eq!(compare(&word, &word, "b"), (true, true));
        assert_eq!(compare(&word, &word, "1"), (true, false));
        assert_eq!(compare(&text("a"), &text("ab"), "b"), (false, true));
        assert_eq!(compare(&text("a"), &text("ab"), "c"), (false, false));
        assert_eq!(compare(&text("c"), &text("ab"), "b"), (false, false));
        let optional = Expression::Sequence(vec![text("a"), text("b").repeated(0, Some(1))]);
        assert_eq!(compare(&optional, &optional, "b"), (true, true));
        assert_eq!(compare(&optional, &optional, "a"), (true, false));
        let two_readings = Expression::Either(vec![text("aa"), text("a").repeated(1, Some(1))]);
        let row = Expression::Sequence(vec![two_readings, text("ab").repeated(0, Some(1))]);
        assert_eq!(compare(&row, &row, "b"), (true, true));
    }

    #[test]
    fn what_is_too_large_or_not_looked_into_has_no_automaton() {
        let rules = Rules::default();
        assert!(
            Automaton::new(&text(&"a".repeat(MAX_POSITIONS)), &rules, &mut Fuel(10_000)).is_some()
        );
        assert!(
            Automaton::new(&text(&"a".repeat(MAX_POSITIONS + 1)), &rules, &mut Fuel(10_000))
                .is_none()
        );
        assert!(
            Automaton::new(&Expression::Json("{}".to_owned()), &rules, &mut Fuel(10_000)).is_none()
        );
        let word = class('a', 'z').repeated(1, None);
        let word = Automaton::new(&word, &rules, &mut Fuel(10_000)).unwrap();
        assert_eq!(word.compare(&word, &Characters::of("a"), &mut Fuel(1)), None);
    }
}
