//! Stop strings: found across token borders, held back while they could still complete.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::TextError;

const ROOT: u32 = 0;
const NONE: u32 = u32::MAX;
const MAX_BYTES: usize = 1 << 24;

/// The stop strings of one request as an Aho-Corasick automaton over bytes: one amortised step per
/// byte of text, memory linear in the stop strings. Shared by all sequences of the request.
///
/// Which match counts: the one that is complete first; of several complete at the same character
/// the longest, which cuts most; of equal strings the first listed. Where token borders are makes
/// no difference.
#[derive(Debug, Clone)]
pub struct StopSet {
    /// Edges of state s: `edges[edge_ends[s - 1]..edge_ends[s]]`, sorted by byte.
    edges: Vec<(u8, u32)>,
    edge_ends: Vec<u32>,
    states: Vec<State>,
    /// Bytes that leave the root: the test that most text fails.
    is_first_byte: [bool; 256],
    include_in_text: bool,
}

#[derive(Debug, Clone)]
struct State {
    /// Where to go on when no edge fits: the longest proper suffix that is also a state.
    fail: u32,
    /// The stop string that ends here, or `NONE`.
    stop: u32,
    /// Its bytes.
    stop_len: u32,
    /// Bytes at the end of the text that may be the start of a stop string.
    num_held: u32,
}

impl StopSet {
    /// An automaton of `stops`; with `include_in_text` a text keeps the stop string that ends it.
    ///
    /// # Errors
    /// An empty stop string, or more than 16 MiB of them.
    pub fn new<S: AsRef<str>>(stops: &[S], include_in_text: bool) -> Result<Self, TextError> {
        let mut got = 0;
        for (index, stop) in stops.iter().enumerate() {
            if stop.as_ref().is_empty() {
                return Err(TextError::EmptyStop { index });
            }
            got += stop.as_ref().len();
        }
        if got > MAX_BYTES {
            return Err(TextError::StopTooLong { got, max: MAX_BYTES });
        }
        let mut trie = Trie::new();
        for (index, stop) in stops.iter().enumerate() {
            trie.insert(stop.as_ref(), index as u32);
        }
        Ok(trie.into_automaton(include_in_text))
    }

    fn edge(&self, state: u32, byte: u8) -> Option<u32> {
        let state = state as usize;
        let start = if state == 0 { 0 } else { self.edge_ends[state - 1] as usize };
        let edges = &self.edges[start..self.edge_ends[state] as usize];
        edges.binary_search_by_key(&byte, |edge| edge.0).ok().map(|place| edges[place].1)
    }

    fn step(&self, mut state: u32, byte: u8) -> u32 {
        loop {
            if state == ROOT && !self.is_first_byte[usize::from(byte)] {
                return ROOT;
            }
            if let Some(next) = self.edge(state, byte) {
                return next;
            }
            state = self.states[state as usize].fail;
        }
    }
}

/// The automaton while strings are added.
struct Trie {
    children: Vec<BTreeMap<u8, u32>>,
    stops: Vec<(u32, u32)>,
}

impl Trie {
    fn new() -> Self {
        Self { children: vec![BTreeMap::new()], stops: vec![(NONE, 0)] }
    }

    fn insert(&mut self, stop: &str, index: u32) {
        let mut state = ROOT;
        for &byte in stop.as_bytes() {
            let fresh = self.children.len() as u32;
            state = *self.children[state as usize].entry(byte).or_insert(fresh);
            if state == fresh {
                self.children.push(BTreeMap::new());
                self.stops.push((NONE, 0));
            }
        }
        let end = &mut self.stops[state as usize];
        if end.0 == NONE {
            *end = (index, stop.len() as u32);
        }
    }

