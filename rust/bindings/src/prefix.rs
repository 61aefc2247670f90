//! What is cached of a prompt, as Python sees it.

use pagedkv_core::{CacheKey, KvCacheManager, Miss, TokenId, Tokens};
use pyo3::prelude::*;

/// How much of a prompt is cached, and where it leaves what is cached.
#[pyclass(frozen, get_all, module = "pagedkv._core")]
pub(crate) struct PrefixMatch {
    /// Tokens that a request with this prompt would not compute.
    num_cached_tokens: u32,
    /// Blocks that it would share whole.
    num_cached_blocks: u32,
    /// The first block that is not cached.
    missing_block: Option<u32>,
    /// Why it is not.
    miss: Option<&'static str>,
    /// What is cached in its place.
    cached_token_ids: Vec<TokenId>,
    /// How many leading tokens of the two are the same.
    num_equal: u32,
}

impl PrefixMatch {
    pub(crate) fn new(kv: &KvCacheManager, key: &CacheKey, tokens: &[TokenId]) -> Self {
        let found = kv.explain_prefix(key, Tokens::new(tokens, &[]));
        let (index, miss) = found.missing.as_ref().map(|block| (block.index, block.miss)).unzip();
        let (cached_token_ids, num_equal) =
            found.missing.map_or((Vec::new(), 0), |block| (block.cached, block.num_equal));
        Self {
            num_cached_tokens: found.num_cached_tokens,
            num_cached_blocks: found.num_cached_blocks,
            missing_block: index,
            miss: miss.map(miss_name),
            cached_token_ids,
            num_equal,
        }
    }
}

#[pymethods]
impl PrefixMatch {
    fn __repr__(&self) -> String {
        format!(
            "PrefixMatch(num_cached_tokens={}, num_cached_blocks={})",
            self.num_cached_tokens, self.num_cached_blocks
        )
    }
}

fn miss_name(miss: Miss) -> &'static str {
    match miss {
        Miss::CachingOff => "off",
        Miss::UnknownKey => "unknown",
        Miss::End => "end",
        Miss::Differs => "differs",
        Miss::Evicted => "evicted",
    }
}
