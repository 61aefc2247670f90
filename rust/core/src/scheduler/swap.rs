//! Preemption by swap: a request keeps what it computed, in blocks of the host.

use super::arrays::BatchBuilder;
use super::{InFlight, Scheduler, Slot};
use crate::request::Status;

impl Scheduler {
    /// Moves the blocks of a running request to the host, if there is room and if that costs less than
    /// computing its tokens again. False, and nothing done, otherwise.
    pub(super) fn swap_out(&mut self, slot: Slot) -> bool {
        let request = self.request(slot);
        // What still waits to fork has nothing to keep, and beams of a batch in flight will share other
        // blocks than they do now.
        let is_forking = request.sequences.iter().any(|sequence| sequence.fork.is_some())
            || (request.beams.is_some() && request.num_in_flight > 0);
        if self.kv.swap_space().num_blocks() == 0 || is_forking {
            return false;
        }
        let rows = request.rows();
        let (blocks, num_tokens) = self.kv.distinct_blocks(&rows);
        let num_tokens = num_tokens as f64 / self.config.cache.groups.len() as f64;
        if blocks.len() as f64 * self.config.swap_cost >= num_tokens {
            return false;
        }
        let Some(swapped) = self.kv.swap_out(&rows) else { return false };
        self.counters.num_swaps += 1;
        self.counters.num_swapped_blocks += u64::from(swapped.num_blocks());
        let arrival = self.request(slot).rank.arrival;
        self.swapped_out.push((slot, arrival));
        let request = self.requests[slot as usize].as_mut().expect("a listed slot is taken");
        request.swapped = Some(swapped);
        request.num_swaps += 1;
        for sequence in &mut request.sequences {
            let Some(row) = sequence.row.take() else { continue };
            if sequence.is_idle {
                request.num_parked -= 1;
                self.num_parked -= 1;
            }
            self.free_rows.push(row);
        }
        let id = request.id;
        self.row_fills.retain(|fill| fill.1 != id);
        self.set_waiting(slot);
        true
    }

    /// Starts a request whose blocks are on the host. False if there is no room yet.
    pub(super) fn start_swapped(
        &mut self,
        slot: Slot,
        builder: &mut BatchBuilder<'_, '_>,
        record: &mut InFlight,
    ) -> bool {
        let request = self.request(slot);
        let Some(swapped) = &request.swapped else { return false };
        let groups = self.config.cache.groups.len() as u32;
        let active = |index: &usize| request.sequences[*index].is_live() && swapped.has_row(*index);
        let num_active = (0..request.sequences.len()).filter(active).count() as u32;
        let is_alone = self.running.is_empty() && self.in_flight.is_empty();
        let growth = if is_alone { 0 } else { num_active * groups + self.num_reserved() };
        let num_entries = num_active * groups * self.config.cache.blocks_per_row();
        let room = self.sizes.num_table_updates - self.kv.tables().updates().len();
        if swapped.num_blocks() + growth > self.kv.pool().num_free()
            || num_active > builder.budget
            || num_entries as usize > room
        {
            return false;
        }
        let request = self.requests[slot as usize].as_mut().expect("a listed slot is taken");
        let swapped = request.swapped.take().expect("checked above");
        request.run += 1;
        let mut rows = Vec::with_capacity(request.sequences.len());
        for (index, sequence) in request.sequences.iter_mut().enumerate() {
            if !sequence.is_live() {
                rows.push(None);
                continue;
            }
            let row = self.free_rows.pop().expect("counted before");
            sequence.row = Some(row);
            self.row_fills.push((row, request.id, index as u32));
            if sequence.is_idle {
                request.num_parked += 1;
                self.num_parked += 1;
                rows.push(None);
            } else {
                rows.push(Some((row, sequence.num_computed)));
            }
        }
        self.kv.swap_in(&swapped, &rows, &request.key);
        self.set_running(slot);
        self.hold_beams(slot);
        for (index, _) in rows.iter().enumerate().filter(|(_, row)| row.is_some()) {
            let budget = builder.budget;
            if !self.plan_sequence(slot, index, budget, builder, record) {
                builder.is_short_of_blocks = true;
                break;
            }
        }
        true
    }

    /// Forgets what a waiting request has on the host: it will be computed again.
    pub(super) fn drop_swapped(&mut self, slot: Slot) {
        let request = self.requests[slot as usize].as_mut().expect("a listed slot is taken");
        let Some(swapped) = request.swapped.take() else { return };
        for sequence in &mut request.sequences {
            sequence.num_computed = 0;
        }
        self.kv.drop_swapped(&swapped);
    }

    /// The batch that was to move these requests to the host did not run.
    pub(super) fn undo_swap_out(&mut self, swapped_out: &[(Slot, u64)]) {
        for (slot, arrival) in swapped_out {
            if self.live(*slot, *arrival).is_some() {
                self.drop_swapped(*slot);
            }
        }
    }

    pub(super) fn set_waiting(&mut self, slot: Slot) {
        self.running.retain(|other| *other != slot);
        let request = self.request_mut(slot);
        request.status = Status::Waiting;
        let rank = request.rank;
        self.waiting.insert(rank, slot);
    }

    pub(super) fn set_running(&mut self, slot: Slot) {
        let request = self.request_mut(slot);
        request.status = Status::Running;
        let rank = request.rank;
        self.waiting.remove(&rank);
        let at = self.running.partition_point(|other| self.request(*other).rank < rank);
        self.running.insert(at, slot);
    }
}