    /// Breadth first, so that a state's suffixes, which are shorter, are ready before it.
    fn into_automaton(self, include_in_text: bool) -> StopSet {
        let num_states = self.children.len();
        let blank = State { fail: ROOT, stop: NONE, stop_len: 0, num_held: 0 };
        let mut automaton = StopSet {
            edges: Vec::with_capacity(num_states - 1),
            edge_ends: Vec::with_capacity(num_states),
            states: vec![blank; num_states],
            is_first_byte: [false; 256],
            include_in_text,
        };
        for children in &self.children {
            automaton.edges.extend(children.iter().map(|(&byte, &child)| (byte, child)));
            automaton.edge_ends.push(automaton.edges.len() as u32);
        }
        let mut queue = std::collections::VecDeque::new();
        for (&byte, &child) in &self.children[0] {
            automaton.is_first_byte[usize::from(byte)] = true;
            queue.push_back((child, ROOT, 1));
        }
        while let Some((state, fail, depth)) = queue.pop_front() {
            for (&byte, &child) in &self.children[state as usize] {
                queue.push_back((child, automaton.step(fail, byte), depth + 1));
            }
            let suffix = automaton.states[fail as usize].clone();
            let (stop, stop_len) = match self.stops[state as usize] {
                (NONE, _) => (suffix.stop, suffix.stop_len),
                own => own,
            };
            let is_leaf = self.children[state as usize].is_empty();
            let num_held = if is_leaf { suffix.num_held } else { depth };
            automaton.states[state as usize] = State { fail, stop, stop_len, num_held };
        }
        automaton
    }
}

/// A text that grows, holds back what may be the start of a stop string and ends at the first one.
#[derive(Debug, Clone, Default)]
pub struct StopText {
    text: String,
    num_released: usize,
    stops: Option<Arc<StopSet>>,
    state: u32,
    is_stopped: bool,
}

/// A point of a [`StopText`] to which [`StopText::rewind`] returns.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark {
    len: usize,
    state: u32,
}

impl StopText {
    /// An empty text that ends at one of `stops`.
    pub fn new(stops: Option<Arc<StopSet>>) -> Self {
        Self { stops, ..Self::default() }
    }

    /// Appends text; with `may_stop`, returns the index of the stop string that is complete in it
    /// and drops what follows (and, unless it is to be kept, the stop string).
    ///
    /// A match counts if its last character is appended with `may_stop`, wherever it began. A text
    /// that has stopped stays as it is.
    pub fn append(&mut self, piece: &str, may_stop: bool) -> Option<u32> {
        if self.is_stopped {
            return None;
        }
        let start = self.text.len();
        self.text.push_str(piece);
        let stops = self.stops.as_deref()?;
        for (offset, byte) in piece.bytes().enumerate() {
            self.state = stops.step(self.state, byte);
            let State { stop, stop_len, .. } = stops.states[self.state as usize];
            if may_stop && stop != NONE {
                let end = start + offset + 1;
                let kept = if stops.include_in_text { end } else { end - stop_len as usize };
                debug_assert!(kept >= self.num_released, "a match began in released text");
                self.text.truncate(kept);
                self.num_released = kept;
                self.is_stopped = true;
                return Some(stop);
            }
        }
        None
    }

    /// Declares what was appended final, so that all but the start of a stop string is released.
    pub fn release(&mut self) {
        if !self.is_stopped {
            let num_held =
                self.stops.as_ref().map_or(0, |stops| stops.states[self.state as usize].num_held);
            self.num_released = self.text.len() - num_held as usize;
        }
    }

    /// Releases everything: nothing follows.
    pub fn finish(&mut self) {
        self.num_released = self.text.len();
    }

    /// What is released. It only ever grows.
    pub fn released(&self) -> &str {
        &self.text[..self.num_released]
    }

    /// Whether a stop string was found.
    pub fn is_stopped(&self) -> bool {
        self.is_stopped
    }

    pub(crate) fn mark(&self) -> Mark {
        Mark { len: self.text.len(), state: self.state }
    }

    /// Takes back what was appended since `mark`, none of which was released.
    pub(crate) fn rewind(&mut self, mark: Mark) {
        if !self.is_stopped {
            assert!(mark.len >= self.num_released, "released text is withdrawn");
            self.text.truncate(mark.len);
            self.state = mark.state;
        }
    }
}
