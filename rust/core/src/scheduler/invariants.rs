//! What must hold between any two calls.

use super::Scheduler;
use crate::kv_cache::Swapped;
use crate::request::{Request, Status};

impl Scheduler {
    /// Checks the scheduler, its blocks and the cache against each other. O(everything).
    ///
    /// # Errors
    /// The first statement found to be false.
    pub fn check_invariants(&self) -> Result<(), String> {
        self.kv.check_invariants()?;
        self.check_queues()?;
        let mut owners = vec![0_u32; self.config.max_num_seqs() as usize];
        for row in &self.free_rows {
            owners[row.index()] += 1;
        }
        let mut num_parked = 0;
        for request in self.requests.iter().flatten() {
            for (index, sequence) in request.sequences.iter().enumerate() {
                if let Some(row) = sequence.row {
                    owners[row.index()] += 1;
                    num_parked += u32::from(sequence.is_parked());
                }
                self.check_sequence(request, index)?;
            }
        }
        if let Some(row) = owners.iter().position(|n| *n != 1) {
            return Err(format!("row {row} has {} owners", owners[row]));
        }
        if num_parked != self.num_parked {
            return Err("parked rows are miscounted".to_owned());
        }
        if self.requests.iter().flatten().count() != self.slot_of.len() {
            return Err("a request is lost".to_owned());
        }
        if !self.has_unfinished() && self.in_flight.is_empty() && self.kv.has_deferred() {
            return Err("blocks wait for a batch although none is in flight".to_owned());
        }
        let num_swapped: u32 = self
            .requests
            .iter()
            .flatten()
            .filter_map(|request| request.swapped.as_ref())
            .map(Swapped::num_blocks)
            .sum();
        if num_swapped != self.kv.swap_space().num_used() {
            return Err("blocks of the host are miscounted".to_owned());
        }
        if !self.has_unfinished() && self.kv.pool().num_referenced() != 0 {
            return Err("an idle scheduler holds blocks".to_owned());
        }
        Ok(())
    }

    fn check_queues(&self) -> Result<(), String> {
        let ranks: Vec<_> = self.running.iter().map(|slot| self.request(*slot).rank).collect();
        if !ranks.is_sorted() {
            return Err("running requests are out of order".to_owned());
        }
        if self.running.iter().any(|slot| self.request(*slot).status != Status::Running) {
            return Err("a request that does not run is listed as running".to_owned());
        }
        for (rank, slot) in &self.waiting {
            let request = self.request(*slot);
            if request.status != Status::Waiting || request.rank != *rank {
                return Err(format!("request {} waits under a wrong rank", request.id));
            }
            if request.sequences.iter().any(|sequence| sequence.row.is_some()) {
                return Err(format!("request {} waits but holds a row", request.id));
            }
        }
        let num_live = self
            .requests
            .iter()
            .flatten()
            .filter(|request| request.status != Status::Finished)
            .count();
        if num_live != self.running.len() + self.waiting.len() {
            return Err("a live request is in no queue, or in two".to_owned());
        }
        Ok(())
    }

    fn check_sequence(&self, request: &Request, index: usize) -> Result<(), String> {
        let sequence = &request.sequences[index];
        let name = format!("request {} sequence {index}", request.id);
        if sequence.num_computed > request.num_tokens(index) {
            return Err(format!("{name} computed more tokens than it has"));
        }
        if sequence.num_output() > request.max_output {
            return Err(format!("{name} is longer than it may be"));
        }
        let is_running = request.status == Status::Running && sequence.is_live();
        if is_running != sequence.row.is_some() {
            return Err(format!("{name} has a row and does not run, or the reverse"));
        }
        let Some(row) = sequence.row.filter(|_| !sequence.is_parked()) else { return Ok(()) };
        let block_size = self.config.cache.block_size;
        if self.kv.num_columns(row) != sequence.num_computed.div_ceil(block_size) {
            return Err(format!("{name} holds blocks for other than its computed tokens"));
        }
        self.kv.check_content(row, request.tokens(index))
    }
}
