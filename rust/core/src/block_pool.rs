//! All blocks of the KV cache: reference counts, pins and the list of those that are free.
//!
//! A block is free when no table refers to it and nothing pins it. Free blocks form one list,
//! threaded through the block array; the null block is its head and tail. Blocks whose content is
//! cached go to the back (least recently freed is reused first), all others to the front.
//!
//! ```text
//!        reuse next                                   reuse last
//! NULL <-> uncached <-> uncached <-> tail of a chain <-> its head <-> NULL
//! ```
//!
//! Every operation is O(1).

use crate::ids::BlockId;
use crate::prefix_cache::EntryId;

#[derive(Clone, Debug)]
struct Block {
    ref_count: u32,
    pins: u32,
    /// Neighbours in the free list; meaningless while the block is in use.
    prev: BlockId,
    next: BlockId,
    /// Leading slots that hold tokens.
    num_filled: u32,
    /// The cache entry whose content this block holds.
    entry: Option<EntryId>,
}

/// Owner of every block's state.
#[derive(Clone, Debug)]
pub struct BlockPool {
    blocks: Vec<Block>,
    num_free: u32,
    num_referenced: u32,
    num_references: u64,
    num_filled_slots: u64,
}

impl BlockPool {
    /// A pool of `num_blocks` blocks, the null block included; all others are free.
    pub fn new(num_blocks: u32) -> Self {
        let blocks = (0..num_blocks)
            .map(|i| Block {
                ref_count: 0,
                pins: 0,
                prev: BlockId::new(i.checked_sub(1).unwrap_or(num_blocks - 1)),
                next: BlockId::new((i + 1) % num_blocks),
                num_filled: 0,
                entry: None,
            })
            .collect();
        Self {
            blocks,
            num_free: num_blocks - 1,
            num_referenced: 0,
            num_references: 0,
            num_filled_slots: 0,
        }
    }

    /// Blocks that [`allocate`](Self::allocate) can hand out.
    pub const fn num_free(&self) -> u32 {
        self.num_free
    }

    /// Blocks that at least one table refers to.
    pub const fn num_referenced(&self) -> u32 {
        self.num_referenced
    }

    /// Table entries that refer to a block: what the sequences would hold if nothing were shared.
    pub const fn num_references(&self) -> u64 {
        self.num_references
    }

    /// Slots of referenced blocks that hold tokens.
    pub const fn num_filled_slots(&self) -> u64 {
        self.num_filled_slots
    }

    /// How many table entries refer to `block`.
    pub fn ref_count(&self, block: BlockId) -> u32 {
        self.blocks[block.index()].ref_count
    }

    /// Whether `block` is in the free list.
    pub fn is_free(&self, block: BlockId) -> bool {
        let block = &self.blocks[block.index()];
        block.ref_count == 0 && block.pins == 0
    }

    /// How many of the first slots of `block` hold tokens.
    pub fn num_filled(&self, block: BlockId) -> u32 {
        self.blocks[block.index()].num_filled
    }

    /// The cache entry whose content `block` holds.
    pub fn entry(&self, block: BlockId) -> Option<EntryId> {
        self.blocks[block.index()].entry
    }

    /// Declares that `block` holds the content of `entry`, or of none.
    pub fn set_entry(&mut self, block: BlockId, entry: Option<EntryId>) {
        assert!(!block.is_null(), "the null block holds no content");
        self.blocks[block.index()].entry = entry;
    }

    /// Takes the free block that is to be reused first, with one reference. The entry whose
    /// content it held, if any, is returned and must be forgotten by the cache.
    pub fn allocate(&mut self) -> Option<(BlockId, Option<EntryId>)> {
        let block = self.blocks[0].next;
        if block.is_null() {
            return None;
        }
        self.unlink(block);
        let state = &mut self.blocks[block.index()];
        state.ref_count = 1;
        state.num_filled = 0;
        self.num_referenced += 1;
        self.num_references += 1;
        Some((block, state.entry.take()))
    }

    /// Adds a reference.
    pub fn acquire(&mut self, block: BlockId) {
        assert!(!block.is_null(), "the null block is not counted");
        if self.is_free(block) {
            self.unlink(block);
        }
        let state = &mut self.blocks[block.index()];
        state.ref_count += 1;
        self.num_references += 1;
        if state.ref_count == 1 {
            self.num_referenced += 1;
            self.num_filled_slots += u64::from(state.num_filled);
        }
    }

