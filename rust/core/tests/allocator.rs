//! The block pool, the prefix cache and the block tables, one behaviour a test.

use pagedkv_core::{
    BlockId, BlockPool, CacheConfig, CacheKey, GroupKind, KvCacheManager, Miss, PrefixCache, RowId,
    TokenId, Tokens,
};

fn id(block: u32) -> BlockId {
    BlockId::new(block)
}

fn free(pool: &BlockPool) -> Vec<u32> {
    pool.free_blocks().map(BlockId::get).collect()
}

/// A pool in which all blocks are in use, with a cache to give them content from.
fn full_pool(num_blocks: u32) -> (BlockPool, PrefixCache) {
    let mut pool = BlockPool::new(num_blocks);
    while pool.allocate().is_some() {}
    (pool, PrefixCache::new(num_blocks, 2, 1, 0, 64))
}

#[test]
fn a_fresh_pool_hands_out_its_blocks_in_order_and_never_the_null_block() {
    let mut pool = BlockPool::new(4);
    let ids: Vec<_> = std::iter::from_fn(|| pool.allocate()).map(|(id, _)| id.get()).collect();
    assert_eq!(ids, [1, 2, 3]);
    assert_eq!((pool.num_free(), pool.num_referenced()), (0, 3));
}

#[test]
fn uncached_blocks_are_reused_first_and_cached_ones_in_the_order_they_were_freed() {
    let (mut pool, mut cache) = full_pool(6);
    let root = cache.pin_root(&CacheKey::default()).unwrap();
    for (block, tokens) in [(1, [1, 1]), (2, [2, 2]), (3, [3, 3])] {
        let entry = cache.child_or_insert(root, &tokens).unwrap();
        pool.set_entry(id(block), Some(entry));
    }
    for block in [2, 4, 1, 5, 3] {
        pool.release(id(block));
    }
    assert_eq!(free(&pool), [5, 4, 2, 1, 3]);
    let (block, evicted) = pool.allocate().unwrap();
    assert_eq!((block, evicted), (id(5), None));
    pool.allocate();
    assert!(pool.allocate().unwrap().1.is_some(), "the content of block 2 is evicted");
}

#[test]
fn a_free_block_that_is_found_again_leaves_the_middle_of_the_list() {
    let mut pool = BlockPool::new(6);
    pool.acquire(id(3));
    assert_eq!(free(&pool), [1, 2, 4, 5]);
    pool.acquire(id(3));
    assert!(!pool.release(id(3)), "one reference is left");
    assert!(pool.release(id(3)));
    assert_eq!(free(&pool), [3, 1, 2, 4, 5]);
}

#[test]
fn a_pinned_block_stays_out_of_the_list() {
    let (mut pool, _) = full_pool(3);
    pool.pin(id(1));
    pool.release(id(1));
    assert_eq!(free(&pool), []);
    pool.unpin(id(1));
    assert_eq!(free(&pool), [1]);
}

#[test]
fn slots_of_a_shared_block_are_counted_once() {
    let (mut pool, _) = full_pool(3);
    pool.fill(id(1), 3);
    pool.acquire(id(1));
    assert_eq!((pool.num_filled_slots(), pool.num_references()), (3, 3));
    pool.release(id(1));
    pool.release(id(1));
    assert_eq!(pool.num_filled_slots(), 0);
}

#[test]
#[should_panic(expected = "double free of block 1")]
fn a_double_free_is_an_assertion() {
    let mut pool = BlockPool::new(3);
    pool.allocate();
    pool.release(id(1));
    pool.release(id(1));
}

#[test]
#[should_panic(expected = "the null block is not counted")]
fn freeing_the_null_block_is_an_assertion() {
    BlockPool::new(3).release(BlockId::NULL);
}

#[test]
#[should_panic(expected = "write to free block 2")]
fn writing_to_a_free_block_is_an_assertion() {
    BlockPool::new(3).fill(id(2), 1);
}

#[test]
fn equal_tokens_below_another_parent_are_other_content() {
    let mut cache = PrefixCache::new(8, 2, 1, 0, 64);
    let root = cache.pin_root(&CacheKey::default()).unwrap();
    let a = cache.child_or_insert(root, &[1, 2]).unwrap();
    cache.pin(a);
    let below = cache.child_or_insert(a, &[1, 2]).unwrap();
    assert_ne!(a, below);
    assert_eq!(cache.child(root, &[1, 2]), Some(a));
    assert_eq!(cache.child(a, &[1, 2]), Some(below));
    assert_eq!(cache.child(below, &[1, 2]), None);
}

