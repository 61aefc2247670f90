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
        (0..request.sequences.len()).filter(|i| request.sequences[*i].has_tokens()).collect();
    let sequences = &request.sequences;
    // Sorted, the longest past that a sequence shares is the one it shares with its predecessor.
    order.sort_by(|a, b| sequences[*a].output.cmp(&sequences[*b].output).then(a.cmp(b)));
    let leader = order[0];
    request.sequences[leader].fork = None;
    let num_idle = request.sequences.iter().filter(|sequence| sequence.is_idle).count();
    request.num_parked = (order.len() - 1 + num_idle) as u32;
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::request::{NewRequest, Rank};
    use crate::simulator::Rng;
    use crate::{CacheKey, FinishReason, StopConditions};

    /// A request with a prompt of three tokens whose sequences have generated `outputs`.
    fn request(outputs: &[&[u32]]) -> Request {
        let new = NewRequest {
            id: 0,
            prompt: vec![0; 3],
            num_sequences: outputs.len() as u32,
            stop: StopConditions::default(),
            priority: 0,
            key: CacheKey::default(),
            text: None,
            beams: None,
            include_stop_in_text: false,
            stream: false,
        };
        let mut request = Request::new(new, Rank { priority: 0, arrival: 0 }, 100);
        for (sequence, output) in request.sequences.iter_mut().zip(outputs) {
            sequence.output = output.to_vec();
        }
        request
    }

    fn forks(request: &Request) -> Vec<Option<(u32, u32)>> {
        request.sequences.iter().map(|s| s.fork.map(|fork| (fork.parent, fork.at))).collect()
    }

    #[test]
    fn siblings_part_at_the_end_of_the_prompt_when_nothing_is_generated() {
        let mut request = request(&[&[], &[], &[]]);
        assert_eq!(plan_forks(&mut request), 0);
        assert_eq!(forks(&request), [None, Some((0, 3)), Some((0, 3))]);
        assert_eq!(next_fork(&request, 0), Some(3));
        assert_eq!(next_fork(&request, 1), None);
    }

    #[test]
    fn the_example_of_the_module_is_planned_as_drawn() {
        let mut request = request(&[&[4, 5], &[4, 9], &[8]]);
        assert_eq!(plan_forks(&mut request), 0);
        assert_eq!(forks(&request), [None, Some((0, 4)), Some((0, 3))]);
        assert_eq!(next_fork(&request, 0), Some(3));
    }

    #[test]
    fn ended_sequences_take_no_part() {
        let mut request = request(&[&[4, 5], &[4, 9], &[4, 9, 1]]);
        request.sequences[0].finish_reason = Some(FinishReason::Eos);
        assert_eq!(plan_forks(&mut request), 1);
        assert_eq!(forks(&request), [None, None, Some((1, 5))]);
        assert_eq!(request.num_parked, 1);
    }

    /// The tokens run are as many as the trie has edges, and each part is there when it is shared.
    #[test]
    fn every_part_of_the_trie_is_computed_once() {
        let mut rng = Rng::new(1);
        for _ in 0..2000 {
            let outputs: Vec<Vec<u32>> = (0..rng.range(1, 6))
                .map(|_| (0..rng.below(6)).map(|_| rng.below(2)).collect())
                .collect();
            let slices: Vec<&[u32]> = outputs.iter().map(Vec::as_slice).collect();
            let mut request = request(&slices);
            let leader = plan_forks(&mut request);
            let trie: BTreeSet<_> =
                outputs.iter().flat_map(|o| (1..=o.len()).map(|n| &o[..n])).collect();
            let mut num_run = 3 + outputs[leader].len();
            for (i, sequence) in request.sequences.iter().enumerate() {
                let Some(fork) = sequence.fork else {
                    assert_eq!(i, leader, "only the leader starts by itself");
                    continue;
                };
                let parent = fork.parent as usize;
                let (shared, start) = (fork.at as usize - 3, request.sequences[parent].fork);
                assert_eq!(outputs[i][..shared], outputs[parent][..shared]);
                assert!(start.is_none_or(|start| start.at < fork.at), "the parent runs that part");
                num_run += outputs[i].len() - shared;
            }
            assert_eq!(num_run, 3 + trie.len(), "{outputs:?}");
        }
    }
}
