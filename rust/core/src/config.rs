//! What the cache and the scheduler are told once, at the start.

use crate::ids::num_blocks_for;

/// Which earlier tokens the layers of one KV group can see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupKind {
    /// All of them.
    Full,
    /// The last `n`, the current one included: attend iff `query - key < n`.
    Sliding(u32),
    /// Those of the same chunk of `n`: attend iff `query / n == key / n`.
    Chunked(u32),
}

impl GroupKind {
    /// The first position that a query at `position` or later can still read.
    pub const fn first_visible(self, position: u32) -> u32 {
        match self {
            Self::Full => 0,
            Self::Sliding(window) => (position + 1).saturating_sub(window),
            Self::Chunked(chunk) => position / chunk * chunk,
        }
    }

    /// The most blocks that a sequence of `num_tokens` needs while it runs one token at a time.
    pub fn max_blocks(self, num_tokens: u32, block_size: u32) -> u32 {
        let all = num_blocks_for(num_tokens, block_size);
        match self {
            Self::Full => all,
            Self::Sliding(window) => all.min(num_blocks_for(window, block_size) + 1),
            Self::Chunked(chunk) => all.min(num_blocks_for(chunk, block_size) + 1),
        }
    }
}

/// Shape of the KV cache.
#[derive(Clone, Debug)]
pub struct CacheConfig {
    /// Blocks in the pool, the null block included.
    pub num_blocks: u32,
    /// Blocks of the host that preempted requests can be moved to; 0 for none.
    pub num_swap_blocks: u32,
    /// Tokens per block.
    pub block_size: u32,
    /// One entry per KV group; all groups draw from the same pool.
    pub groups: Vec<GroupKind>,
    /// Lines of the block tables.
    pub num_rows: u32,
    /// The longest sequence, in tokens.
    pub max_model_len: u32,
    /// Whether full blocks can be found again by their content.
    pub enable_prefix_caching: bool,
    /// Key of the content hash; tenants cannot predict collisions without it.
    pub hash_key: u64,
    /// Bits of the content hash that are kept. 64, but for tests that force collisions.
    pub hash_bits: u32,
}

impl CacheConfig {
    /// Columns of a block table.
    pub fn blocks_per_row(&self) -> u32 {
        num_blocks_for(self.max_model_len, self.block_size)
    }

    /// Blocks that can hold tokens: all but the null block.
    pub const fn num_usable_blocks(&self) -> u32 {
        self.num_blocks - 1
    }

    /// The most blocks that one request can come to hold: the prompt once, and for each of its
    /// `num_sequences` what it writes itself.
    ///
    /// `num_tokens` is the longest length of a sequence whose keys and values are stored.
    pub fn worst_case_blocks(&self, prompt_len: u32, num_tokens: u32, num_sequences: u32) -> u64 {
        let shared = u64::from(prompt_len / self.block_size);
        let own = u64::from(num_blocks_for(num_tokens, self.block_size)) - shared;
        let n = u64::from(num_sequences);
        self.groups
            .iter()
            .map(|group| {
                let windowed = n * u64::from(group.max_blocks(num_tokens, self.block_size));
                windowed.min(shared + n * own)
            })
            .sum()
    }
}

/// The order in which waiting requests start and running ones keep their blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// First come, first served.
    #[default]
    Fcfs,
    /// Lower `priority` first; among equals, first come.
    Priority,
}

/// Budgets and policy of the scheduler.
#[derive(Clone, Debug)]
pub struct SchedulerConfig {
    /// Shape of the KV cache; `num_rows` is `max_num_seqs`.
    pub cache: CacheConfig,
    /// Tokens that one step may run. At least `max_num_seqs`, so that every running sequence advances.
    pub max_num_batched_tokens: u32,
    /// Requests that may wait; one more is refused.
    pub max_num_waiting: u32,
    /// Order of service.
    pub policy: Policy,
    /// What moving one block to the host and back costs, counted in tokens computed again. A request is
    /// preempted by swap where that costs less than computing its tokens again.
    pub swap_cost: f64,
    /// Batches that may be scheduled before the first of them is updated: 1, or 2 to overlap.
    pub max_in_flight: u32,
}

impl SchedulerConfig {
    /// The most sequences that hold rows at once.
    pub const fn max_num_seqs(&self) -> u32 {
        self.cache.num_rows
    }
}
