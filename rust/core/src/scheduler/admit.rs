//! Starting waiting requests.

use super::arrays::BatchBuilder;
use super::{Blocked, InFlight, Scheduler, Slot};
use crate::config::GroupKind;
use crate::fork::{next_fork, plan_forks};
use crate::ids::{RowId, num_blocks_for};
use crate::kv_cache::PrefixHit;

/// Steps after which a request that did not fit is looked at again in any case: what it shares with
/// others may have been cached meanwhile.
const RETRY_STEPS: u64 = 16;

impl Scheduler {
    /// Starts requests in order until one does not fit; none overtakes it.
    pub(super) fn admit_waiting(
        &mut self,
        builder: &mut BatchBuilder<'_, '_>,
        record: &mut InFlight,
    ) {
        while builder.budget > 0
            && let Some((_, &slot)) = self.waiting.first_key_value()
        {
            let request = self.request(slot);
            let num_rows = request.num_live as usize;
            // A token that is still in flight would be missing from the sequence's tokens.
            if request.num_in_flight > 0 || self.free_rows.len() < num_rows {
                return;
            }
            if self.request(slot).swapped.is_some() {
                if !self.start_swapped(slot, builder, record) {
                    return;
                }
                continue;
            }
            if self.is_still_blocked(slot) {
                return;
            }
            let (leader, mut hit) = self.find_start(slot);
            if !self.has_room(slot, leader, &hit) {
                hit.drop_partial(self.config.cache.block_size);
            }
            let is_alone = self.running.is_empty() && self.in_flight.is_empty();
            if is_alone && !self.has_room(slot, leader, &hit) {
                // A window group can hold the hit or what follows it, but not always both at once.
                hit = PrefixHit::default();
            }
            if !self.has_room(slot, leader, &hit) {
                assert!(!is_alone, "a request that fits alone cannot start");
                self.block(slot, leader, &hit);
                return;
            }
            self.start(slot, leader, &hit);
            self.hold_beams(slot);
            let budget = builder.budget;
            let is_planned = self.plan_sequence(slot, leader, budget, builder, record);
            assert!(is_planned, "blocks were counted before");
        }
    }

    /// Decides which sequence computes what, and how much of the first one is cached.
    fn find_start(&mut self, slot: Slot) -> (usize, PrefixHit) {
        let request = self.requests[slot as usize].as_mut().expect("a listed slot is taken");
        let leader = plan_forks(request);
        let tokens = request.tokens(leader);
        // The last token must run, for its logits; and so must the last before a fork.
        let limit = next_fork(request, leader).unwrap_or(tokens.len()).min(tokens.len()) - 1;
        let hit = self.kv.find_prefix(&request.key, tokens, limit);
        (leader, hit)
    }

    /// Whether what was found out about `slot` when it did not fit still holds: looking up a long
    /// prompt at every step would cost more than the step.
    fn is_still_blocked(&self, slot: Slot) -> bool {
        self.blocked.is_some_and(|blocked| {
            blocked.arrival == self.request(slot).rank.arrival
                && !self.running.is_empty()
                && self.num_batches < blocked.retry_at
                && self.kv.pool().num_free() < blocked.num_blocks + self.num_reserved()
        })
    }

    fn block(&mut self, slot: Slot, leader: usize, hit: &PrefixHit) {
        self.blocked = Some(Blocked {
            arrival: self.request(slot).rank.arrival,
            num_blocks: self.blocks_to_start(slot, leader, hit),
            retry_at: self.num_batches + RETRY_STEPS,
        });
    }

    /// Whether the blocks are to be had, and room in the log for the hit.
    fn has_room(&self, slot: Slot, leader: usize, hit: &PrefixHit) -> bool {
        let cache = &self.config.cache;
        let groups = cache.groups.len() as u32;
        let needed = self.blocks_to_start(slot, leader, hit) + self.num_reserved();
        let num_columns = hit.num_tokens / cache.block_size
            + self.config.max_num_batched_tokens / cache.block_size
            + 2;
        let room = self.sizes.num_table_updates - self.kv.tables().updates().len();
        needed <= self.kv.pool().num_free() && (groups * num_columns) as usize <= room
    }

    /// Blocks for all tokens that the request's first sequence has.
    fn blocks_to_start(&self, slot: Slot, leader: usize, hit: &PrefixHit) -> u32 {
        let cache = &self.config.cache;
        let num_tokens = self.request(slot).num_tokens(leader);
        let num_hit = hit.num_tokens / cache.block_size;
        let missing = num_blocks_for(num_tokens, cache.block_size) - num_hit;
        let most = |group: &GroupKind| group.max_blocks(num_tokens, cache.block_size);
        let new: u32 = cache.groups.iter().map(|group| most(group).min(missing)).sum();
        new + hit.num_free_blocks()
    }

    /// Blocks left to the running sequences when a request starts: one for each to go on with.
    pub(super) fn num_reserved(&self) -> u32 {
        self.num_active() * self.config.cache.groups.len() as u32
    }

    fn start(&mut self, slot: Slot, leader: usize, hit: &PrefixHit) {
        let request = self.requests[slot as usize].as_mut().expect("a listed slot is taken");
        request.run += 1;
        let mut leader_row = RowId::new(0);
        for (index, sequence) in request.sequences.iter_mut().enumerate() {
            if !sequence.is_live() {
                continue;
            }
            let row = self.free_rows.pop().expect("counted before");
            sequence.row = Some(row);
            // All that it can need, so that decoding never allocates.
            let max_output = request.max_output as usize;
            sequence.output.reserve_exact(max_output - sequence.output.len());
            self.row_fills.push((row, request.id, index as u32));
            if index == leader {
                leader_row = row;
            }
        }
        self.num_parked += request.num_parked;
        self.kv.open_row(leader_row, &request.key);
        let num_cached = self.kv.attach_prefix(leader_row, hit);
        request.sequences[leader].num_computed = num_cached;
        if request.num_cached_tokens.is_none() {
            request.num_cached_tokens = Some(num_cached);
            self.counters.num_prompt_tokens += u64::from(request.prompt_len());
            self.counters.num_cached_prompt_tokens += u64::from(num_cached);
        }
        self.set_running(slot);
    }
}
