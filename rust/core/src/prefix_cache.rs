//! Finds blocks by their content.
//!
//! An *entry* is one full block of tokens below a parent entry; a root entry stands for a tenant's
//! salt and an adapter. An entry names the physical block that holds its content in each KV group,
//! where there is one. It lives as long as it has a block, a child or a pin, so a parent always
//! outlives its children and a chain can be walked even where a window group gave blocks back.
//!
//! ```text
//! root(adapter, salt) <- [t0 .. t15] <- [t16 .. t31] <- ...
//!                         | blocks per group            (index by keyed hash, tokens compared)
//! ```
//!
//! The hash nominates, the content decides: a hit needs the same parent entry and equal tokens, so
//! a collision costs a comparison and never serves foreign content.

use std::cmp::Reverse;
use std::hash::Hasher;

use hashbrown::HashTable;
use siphasher::sip::SipHasher13;

use crate::ids::{BlockId, TokenId};

/// An entry of the cache. Valid while the entry is pinned, or until the next mutation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId(u32);

impl EntryId {
    const fn index(self) -> usize {
        self.0 as usize
    }
}

/// What separates cached content besides its tokens: content is shared only under an equal key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheKey {
    /// The adapter that computed the content; 0 for none.
    pub adapter_id: u32,
    /// The tenant's salt; empty for none.
    pub salt: Vec<u8>,
}

#[derive(Clone, Debug)]
struct Entry {
    hash: u64,
    parent: Option<EntryId>,
    num_children: u32,
    num_blocks: u32,
    pins: u32,
    /// For roots only.
    key: Option<Box<CacheKey>>,
}

/// Index of full blocks by content.
#[derive(Clone, Debug)]
pub struct PrefixCache {
    block_size: usize,
    num_groups: usize,
    hash_key: u64,
    hash_mask: u64,
    max_entries: usize,
    entries: Vec<Entry>,
    /// `[entry, block_size]`
    tokens: Vec<TokenId>,
    /// `[entry, group]`
    blocks: Vec<BlockId>,
    vacant: Vec<EntryId>,
    by_content: HashTable<EntryId>,
    /// The most recent child of an entry for each first token.
    by_first_token: HashTable<EntryId>,
    num_blocks: u32,
}

impl PrefixCache {
    /// An empty cache for at most `num_blocks` blocks in `num_groups` groups.
    ///
    /// `hash_bits` below 64 forces collisions (for tests).
    pub fn new(
        num_blocks: u32,
        block_size: u32,
        num_groups: usize,
        hash_key: u64,
        hash_bits: u32,
    ) -> Self {
        // Entries without a block (roots, windows given back) need room as well.
        let max_entries = num_blocks as usize * 2 + 1024;
        Self {
            block_size: block_size as usize,
            num_groups,
            hash_key,
            hash_mask: u64::MAX >> (64 - hash_bits.clamp(1, 64)),
            max_entries,
            entries: Vec::with_capacity(max_entries),
            tokens: Vec::with_capacity(max_entries * block_size as usize),
            blocks: Vec::with_capacity(max_entries * num_groups),
            vacant: Vec::with_capacity(max_entries),
            by_content: HashTable::with_capacity(max_entries),
            by_first_token: HashTable::with_capacity(max_entries),
            num_blocks: 0,
        }
    }

    /// Blocks that can be found.
    pub const fn num_blocks(&self) -> u32 {
        self.num_blocks
    }

    /// The root of everything stored under `key`, if there is anything.
    pub fn root(&self, key: &CacheKey) -> Option<EntryId> {
        self.by_content
            .find(self.hash_root(key), |id| self.entries[id.index()].key.as_deref() == Some(key))
            .copied()
    }

    /// The root of everything stored under `key`, pinned for the caller. None if the cache is full.
    pub fn pin_root(&mut self, key: &CacheKey) -> Option<EntryId> {
        let root = if let Some(root) = self.root(key) {
            root
        } else {
            let hash = self.hash_root(key);
            self.insert_entry(hash, None, &[], Some(Box::new(key.clone())))?
        };
        self.pin(root);
        Some(root)
    }

    /// The child of `parent` with exactly these tokens.
    pub fn child(&self, parent: EntryId, tokens: &[TokenId]) -> Option<EntryId> {
        self.find(self.hash_child(parent, tokens), parent, tokens)
    }

    /// The most recent child of `parent` that starts like `tokens`, with the number of equal leading
    /// tokens (at least one, at most all of `tokens`).
    pub fn candidate(&self, parent: EntryId, tokens: &[TokenId]) -> Option<(EntryId, u32)> {
        let first = *tokens.first()?;
        let id = *self
            .by_first_token
            .find(self.hash_first(parent, first), |id| self.starts_below(*id, parent, first))?;
        Some((id, num_equal(self.tokens(id), tokens)))
    }

