//! Pool, prefix cache and block tables against a naive model: the same blocks in the same order after
//! every operation. proptest shrinks what fails to the few operations that matter.

use pagedkv_core::{CacheConfig, GroupKind};
use proptest::prelude::*;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};

#[path = "support/naive.rs"]
mod naive;

use naive::{Op, Pair};

const NUM_ROWS: u32 = 4;

/// The operations to do; the model itself lives beside the real thing in [`Pair`].
struct Operations;

#[derive(Clone, Debug)]
struct Setting {
    config: CacheConfig,
}

fn tokens(max: usize) -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(0_u32..2, 1..=max)
}

impl ReferenceStateMachine for Operations {
    type State = Setting;
    type Transition = Op;

    fn init_state() -> BoxedStrategy<Setting> {
        let kind = prop_oneof![
            2 => Just(GroupKind::Full),
            1 => (1_u32..10).prop_map(GroupKind::Sliding),
            1 => (1_u32..10).prop_map(GroupKind::Chunked),
        ];
        let groups = prop::collection::vec(kind, 1..=2);
        let size = prop::sample::select(vec![1, 2, 4]);
        let hash_bits = prop::sample::select(vec![64, 8, 1]);
        (4_u32..24, size, groups, any::<bool>(), hash_bits)
            .prop_map(|(num_blocks, block_size, groups, enable_prefix_caching, hash_bits)| {
                Setting {
                    config: CacheConfig {
                        num_blocks,
                        num_swap_blocks: 0,
                        block_size,
                        groups,
                        num_rows: NUM_ROWS,
                        max_model_len: 24,
                        enable_prefix_caching,
                        hash_key: 1,
                        hash_bits,
                    },
                }
            })
            .boxed()
    }

    fn transitions(_: &Setting) -> BoxedStrategy<Op> {
        let row = || 0..NUM_ROWS;
        prop_oneof![
            4 => (row(), 0_u32..2, tokens(12))
                .prop_map(|(row, tenant, prompt)| Op::Open { row, tenant, prompt }),
            5 => (row(), tokens(8)).prop_map(|(row, tokens)| Op::Append { row, tokens }),
            2 => (row(), row()).prop_map(|(parent, child)| Op::Fork { parent, child }),
            2 => row().prop_map(|row| Op::Commit { row }),
            1 => row().prop_map(|row| Op::Close { row }),
            3 => Just(Op::Begin),
            2 => Just(Op::End),
            1 => Just(Op::Cancel),
            1 => Just(Op::Reset),
        ]
        .boxed()
    }

    fn apply(state: Setting, _: &Op) -> Setting {
        state
    }
}

struct Allocator;

impl StateMachineTest for Allocator {
    type SystemUnderTest = Pair;
    type Reference = Operations;

    fn init_test(setting: &Setting) -> Pair {
        Pair::new(setting.config.clone())
    }

    fn apply(mut pair: Pair, _: &Setting, op: Op) -> Pair {
        pair.apply(&op).unwrap();
        pair
    }

    fn teardown(mut pair: Pair, _: Setting) {
        pair.wind_up().unwrap();
    }
}

prop_state_machine! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn the_allocator_equals_the_naive_one(sequential 1..60 => Allocator);
}

#[test]
fn ten_thousand_random_runs_equal_the_naive_allocator() {
    for seed in 0..10_000 {
        naive::run(seed).unwrap_or_else(|message| panic!("seed {seed}: {message}"));
    }
}
