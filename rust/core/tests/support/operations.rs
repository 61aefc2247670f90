//! What a test of the allocator does, and to which caches.

use pagedkv_core::simulator::Rng;
use pagedkv_core::{CacheConfig, GroupKind, TokenId};

/// One step of a test. An operation that makes no sense in the state it meets does nothing.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    /// Opens a row with whatever is cached of a prompt.
    Open {
        row: u32,
        tenant: u32,
        prompt: Vec<TokenId>,
    },
    /// Plans to compute more tokens of a row.
    Append {
        row: u32,
        tokens: Vec<TokenId>,
    },
    Fork {
        parent: u32,
        child: u32,
    },
    /// Makes what has been computed findable.
    Commit {
        row: u32,
    },
    Close {
        row: u32,
    },
    /// The batch that was planned is on its way.
    Begin,
    /// The oldest batch has run.
    End,
    /// The newest batch failed: its rows close.
    Cancel,
    Reset,
}

impl Op {
    pub(crate) fn random(rng: &mut Rng, num_rows: u32, block_size: u32) -> Self {
        let row = rng.below(num_rows);
        let tokens = |rng: &mut Rng, max| (0..rng.range(1, max)).map(|_| rng.below(2)).collect();
        match rng.below(20) {
            0..=3 => Self::Open { row, tenant: rng.below(2), prompt: tokens(rng, 3 * block_size) },
            4..=8 => Self::Append { row, tokens: tokens(rng, 2 * block_size) },
            9..=10 => Self::Fork { parent: row, child: rng.below(num_rows) },
            11..=12 => Self::Commit { row },
            13 => Self::Close { row },
            14..=16 => Self::Begin,
            17..=18 => Self::End,
            _ if rng.chance(70) => Self::Cancel,
            _ => Self::Reset,
        }
    }
}

pub(crate) fn random_config(rng: &mut Rng) -> CacheConfig {
    let kinds = [
        GroupKind::Full,
        GroupKind::Sliding(rng.range(1, 10)),
        GroupKind::Chunked(rng.range(1, 10)),
    ];
    CacheConfig {
        num_blocks: rng.range(4, 24),
        num_swap_blocks: 0,
        block_size: rng.pick(&[1, 2, 4]),
        groups: (0..rng.range(1, 2)).map(|_| rng.pick(&kinds)).collect(),
        num_rows: rng.range(2, 4),
        max_model_len: 24,
        enable_prefix_caching: rng.chance(80),
        hash_key: rng.next_u64(),
        hash_bits: rng.pick(&[64, 8, 1]),
    }
}
