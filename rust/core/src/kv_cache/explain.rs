//! Why a prompt is not served whole from cached blocks.

use super::KvCacheManager;
use crate::ids::TokenId;
use crate::prefix_cache::CacheKey;
use crate::tokens::Tokens;

/// Why a block of a prompt is not cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss {
    /// Nothing is looked up.
    CachingOff,
    /// Nothing is cached under the key at all.
    UnknownKey,
    /// Nothing is cached after the blocks before it.
    End,
    /// What is cached there has other tokens.
    Differs,
    /// It was cached; its slots were reused, or left a window.
    Evicted,
}

/// The first block of a prompt that is not cached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingBlock {
    /// Its place in the prompt.
    pub index: u32,
    /// Why it is missing.
    pub miss: Miss,
    /// The tokens of the block that is cached in its place and starts most like it; empty if there is none.
    pub cached: Vec<TokenId>,
    /// How many leading tokens of the two are the same.
    pub num_equal: u32,
}

/// How much of a prompt is cached; made by [`KvCacheManager::explain_prefix`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefixMatch {
    /// Tokens that a request with this prompt would not compute; its last one always runs.
    pub num_cached_tokens: u32,
    /// Blocks that it would share whole.
    pub num_cached_blocks: u32,
    /// None if all of the prompt's tokens are cached.
    pub missing: Option<MissingBlock>,
}

impl KvCacheManager {
    /// How much of a prompt is cached under `key`, and where it leaves what is cached. For people: it is
    /// O(entries), and changes nothing.
    pub fn explain_prefix(&self, key: &CacheKey, tokens: Tokens<'_>) -> PrefixMatch {
        let hit = self.find_prefix(key, tokens, tokens.len().saturating_sub(1));
        PrefixMatch {
            num_cached_tokens: hit.num_tokens,
            num_cached_blocks: hit.num_whole_blocks(),
            missing: self.missing_block(key, tokens),
        }
    }

    fn missing_block(&self, key: &CacheKey, tokens: Tokens<'_>) -> Option<MissingBlock> {
        let without =
            |miss| Some(MissingBlock { index: 0, miss, cached: Vec::new(), num_equal: 0 });
        let Some(cache) = &self.cache else { return without(Miss::CachingOff) };
        let Some(root) = cache.root(key) else { return without(Miss::UnknownKey) };
        let known = self.known_blocks(root, tokens, tokens.len());
        let index = self.longest_usable(&known);
        let start = index * self.config.block_size;
        if start >= tokens.len() {
            return None;
        }
        let parent = index.checked_sub(1).map_or(root, |last| known[last as usize]);
        let mut scratch = Vec::new();
        let wanted = tokens.slice(start, start + self.config.block_size, &mut scratch);
        let Some((entry, num_equal)) = cache.closest_child(parent, wanted) else {
            let miss = if index == 0 { Miss::UnknownKey } else { Miss::End };
            return Some(MissingBlock { index, miss, cached: Vec::new(), num_equal: 0 });
        };
        let is_equal = num_equal as usize == wanted.len();
        if is_equal && cache.has_all_blocks(entry) {
            return None;
        }
        let miss = if is_equal { Miss::Evicted } else { Miss::Differs };
        Some(MissingBlock { index, miss, cached: cache.tokens(entry).to_vec(), num_equal })
    }
}