#[test]
fn salts_and_adapters_keep_content_apart() {
    let mut cache = PrefixCache::new(8, 2, 1, 0, 1);
    let keys = [(0, ""), (0, "a"), (1, ""), (1, "a")]
        .map(|(adapter_id, salt)| CacheKey { adapter_id, salt: salt.as_bytes().to_vec() });
    let roots = keys.clone().map(|key| cache.pin_root(&key).unwrap());
    for (i, root) in roots.iter().enumerate() {
        assert!(!roots[..i].contains(root), "root {i} is shared");
        assert_eq!(cache.child(*root, &[1, 2]), None);
        let entry = cache.child_or_insert(*root, &[1, 2]).unwrap();
        cache.pin(entry);
    }
    assert_eq!(cache.pin_root(&keys[2]), Some(roots[2]));
}

#[test]
fn a_hash_of_8_bits_collides_and_never_confuses() {
    let mut cache = PrefixCache::new(4000, 2, 1, 0, 8);
    let root = cache.pin_root(&CacheKey::default()).unwrap();
    let mut entries = Vec::new();
    for token in 0..1000 {
        let entry = cache.child_or_insert(root, &[token, token + 1]).unwrap();
        cache.pin(entry);
        entries.push((entry, token));
    }
    for (entry, token) in entries {
        assert_eq!(cache.child(root, &[token, token + 1]), Some(entry));
        assert_eq!(cache.tokens(entry), [token, token + 1]);
        assert_eq!(cache.child(root, &[token, token + 2]), None);
        assert_eq!(cache.child(entry, &[token, token + 1]), None);
    }
}

#[test]
fn an_entry_lives_as_long_as_its_block_or_a_child() {
    let mut cache = PrefixCache::new(8, 2, 1, 0, 64);
    let root = cache.pin_root(&CacheKey::default()).unwrap();
    let parent = cache.child_or_insert(root, &[1, 2]).unwrap();
    cache.set_block(parent, 0, id(1));
    let child = cache.child_or_insert(parent, &[3, 4]).unwrap();
    cache.set_block(child, 0, id(2));
    cache.forget_block(parent, id(1));
    assert_eq!(cache.child(root, &[1, 2]), Some(parent), "its child still needs it");
    assert!(!cache.has_all_blocks(parent));
    cache.forget_block(child, id(2));
    assert_eq!(cache.child(root, &[1, 2]), None, "nothing needs it");
    assert_eq!(cache.num_blocks(), 0);
}

#[test]
fn the_most_recent_child_that_starts_alike_is_the_candidate() {
    let mut cache = PrefixCache::new(8, 4, 1, 0, 64);
    let root = cache.pin_root(&CacheKey::default()).unwrap();
    let mut insert = |tokens: [TokenId; 4]| {
        let entry = cache.child_or_insert(root, &tokens).unwrap();
        cache.pin(entry);
        entry
    };
    let [_, second, other] = [[1, 2, 3, 4], [1, 2, 9, 9], [5, 5, 5, 5]].map(&mut insert);
    assert_eq!(cache.candidate(root, &[1, 2, 3, 4]), Some((second, 2)));
    assert_eq!(cache.candidate(root, &[5, 5, 6]), Some((other, 2)));
    assert_eq!(cache.candidate(root, &[7]), None);
    assert_eq!(cache.candidate(root, &[]), None);
}

// --- block tables ---------------------------------------------------------------------------------

fn manager(num_blocks: u32, groups: &[GroupKind]) -> KvCacheManager {
    let config = CacheConfig {
        num_blocks,
        num_swap_blocks: 0,
        block_size: 4,
        groups: groups.to_vec(),
        num_rows: 8,
        max_model_len: 256,
        enable_prefix_caching: true,
        hash_key: 0,
        hash_bits: 64,
    };
    KvCacheManager::new(config, usize::MAX)
}

const A: RowId = RowId::new(0);
const B: RowId = RowId::new(1);

/// Computes `tokens` in a row and makes them findable.
fn compute(kv: &mut KvCacheManager, row: RowId, tokens: &[TokenId]) {
    kv.open_row(row, &CacheKey::default());
    assert_eq!(kv.reserve(row, 0, tokens.len() as u32), tokens.len() as u32);
    run(kv);
    kv.commit(row, Tokens::new(tokens, &[]), tokens.len() as u32);
}

fn run(kv: &mut KvCacheManager) {
    kv.begin_batch();
    kv.end_batch();
    kv.check_invariants().unwrap();
}

fn blocks(kv: &KvCacheManager, group: usize, row: RowId) -> Vec<u32> {
    kv.tables().line(group, row)[..kv.num_columns(row) as usize].to_vec()
}

