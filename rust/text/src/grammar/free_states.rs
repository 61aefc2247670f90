//! Free text as states: how much of what it looks for stands at its end (Aho and Corasick, 1975).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::automaton::Fuel;
use super::expression::{Class, FreeText};

const MAX_STATES: usize = 256;

/// States, the first of which the empty text leads to, and the characters that lead from one to another. From each
/// of them some text leads to an end.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FreeStates {
    /// Where the characters after each state lead.
    pub(super) next: Vec<Vec<(Class, usize)>>,
    /// Where the text may end.
    pub(super) is_end: Vec<bool>,
}

impl FreeText {
    /// None if there are too many, or if no text satisfies it.
    pub(super) fn states(&self, fuel: &mut Fuel) -> Option<FreeStates> {
        let mut search = Search::default();
        for (texts, what) in [(&self.stops, Found::Stop), (&self.excludes, Found::Excluded)] {
            for text in texts {
                let is_ending = what == Found::Stop && self.ending.as_ref() == Some(text);
                search.add(text, if is_ending { Found::Ending } else { what })?;
            }
        }
        search.link();
        let states = search.states(self.ending.is_some(), fuel)?;
        states.without_dead_ends()
    }
}

/// What is complete in a state, the strongest of it: what is excluded may stand nowhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Found {
    #[default]
    Nothing,
    Stop,
    Ending,
    Excluded,
}

/// The beginnings of what is looked for; the first is empty.
struct Search {
    nodes: Vec<Node>,
    characters: BTreeSet<char>,
}

#[derive(Default)]
struct Node {
    children: BTreeMap<char, usize>,
    /// The longest other beginning at the end of this one.
    fallback: usize,
    found: Found,
}

impl Default for Search {
    fn default() -> Self {
        Self { nodes: vec![Node::default()], characters: BTreeSet::new() }
    }
}

impl Search {
    fn add(&mut self, text: &str, found: Found) -> Option<()> {
        let mut node = 0;
        for character in text.chars() {
            self.characters.insert(character);
            let fresh = self.nodes.len();
            node = *self.nodes[node].children.entry(character).or_insert(fresh);
            if node == fresh {
                self.nodes.push(Node::default());
            }
            if self.nodes.len() > MAX_STATES {
                return None;
            }
        }
        self.nodes[node].found = self.nodes[node].found.max(found);
        Some(())
    }

    /// Sets the fallbacks, of shorter beginnings first.
    fn link(&mut self) {
        let mut queue = VecDeque::from([0]);
        while let Some(node) = queue.pop_front() {
            let fallback = self.nodes[node].fallback;
            self.nodes[node].found = self.nodes[node].found.max(self.nodes[fallback].found);
            for (character, child) in self.nodes[node].children.clone() {
                self.nodes[child].fallback =
                    if node == 0 { 0 } else { self.step(fallback, character) };
                queue.push_back(child);
            }
        }
    }

    fn step(&self, mut node: usize, character: char) -> usize {
        loop {
            if let Some(child) = self.nodes[node].children.get(&character) {
                return *child;
            }
            if node == 0 {
                return 0;
            }
            node = self.nodes[node].fallback;
        }
    }

    fn states(&self, has_ending: bool, fuel: &mut Fuel) -> Option<FreeStates> {
        let end = if has_ending { Found::Ending } else { Found::Nothing };
        let is_end = self.nodes.iter().map(|node| node.found == end).collect();
        let mut next = Vec::with_capacity(self.nodes.len());
        for (node, Node { found, .. }) in self.nodes.iter().enumerate() {
            fuel.burn(1 + self.characters.len())?;
            next.push(if *found == Found::Nothing { self.next(node) } else { Vec::new() });
        }
        Some(FreeStates { next, is_end })
    }

    /// Where each character leads.
    fn next(&self, node: usize) -> Vec<(Class, usize)> {
        let mut leading: BTreeMap<usize, Vec<(char, char)>> = BTreeMap::new();
        for character in &self.characters {
            let target = self.step(node, *character);
            if target != 0 {
                leading.entry(target).or_default().push((*character, *character));
            }
        }
        let others = leading.values().flatten().copied().collect();
        let mut next = vec![(Class { ranges: others, is_negated: true }, 0)];
        next.extend(
            leading
                .into_iter()
                .map(|(target, ranges)| (Class { ranges, is_negated: false }, target)),
        );
        next
    }
}