    /// Drops a reference; true if it was the last one.
    pub fn release(&mut self, block: BlockId) -> bool {
        assert!(!block.is_null(), "the null block is not counted");
        let state = &mut self.blocks[block.index()];
        assert!(state.ref_count > 0, "double free of block {}", block.get());
        state.ref_count -= 1;
        self.num_references -= 1;
        let was_last = state.ref_count == 0;
        if was_last {
            self.num_referenced -= 1;
            self.num_filled_slots -= u64::from(state.num_filled);
            self.link_if_free(block);
        }
        was_last
    }

    /// Keeps `block` out of the free list until [`unpin`](Self::unpin), references or not.
    pub fn pin(&mut self, block: BlockId) {
        assert!(!block.is_null(), "the null block is not counted");
        if self.is_free(block) {
            self.unlink(block);
        }
        self.blocks[block.index()].pins += 1;
    }

    /// Undoes one [`pin`](Self::pin).
    pub fn unpin(&mut self, block: BlockId) {
        let state = &mut self.blocks[block.index()];
        assert!(state.pins > 0, "block {} is not pinned", block.get());
        state.pins -= 1;
        self.link_if_free(block);
    }

    /// Declares that the first `num_filled` slots of a referenced block hold tokens.
    pub fn fill(&mut self, block: BlockId, num_filled: u32) {
        let state = &mut self.blocks[block.index()];
        assert!(state.ref_count > 0, "write to free block {}", block.get());
        if num_filled > state.num_filled {
            self.num_filled_slots += u64::from(num_filled - state.num_filled);
            state.num_filled = num_filled;
        }
    }

    /// The free blocks in the order of their reuse. For tests and diagnosis: O(free).
    pub fn free_blocks(&self) -> impl Iterator<Item = BlockId> + '_ {
        let first = self.blocks[0].next;
        std::iter::successors((!first.is_null()).then_some(first), |block| {
            let next = self.blocks[block.index()].next;
            (!next.is_null()).then_some(next)
        })
    }

    fn unlink(&mut self, block: BlockId) {
        let Block { prev, next, .. } = self.blocks[block.index()];
        self.blocks[prev.index()].next = next;
        self.blocks[next.index()].prev = prev;
        self.num_free -= 1;
    }

    fn link_if_free(&mut self, block: BlockId) {
        if !self.is_free(block) {
            return;
        }
        let head = BlockId::NULL;
        let (prev, next) = if self.blocks[block.index()].entry.is_some() {
            (self.blocks[head.index()].prev, head)
        } else {
            (head, self.blocks[head.index()].next)
        };
        self.blocks[block.index()].prev = prev;
        self.blocks[block.index()].next = next;
        self.blocks[prev.index()].next = block;
        self.blocks[next.index()].prev = block;
        self.num_free += 1;
    }

    /// Checks the list and the counters against `expected_refs` and `expected_pins`, which the owner
    /// of the tables has counted per block. O(blocks).
    ///
    /// # Errors
    /// The first statement found to be false.
    pub fn check_invariants(
        &self,
        expected_refs: &[u32],
        expected_pins: &[u32],
    ) -> Result<(), String> {
        let mut listed = vec![false; self.blocks.len()];
        let mut previous = BlockId::NULL;
        let mut num_listed = 0;
        for block in self.free_blocks() {
            if std::mem::replace(&mut listed[block.index()], true) {
                return Err(format!("block {} is in the free list twice", block.get()));
            }
            if self.blocks[block.index()].prev != previous {
                return Err(format!("free list is broken before block {}", block.get()));
            }
            previous = block;
            num_listed += 1;
        }
        if num_listed != self.num_free || self.blocks[0].prev != previous {
            return Err(format!("{num_listed} blocks listed as free, {} counted", self.num_free));
        }
        let mut filled = 0;
        let mut referenced = 0;
        for (i, block) in self.blocks.iter().enumerate().skip(1) {
            if block.ref_count != expected_refs[i] || block.pins != expected_pins[i] {
                return Err(format!(
                    "block {i} counts {} references and {} pins, but {} and {} exist",
                    block.ref_count, block.pins, expected_refs[i], expected_pins[i]
                ));
            }
            if listed[i] != (block.ref_count == 0 && block.pins == 0) {
                return Err(format!("block {i} is in the wrong state for the free list"));
            }
            if block.ref_count > 0 {
                referenced += 1;
                filled += u64::from(block.num_filled);
            }
        }
        let total: u64 = expected_refs.iter().map(|&n| u64::from(n)).sum();
        if (referenced, total, filled)
            != (self.num_referenced, self.num_references, self.num_filled_slots)
        {
            return Err("the pool's totals do not add up".to_owned());
        }
        Ok(())
    }
}
