//! What the scheduler did and how the pool is used.

use crate::batch::Batch;
use crate::kv_cache::KvCacheManager;

/// Counters that the scheduler keeps.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counters {
    pub(crate) num_requests: u64,
    pub(crate) num_finished: u64,
    pub(crate) num_aborted: u64,
    pub(crate) num_preemptions: u64,
    pub(crate) num_tokens_lost: u64,
    pub(crate) num_swaps: u64,
    pub(crate) num_swapped_blocks: u64,
    pub(crate) num_prompt_tokens: u64,
    pub(crate) num_cached_prompt_tokens: u64,
    pub(crate) num_generated_tokens: u64,
    num_steps: u64,
    num_scheduled_tokens: u64,
    max_rows: u32,
    sum_held_slots: u64,
    sum_used_slots: u64,
    sum_references: u64,
    sum_blocks: u64,
}

impl Counters {
    pub(crate) fn note_step(&mut self, batch: &Batch, kv: &KvCacheManager) {
        let pool = kv.pool();
        let block_size = u64::from(kv.config().block_size);
        self.num_steps += 1;
        self.num_scheduled_tokens += u64::from(batch.num_tokens);
        self.max_rows = self.max_rows.max(batch.num_rows);
        self.sum_blocks += u64::from(pool.num_referenced());
        self.sum_references += pool.num_references();
        self.sum_held_slots += u64::from(pool.num_referenced()) * block_size;
        self.sum_used_slots += pool.num_filled_slots();
    }
}

macro_rules! stats {
    ($($(#[$doc:meta])* $name:ident: $type:ty,)*) => {
        /// A snapshot: the pool now, counters since the start, means over steps.
        #[derive(Clone, Copy, Debug, Default, PartialEq)]
        pub struct Stats {
            $($(#[$doc])* pub $name: $type,)*
        }

        impl Stats {
            /// Every figure with its name, in order.
            #[expect(clippy::cast_lossless, reason = "the figures have several integer types")]
            pub fn entries(&self) -> Vec<(&'static str, f64)> {
                vec![$((stringify!($name), self.$name as f64)),*]
            }
        }
    };
}

stats! {
    /// Blocks that can hold tokens.
    num_blocks: u32,
    /// Tokens per block.
    block_size: u32,
    /// Blocks that running sequences refer to.
    num_used_blocks: u32,
    /// Blocks that can be handed out, cached ones included.
    num_free_blocks: u32,
    /// Blocks that can be found by their content.
    num_cached_blocks: u32,
    /// Blocks that sharing saves now: table entries less blocks.
    num_saved_blocks: u64,
    /// Slots of used blocks.
    num_held_slots: u64,
    /// Of those, slots that hold tokens.
    num_used_slots: u64,
    /// The most blocks used at once.
    peak_used_blocks: u32,
    /// Requests that run.
    num_running: u32,
    /// Requests that wait.
    num_waiting: u32,
    /// Requests taken in.
    num_requests: u64,
    /// Requests that ended by themselves.
    num_finished: u64,
    /// Requests that were aborted.
    num_aborted: u64,
    /// Steps planned.
    num_steps: u64,
    /// Tokens run.
    num_scheduled_tokens: u64,
    /// The most sequences in one step.
    max_rows: u32,
    /// Prompt tokens of requests that started.
    num_prompt_tokens: u64,
    /// Of those, found in the prefix cache.
    num_cached_prompt_tokens: u64,
    /// Tokens accepted.
    num_generated_tokens: u64,
    /// Times that a request gave up its blocks.
    num_preemptions: u64,
    /// Of those, times that they were moved to the host; the others are computed again.
    num_swaps: u64,
    /// Blocks moved to the host.
    num_swapped_blocks: u64,
    /// Blocks of the host in use.
    num_used_swap_blocks: u32,
    /// Blocks of the host.
    num_swap_blocks: u32,
    /// Tokens whose computation was lost by preemption.
    num_tokens_lost: u64,
    /// Blocks copied because a shared block was written.
    num_cow_copies: u64,
    /// Blocks copied to share a part of a cached block.
    num_partial_copies: u64,
    /// Sequences that started by sharing another's blocks.
    num_forks: u64,
    /// Cached blocks reused for other content.
    num_evictions: u64,
    /// Mean over steps: used slots / held slots.
    mean_slot_use: f64,
    /// Mean over steps: blocks saved / blocks without sharing.
    mean_sharing: f64,
}

impl Stats {
    pub(crate) fn new(
        counters: &Counters,
        kv: &KvCacheManager,
        num_running: u32,
        num_waiting: u32,
    ) -> Self {
        let pool = kv.pool();
        let cache = kv.counters();
        let block_size = kv.config().block_size;
        let ratio =
            |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
        Self {
            num_blocks: kv.config().num_usable_blocks(),
            block_size,
            num_used_blocks: pool.num_referenced(),
            num_free_blocks: pool.num_free(),
            num_cached_blocks: kv.num_cached_blocks(),
            num_saved_blocks: pool.num_references() - u64::from(pool.num_referenced()),
            num_held_slots: u64::from(pool.num_referenced()) * u64::from(block_size),
            num_used_slots: pool.num_filled_slots(),
            peak_used_blocks: cache.peak_blocks,
            num_running,
            num_waiting,
            num_requests: counters.num_requests,
            num_finished: counters.num_finished,
            num_aborted: counters.num_aborted,
            num_steps: counters.num_steps,
            num_scheduled_tokens: counters.num_scheduled_tokens,
            max_rows: counters.max_rows,
            num_prompt_tokens: counters.num_prompt_tokens,
            num_cached_prompt_tokens: counters.num_cached_prompt_tokens,
            num_generated_tokens: counters.num_generated_tokens,
            num_preemptions: counters.num_preemptions,
            num_swaps: counters.num_swaps,
            num_swapped_blocks: counters.num_swapped_blocks,
            num_used_swap_blocks: kv.swap_space().num_used(),
            num_swap_blocks: kv.swap_space().num_blocks(),
            num_tokens_lost: counters.num_tokens_lost,
            num_cow_copies: cache.num_cow_copies,
            num_partial_copies: cache.num_partial_copies,
            num_forks: cache.num_forks,
            num_evictions: cache.num_evictions,
            mean_slot_use: ratio(counters.sum_used_slots, counters.sum_held_slots),
            mean_sharing: ratio(
                counters.sum_references - counters.sum_blocks,
                counters.sum_references,
            ),
        }
    }
}