impl FreeStates {
    fn without_dead_ends(self) -> Option<Self> {
        let mut sources = vec![Vec::new(); self.next.len()];
        for (source, next) in self.next.iter().enumerate() {
            for (_, target) in next {
                sources[*target].push(source);
            }
        }
        let mut is_alive = self.is_end.clone();
        let mut ready: Vec<usize> = (0..is_alive.len()).filter(|state| is_alive[*state]).collect();
        while let Some(state) = ready.pop() {
            for source in &sources[state] {
                if !std::mem::replace(&mut is_alive[*source], true) {
                    ready.push(*source);
                }
            }
        }
        let alive: Vec<usize> = (0..is_alive.len()).filter(|state| is_alive[*state]).collect();
        if alive.first() != Some(&0) {
            return None;
        }
        let renumbered = |(class, target): &(Class, usize)| {
            alive.binary_search(target).ok().map(|target| (class.clone(), target))
        };
        let next = alive
            .iter()
            .map(|state| self.next[*state].iter().filter_map(renumbered).collect())
            .collect();
        Some(Self { next, is_end: alive.iter().map(|state| self.is_end[*state]).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    impl FreeStates {
        fn accepts(&self, text: &str) -> bool {
            let mut state = 0;
            for character in text.chars() {
                let next = self.next[state].iter().find(|(class, _)| {
                    class.is_negated
                        != class
                            .ranges
                            .iter()
                            .any(|(first, last)| (*first..=*last).contains(&character))
                });
                let Some((_, target)) = next else { return false };
                state = *target;
            }
            self.is_end[state]
        }
    }

    fn satisfies(free: &FreeText, text: &str) -> bool {
        let has = |words: &[String], until: usize| {
            words.iter().any(|word| text[..until].contains(word.as_str()))
        };
        let stops_until =
            if free.ending.is_some() { text.len().saturating_sub(1) } else { text.len() };
        free.ending.as_ref().is_none_or(|ending| text.ends_with(ending.as_str()))
            && !has(&free.stops, stops_until)
            && !has(&free.excludes, text.len())
    }

    proptest! {
        #[test]
        fn states_accept_what_the_definition_says(
            mut stops in prop::collection::vec("[ab]{1,3}", 0..3),
            excludes in prop::collection::vec("[ab]{1,3}", 0..2),
            has_ending: bool,
        ) {
            let ending = if has_ending { stops.first().cloned() } else { None };
            let free = FreeText { stops: std::mem::take(&mut stops), excludes, ending };
            let states = free.states(&mut Fuel(10_000));
            let mut texts = vec![String::new()];
            for _ in 0..=6 {
                for text in &texts {
                    let accepts = states.as_ref().is_some_and(|states| states.accepts(text));
                    prop_assert_eq!(accepts, satisfies(&free, text), "{:?} of {:?}", text, free);
                }
                texts = texts
                    .iter()
                    .flat_map(|text| ["a", "b", "c"].map(|letter| format!("{text}{letter}")))
                    .collect();
            }
        }
    }

    #[test]
    fn every_state_leads_to_an_end() {
        let text = |text: &str| text.to_owned();
        let free = FreeText {
            stops: vec![text("ab")],
            excludes: vec![text("cab"), text("d")],
            ending: Some(text("ab")),
        };
        let states = free.states(&mut Fuel(1000)).unwrap();
        assert_eq!(states.is_end, [false, false, true, false, false]);
        assert!(states.next[2].is_empty());
        assert!(states.next.iter().enumerate().all(|(i, next)| i == 2 || !next.is_empty()));
        let hopeless = FreeText { excludes: vec![text("b")], ..free };
        assert_eq!(hopeless.states(&mut Fuel(1000)), None);
    }

    #[test]
    fn too_many_states_are_none() {
        let free =
            |length| FreeText { stops: vec!["a".repeat(length)], excludes: vec![], ending: None };
        assert!(free(MAX_STATES - 1).states(&mut Fuel(10_000)).is_some());
        assert_eq!(free(MAX_STATES).states(&mut Fuel(10_000)), None);
        assert_eq!(free(10).states(&mut Fuel(10)), None);
    }
}