#[test]
fn a_fork_allocates_nothing_and_only_the_first_write_copies() {
    let mut kv = manager(40, &[GroupKind::Full, GroupKind::Sliding(100)]);
    kv.open_row(A, &CacheKey::default());
    kv.reserve(A, 0, 6);
    let num_free = kv.pool().num_free();
    let rows: Vec<_> = (0..5).map(RowId::new).collect();
    for child in &rows[1..] {
        kv.fork(A, *child, 6);
    }
    assert_eq!(kv.pool().num_free(), num_free, "a fork takes no block");
    run(&mut kv);
    for (i, row) in rows.iter().enumerate() {
        kv.reserve(*row, 6, 7);
        let is_last = i + 1 == rows.len();
        assert_eq!(
            kv.copies().len(),
            2 * (i + 1 - usize::from(is_last)),
            "the last writes in place"
        );
    }
    run(&mut kv);
    for row in &rows {
        kv.reserve(*row, 7, 8);
    }
    assert!(kv.copies().is_empty(), "only the first write copies");
    assert_eq!(kv.counters().num_cow_copies, 2 * 4);
    let shared: Vec<_> = rows.iter().map(|row| blocks(&kv, 0, *row)[0]).collect();
    assert!(shared.iter().all(|block| *block == shared[0]), "full blocks stay shared");
}

#[test]
fn a_full_pool_reserves_what_it_can_and_changes_nothing_when_it_can_do_nothing() {
    let mut kv = manager(4, &[GroupKind::Full]);
    kv.open_row(A, &CacheKey::default());
    assert_eq!(kv.reserve(A, 0, 100), 12);
    kv.open_row(B, &CacheKey::default());
    assert_eq!(kv.reserve(B, 0, 5), 0);
    assert_eq!((kv.num_columns(B), kv.pool().num_free()), (0, 0));
    kv.check_invariants().unwrap();
}

#[test]
fn the_last_token_of_a_prompt_is_never_taken_from_the_cache() {
    let prompt: Vec<TokenId> = (0..8).collect();
    let mut kv = manager(20, &[GroupKind::Full]);
    compute(&mut kv, A, &prompt);
    let hit = kv.find_prefix(&CacheKey::default(), Tokens::new(&prompt, &[]), 7);
    assert_eq!(hit.num_tokens, 7, "one whole block, three slots of the next");
    kv.open_row(B, &CacheKey::default());
    assert_eq!(kv.attach_prefix(B, &hit), 7);
    assert_eq!(kv.copies().len(), 1);
    assert_eq!(kv.tables().get(0, A, 0), kv.tables().get(0, B, 0));
    assert_ne!(kv.tables().get(0, A, 1), kv.tables().get(0, B, 1));
    kv.check_invariants().unwrap();
}

#[test]
fn a_chain_loses_its_tail_first() {
    let prompt: Vec<TokenId> = (0..12).collect();
    let mut kv = manager(5, &[GroupKind::Full]);
    compute(&mut kv, A, &prompt);
    kv.close_row(A);
    let mut num_cached = Vec::new();
    for num_tokens in [4, 8, 12] {
        kv.open_row(B, &CacheKey { adapter_id: 1, salt: Vec::new() });
        kv.reserve(B, 0, num_tokens);
        let hit = kv.find_prefix(&CacheKey::default(), Tokens::new(&prompt, &[]), 12);
        num_cached.push(hit.num_tokens);
        kv.close_row(B);
    }
    assert_eq!(num_cached, [12, 8, 4]);
}

#[test]
fn a_prompt_is_explained_by_the_closest_block_that_is_cached_in_the_place_of_its_first_missing_one()
{
    let mut kv = manager(20, &[GroupKind::Full]);
    let explain = |kv: &KvCacheManager, adapter_id, tokens: &[TokenId]| {
        let found =
            kv.explain_prefix(&CacheKey { adapter_id, salt: Vec::new() }, Tokens::new(tokens, &[]));
        let missing = found.missing.map(|m| (m.index, m.miss, m.cached, m.num_equal));
        (found.num_cached_tokens, found.num_cached_blocks, missing)
    };
    let prompt: Vec<TokenId> = (0..8).collect();
    let none = Vec::new();
    compute(&mut kv, A, &prompt);
    compute(&mut kv, B, &[0, 1, 2, 3, 4, 8, 8, 8]);
    let closest = |num_equal| (1, Miss::Differs, vec![4, 5, 6, 7], num_equal);
    // The most recent block that starts alike is copied from; the closest one is shown.
    assert_eq!(explain(&kv, 0, &[0, 1, 2, 3, 4, 5, 6, 9]), (5, 1, Some(closest(3))));
    assert_eq!(explain(&kv, 0, &[0, 1, 2, 3, 4, 5, 9]), (5, 1, Some(closest(2))));
    assert_eq!(explain(&kv, 0, &prompt), (5, 1, None));
    assert_eq!(explain(&kv, 0, &prompt[..3]), (2, 0, None));
    let long: Vec<TokenId> = (0..11).collect();
    assert_eq!(explain(&kv, 0, &long), (8, 2, Some((2, Miss::End, none.clone(), 0))));
    assert_eq!(explain(&kv, 1, &prompt), (0, 0, Some((0, Miss::UnknownKey, none, 0))));
    kv.check_invariants().unwrap();
}