    /// The child of `parent` that shares the most leading tokens with `tokens`, with their number: O(entries).
    /// Of equally close ones, one whose blocks are held.
    pub fn closest_child(&self, parent: EntryId, tokens: &[TokenId]) -> Option<(EntryId, u32)> {
        self.by_content
            .iter()
            .filter(|id| self.parent(**id) == Some(parent))
            .map(|id| (*id, num_equal(self.tokens(*id), tokens)))
            .max_by_key(|(id, num_equal)| (*num_equal, self.has_all_blocks(*id), Reverse(*id)))
    }

    /// The child of `parent` with these tokens (a full block), made if absent. None if the cache is
    /// full.
    pub fn child_or_insert(&mut self, parent: EntryId, tokens: &[TokenId]) -> Option<EntryId> {
        debug_assert_eq!(tokens.len(), self.block_size);
        let hash = self.hash_child(parent, tokens);
        if let Some(found) = self.find(hash, parent, tokens) {
            return Some(found);
        }
        let id = self.insert_entry(hash, Some(parent), tokens, None)?;
        self.entries[parent.index()].num_children += 1;
        let first = self.hash_first(parent, tokens[0]);
        let Self { by_first_token, entries, tokens: stored, block_size, hash_key, .. } = self;
        let same = |other: &EntryId| {
            entries[other.index()].parent == Some(parent)
                && stored[other.index() * *block_size] == tokens[0]
        };
        match by_first_token.find_mut(first, same) {
            Some(recent) => *recent = id,
            None => {
                by_first_token.insert_unique(first, id, |other| {
                    let token = stored[other.index() * *block_size];
                    hash_first(*hash_key, entries[other.index()].parent, token)
                });
            }
        }
        Some(id)
    }

    /// The block that holds the content of `entry` in `group`; null if there is none.
    pub fn block(&self, entry: EntryId, group: usize) -> BlockId {
        self.blocks[entry.index() * self.num_groups + group]
    }

    /// Whether the content of `entry` is held in every group.
    pub fn has_all_blocks(&self, entry: EntryId) -> bool {
        self.entries[entry.index()].num_blocks as usize == self.num_groups
    }

    /// The tokens of `entry`; empty for a root.
    pub fn tokens(&self, entry: EntryId) -> &[TokenId] {
        if self.entries[entry.index()].parent.is_none() {
            return &[];
        }
        let start = entry.index() * self.block_size;
        &self.tokens[start..start + self.block_size]
    }

    /// The entry above `entry`; none above a root.
    pub fn parent(&self, entry: EntryId) -> Option<EntryId> {
        self.entries[entry.index()].parent
    }

    /// Declares that `block` holds the content of `entry` in `group`.
    pub fn set_block(&mut self, entry: EntryId, group: usize, block: BlockId) {
        let place = &mut self.blocks[entry.index() * self.num_groups + group];
        assert!(place.is_null(), "the content is already held by block {}", place.get());
        *place = block;
        self.entries[entry.index()].num_blocks += 1;
        self.num_blocks += 1;
    }

    /// Forgets `block`, whose slots are about to be reused.
    pub fn forget_block(&mut self, entry: EntryId, block: BlockId) {
        let start = entry.index() * self.num_groups;
        let place = self.blocks[start..start + self.num_groups]
            .iter_mut()
            .find(|place| **place == block)
            .expect("an evicted block is listed in its entry");
        *place = BlockId::NULL;
        self.entries[entry.index()].num_blocks -= 1;
        self.num_blocks -= 1;
        self.remove_if_dead(entry);
    }

    /// Keeps `entry` (not its blocks) alive.
    pub fn pin(&mut self, entry: EntryId) {
        self.entries[entry.index()].pins += 1;
    }

    /// Undoes one [`pin`](Self::pin).
    pub fn unpin(&mut self, entry: EntryId) {
        let state = &mut self.entries[entry.index()];
        assert!(state.pins > 0, "cache entry is not pinned");
        state.pins -= 1;
        self.remove_if_dead(entry);
    }

    fn find(&self, hash: u64, parent: EntryId, tokens: &[TokenId]) -> Option<EntryId> {
        self.by_content
            .find(hash, |id| {
                self.entries[id.index()].parent == Some(parent) && self.tokens(*id) == tokens
            })
            .copied()
    }

    fn insert_entry(
        &mut self,
        hash: u64,
        parent: Option<EntryId>,
        tokens: &[TokenId],
        key: Option<Box<CacheKey>>,
    ) -> Option<EntryId> {
        let entry = Entry { hash, parent, num_children: 0, num_blocks: 0, pins: 0, key };
        let id = if let Some(id) = self.vacant.pop() {
            self.entries[id.index()] = entry;
            id
        } else {
            if self.entries.len() == self.max_entries {
                return None;
            }
            self.entries.push(entry);
            self.tokens.resize(self.entries.len() * self.block_size, 0);
            self.blocks.resize(self.entries.len() * self.num_groups, BlockId::NULL);
            EntryId(self.entries.len() as u32 - 1)
        };
        let start = id.index() * self.block_size;
        self.tokens[start..start + tokens.len()].copy_from_slice(tokens);
        let entries = &self.entries;
        self.by_content.insert_unique(hash, id, |other| entries[other.index()].hash);
        Some(id)
    }

