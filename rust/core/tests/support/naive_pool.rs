//! Block counts, contents and the free list, as plain vectors.

use std::collections::VecDeque;

use pagedkv_core::TokenId;

/// What a block or a slot holds: tenant, group and everything from the start of the sequence.
pub(crate) type Content = (u32, usize, Vec<TokenId>);
/// Pinned blocks with the batch after which each pin goes.
pub(crate) type Pins = VecDeque<(u64, u32)>;

#[derive(Clone, Debug)]
pub(crate) struct NaivePool {
    pub(crate) refs: Vec<u32>,
    pins: Vec<u32>,
    pub(crate) content: Vec<Option<Content>>,
    /// In the order of reuse.
    pub(crate) free: Vec<u32>,
    pub(crate) deferred: Pins,
    pub(crate) sources: Pins,
    pub(crate) num_begun: u64,
    pub(crate) num_ended: u64,
}

impl NaivePool {
    pub(crate) fn new(num_blocks: u32) -> Self {
        Self {
            refs: vec![0; num_blocks as usize],
            pins: vec![0; num_blocks as usize],
            content: vec![None; num_blocks as usize],
            free: (1..num_blocks).collect(),
            deferred: Pins::new(),
            sources: Pins::new(),
            num_begun: 0,
            num_ended: 0,
        }
    }

    /// The block whose content is known to be `content`.
    pub(crate) fn holder(&self, content: &Content) -> Option<u32> {
        self.content.iter().position(|other| other.as_ref() == Some(content)).map(|id| id as u32)
    }

    pub(crate) fn allocate(&mut self) -> u32 {
        let block = self.free.remove(0);
        self.refs[block as usize] = 1;
        self.content[block as usize] = None;
        block
    }

    pub(crate) fn release(&mut self, block: u32) {
        if self.num_begun > self.num_ended && self.refs[block as usize] == 1 {
            self.pins[block as usize] += 1;
            self.deferred.push_back((self.num_begun, block));
        }
        self.refs[block as usize] -= 1;
        self.add_to_free(block);
    }

    pub(crate) fn pin_until_copied(&mut self, block: u32) {
        self.take_from_free(block);
        self.pins[block as usize] += 1;
        self.sources.push_back((self.num_begun + 1, block));
    }

    pub(crate) fn release_due(&mut self) {
        for is_source in [false, true] {
            let queue = if is_source { &mut self.sources } else { &mut self.deferred };
            let is_due = |pin: &&(u64, u32)| pin.0 <= self.num_ended;
            let count = queue.iter().take_while(is_due).count();
            for (_, block) in queue.drain(..count).collect::<Vec<_>>() {
                self.pins[block as usize] -= 1;
                self.add_to_free(block);
            }
        }
    }

    pub(crate) fn take_from_free(&mut self, block: u32) {
        self.free.retain(|other| *other != block);
    }

    pub(crate) fn add_to_free(&mut self, block: u32) {
        if self.refs[block as usize] == 0 && self.pins[block as usize] == 0 {
            let at = if self.content[block as usize].is_some() { self.free.len() } else { 0 };
            self.free.insert(at, block);
        }
    }

    pub(crate) fn cancel_batch(&mut self) {
        self.num_begun -= 1;
        for (batch, _) in self.deferred.iter_mut().chain(&mut self.sources) {
            *batch = self.num_begun.min(*batch);
        }
        self.release_due();
    }
}