#[test]
fn a_block_that_left_a_window_and_was_reused_is_told_apart_from_one_that_never_was() {
    let mut kv = manager(11, &[GroupKind::Full, GroupKind::Sliding(4)]);
    let prompt: Vec<TokenId> = (0..12).collect();
    compute(&mut kv, A, &prompt);
    kv.reserve(A, 12, 13);
    kv.open_row(B, &CacheKey { adapter_id: 1, salt: Vec::new() });
    assert_eq!(kv.reserve(B, 0, 8), 8);
    let found = kv.explain_prefix(&CacheKey::default(), Tokens::new(&prompt[..8], &[90])).missing;
    let missing = found.unwrap();
    assert_eq!((missing.index, missing.miss, missing.num_equal), (0, Miss::Evicted, 4));
}

#[test]
fn a_window_holds_no_more_than_its_blocks_and_the_chunk_in_flight() {
    for window in [1_u32, 3, 4, 5, 8, 17] {
        for chunk in [1_u32, 2, 7, 16] {
            let kinds = [GroupKind::Sliding(window), GroupKind::Chunked(window), GroupKind::Full];
            let mut kv = manager(400, &kinds);
            kv.open_row(A, &CacheKey::default());
            for start in (0..200).step_by(chunk as usize) {
                assert_eq!(kv.reserve(A, start, start + chunk), start + chunk);
                let in_flight = if chunk == 1 { 0 } else { chunk.div_ceil(4) };
                let limit = window.div_ceil(4) + 1 + in_flight;
                for group in 0..2 {
                    let held = blocks(&kv, group, A).iter().filter(|block| **block != 0).count();
                    assert!(held as u32 <= limit, "window {window} holds {held} of {limit} blocks");
                }
                run(&mut kv);
            }
            assert!(blocks(&kv, 2, A).iter().all(|block| *block != 0), "the full group keeps all");
        }
    }
}

#[test]
fn a_window_needs_only_its_own_part_of_a_prefix() {
    let tokens: Vec<TokenId> = (0..33).collect();
    let mut kv = manager(30, &[GroupKind::Sliding(4), GroupKind::Full]);
    kv.open_row(A, &CacheKey::default());
    for end in (4..=32).step_by(4) {
        kv.reserve(A, end - 4, end);
        run(&mut kv);
        kv.commit(A, Tokens::new(&tokens, &[]), end);
    }
    assert_eq!(blocks(&kv, 0, A).iter().filter(|block| **block != 0).count(), 2);
    // The window's first blocks are evicted: they were given back, and so much is allocated.
    kv.open_row(B, &CacheKey { adapter_id: 1, salt: Vec::new() });
    kv.reserve(B, 0, 36);
    kv.close_row(B);
    let hit = kv.find_prefix(&CacheKey::default(), Tokens::new(&tokens, &[]), 32);
    assert_eq!(hit.num_tokens, 32);
    kv.open_row(B, &CacheKey::default());
    kv.attach_prefix(B, &hit);
    assert_eq!(blocks(&kv, 0, B)[..7], [0; 7]);
    assert_eq!(blocks(&kv, 1, B), blocks(&kv, 1, A));
    kv.check_invariants().unwrap();
}

#[test]
fn a_block_comes_back_when_the_batch_that_may_touch_it_has_run() {
    let mut kv = manager(6, &[GroupKind::Full]);
    kv.open_row(A, &CacheKey::default());
    kv.reserve(A, 0, 8);
    kv.begin_batch();
    kv.close_row(A);
    assert_eq!(kv.pool().num_free(), 3);
    assert_eq!(kv.pool().num_referenced(), 0);
    kv.end_batch();
    assert_eq!(kv.pool().num_free(), 5);
}

#[test]
fn the_cache_is_reset_at_rest_only() {
    let mut kv = manager(10, &[GroupKind::Full]);
    compute(&mut kv, A, &[1, 2, 3, 4, 5]);
    assert!(!kv.reset_prefix_cache());
    assert_eq!(kv.num_cached_blocks(), 1);
    kv.close_row(A);
    assert!(kv.reset_prefix_cache());
    assert_eq!((kv.num_cached_blocks(), kv.pool().num_free()), (0, 9));
    kv.check_invariants().unwrap();
}
