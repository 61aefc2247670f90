//! All short lives of three rows over four blocks: every sequence of up to seven operations, compared
//! with the naive allocator after each. States that were reached before are not searched twice.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use pagedkv_core::{CacheConfig, GroupKind};

#[path = "support/naive.rs"]
mod naive;

use naive::{Op, Pair};

const NUM_ROWS: u32 = 3;

/// What can happen: enough to share, to write into what is shared, to find, to evict and to run out.
fn operations() -> Vec<Op> {
    let mut ops = vec![Op::Begin, Op::End, Op::Cancel, Op::Reset];
    for row in 0..NUM_ROWS {
        ops.push(Op::Open { row, tenant: 0, prompt: vec![0, 0, 1] });
        ops.push(Op::Append { row, tokens: vec![0] });
        ops.push(Op::Append { row, tokens: vec![0, 0, 1] });
        ops.push(Op::Commit { row });
        ops.push(Op::Close { row });
        ops.extend(
            (0..NUM_ROWS)
                .filter(|child| *child != row)
                .map(|child| Op::Fork { parent: row, child }),
        );
    }
    ops
}

struct Search {
    operations: Vec<Op>,
    /// Depth and a hash of the state: a collision would skip a state, and 64 bits make none likely.
    seen: HashSet<(usize, u64)>,
    num_states: u64,
}

impl Search {
    fn visit(&mut self, pair: &Pair, depth: usize, history: &mut Vec<Op>) {
        self.num_states += 1;
        if depth == 0 {
            return;
        }
        for i in 0..self.operations.len() {
            let op = self.operations[i].clone();
            let mut next = pair.clone();
            history.push(op.clone());
            if let Err(message) = next.apply(&op) {
                panic!("{message}\nhistory: {history:#?}");
            }
            let mut hasher = DefaultHasher::new();
            next.fingerprint().hash(&mut hasher);
            if self.seen.insert((depth, hasher.finish())) {
                self.visit(&next, depth - 1, history);
            }
            history.pop();
        }
    }
}

/// Searches all sequences of `depth` operations; returns how many different states there were.
fn search(groups: Vec<GroupKind>, enable_prefix_caching: bool, depth: usize) -> u64 {
    let config = CacheConfig {
        num_blocks: 5,
        num_swap_blocks: 0,
        block_size: 2,
        groups,
        num_rows: NUM_ROWS,
        max_model_len: 8,
        enable_prefix_caching,
        hash_key: 0,
        hash_bits: 1,
    };
    let mut search = Search { operations: operations(), seen: HashSet::new(), num_states: 0 };
    search.visit(&Pair::new(config), depth, &mut Vec::new());
    search.num_states
}

#[test]
fn all_short_lives_without_a_cache() {
    let num_states = search(vec![GroupKind::Full], false, 7);
    assert!(num_states > 100_000, "only {num_states} states");
}

#[test]
fn all_short_lives_with_a_cache() {
    let num_states = search(vec![GroupKind::Full], true, 7);
    assert!(num_states > 100_000, "only {num_states} states");
}

#[test]
fn all_short_lives_with_a_window() {
    let num_states = search(vec![GroupKind::Sliding(3)], true, 7);
    assert!(num_states > 100_000, "only {num_states} states");
}

#[test]
#[ignore = "long: minutes; cargo test --release -- --ignored"]
fn all_longer_lives() {
    assert!(search(vec![GroupKind::Full], true, 8) > 100_000);
    assert!(search(vec![GroupKind::Full, GroupKind::Sliding(2)], true, 8) > 100_000);
}