    fn remove_if_dead(&mut self, entry: EntryId) {
        let mut next = Some(entry);
        while let Some(id) = next {
            let state = &self.entries[id.index()];
            if state.num_blocks > 0 || state.num_children > 0 || state.pins > 0 {
                return;
            }
            next = state.parent;
            self.unindex(id);
            self.vacant.push(id);
            if let Some(parent) = next {
                self.entries[parent.index()].num_children -= 1;
            }
        }
    }

    fn unindex(&mut self, id: EntryId) {
        let hash = self.entries[id.index()].hash;
        self.by_content.find_entry(hash, |other| *other == id).expect("entry is indexed").remove();
        if let Some(parent) = self.entries[id.index()].parent {
            let first = self.hash_first(parent, self.tokens(id)[0]);
            if let Ok(recent) = self.by_first_token.find_entry(first, |other| *other == id) {
                recent.remove();
            }
        }
        self.entries[id.index()].key = None;
    }

    fn starts_below(&self, id: EntryId, parent: EntryId, first: TokenId) -> bool {
        self.entries[id.index()].parent == Some(parent)
            && self.tokens[id.index() * self.block_size] == first
    }

    fn hash_root(&self, key: &CacheKey) -> u64 {
        let mut hasher = SipHasher13::new_with_keys(self.hash_key, 0x726f_6f74);
        hasher.write_u32(key.adapter_id);
        hasher.write(&key.salt);
        hasher.finish() & self.hash_mask
    }

    fn hash_child(&self, parent: EntryId, tokens: &[TokenId]) -> u64 {
        let mut hasher =
            SipHasher13::new_with_keys(self.hash_key, self.entries[parent.index()].hash);
        for pair in tokens.chunks(2) {
            hasher.write_u64(u64::from(pair[0]) | u64::from(*pair.get(1).unwrap_or(&0)) << 32);
        }
        hasher.finish() & self.hash_mask
    }

    fn hash_first(&self, parent: EntryId, first: TokenId) -> u64 {
        hash_first(self.hash_key, Some(parent), first)
    }

    /// Entries reachable by content, for invariant checks: O(entries).
    pub(crate) fn check_invariants(&self, expected_pins: &[(EntryId, u32)]) -> Result<(), String> {
        let mut vacant = vec![false; self.entries.len()];
        for id in &self.vacant {
            vacant[id.index()] = true;
        }
        let mut children = vec![0; self.entries.len()];
        let mut pins = vec![0; self.entries.len()];
        for (id, count) in expected_pins {
            pins[id.index()] += count;
        }
        let live = (0..self.entries.len()).filter(|i| !vacant[*i]);
        for i in live.clone() {
            if let Some(parent) = self.entries[i].parent {
                if vacant[parent.index()] {
                    return Err(format!("cache entry {i} outlives its parent"));
                }
                children[parent.index()] += 1;
            }
        }
        let mut num_blocks = 0;
        for i in live {
            let entry = &self.entries[i];
            let id = EntryId(i as u32);
            let held = (0..self.num_groups).filter(|g| !self.block(id, *g).is_null()).count();
            num_blocks += held;
            if (held as u32, children[i], pins[i])
                != (entry.num_blocks, entry.num_children, entry.pins)
            {
                return Err(format!("cache entry {i} miscounts its blocks, children or pins"));
            }
            if held == 0 && children[i] == 0 && pins[i] == 0 {
                return Err(format!("cache entry {i} is dead but present"));
            }
            if let Some(parent) = entry.parent
                && self.hash_child(parent, self.tokens(id)) != entry.hash
            {
                return Err(format!("cache entry {i} does not hash to its key"));
            }
            if self.by_content.find(entry.hash, |other| *other == id).is_none() {
                return Err(format!("cache entry {i} cannot be found"));
            }
        }
        if num_blocks != self.num_blocks as usize {
            return Err("the cache's block count does not add up".to_owned());
        }
        Ok(())
    }
}

/// Leading tokens in common.
fn num_equal(stored: &[TokenId], tokens: &[TokenId]) -> u32 {
    stored.iter().zip(tokens).take_while(|(a, b)| a == b).count() as u32
}

fn hash_first(hash_key: u64, parent: Option<EntryId>, first: TokenId) -> u64 {
    let parent = parent.map_or(u32::MAX, |parent| parent.0);
    let mut hasher = SipHasher13::new_with_keys(hash_key, 0x6669_7273_7421);
    hasher.write_u64(u64::from(parent) | u64::from(first) << 32);
    hasher.finish()
}
