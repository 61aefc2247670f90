//! Which sequence of a request computes what, and where the others share it.
//!
//! The tokens of a request's sequences form a trie. Each edge of the trie is computed by one
//! sequence; the others wait and fork from it where they part. A fresh request is the simplest case:
//! all sequences part at the end of the prompt.
//!
//! ```text
//! tokens:    a b c d e     sequence 0 computes a b c d e
//!            a b c x       sequence 1 forks from 0 at 3
//!            a y z         sequence 2 forks from 0 at 1
//! ```

use crate::request::Request;

/// A sequence shares the first `at` tokens of sequence `parent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ForkPoint {
    pub(crate) parent: u32,
    pub(crate) at: u32,
}

/// Sets the fork point of every live sequence of `request`. Returns the one that starts.
pub(crate) fn plan_forks(request: &mut Request) -> usize {
    let mut order: Vec<usize> =
        (0..request.sequences.len()).filter(|i| request.sequences[*i].is_live()).collect();
    let sequences = &request.sequences;
    // Sorted, the longest past that a sequence shares is the one it shares with its predecessor.
    order.sort_by(|a, b| sequences[*a].output.cmp(&sequences[*b].output).then(a.cmp(b)));
    let leader = order[0];
    request.sequences[leader].fork = None;
    request.num_parked = order.len() as u32 - 1;
    for pair in order.windows(2) {
        let (previous, index) = (pair[0], pair[1]);
        let (a, b) = (&request.sequences[previous].output, &request.sequences[index].output);
        let common = a.iter().zip(b).take_while(|(x, y)| x == y).count() as u32;
        let at = request.prompt_len() + common;
        // The predecessor may itself begin only later: then its own parent computes this part.
        let mut parent = previous;
        while let Some(fork) = request.sequences[parent].fork
            && fork.at >= at
        {
            parent = fork.parent as usize;
        }
        request.sequences[index].fork = Some(ForkPoint { parent: parent as u32, at });
    }
    leader
}

/// The nearest position at which another sequence waits to fork from sequence `index`.
pub(crate) fn next_fork(request: &Request, index: usize) -> Option<u32> {
    if request.num_parked == 0 {
        return None;
    }
    request
        .sequences
        .iter()
        .filter(|sequence| sequence.is_live())
        .filter_map(|sequence| sequence.fork)
        .filter(|fork| fork.parent as usize == index)
        .map(|fork| fork.at)
        .min()
}
