//! What sharing costs: finding, inserting and evicting prefixes of 32k tokens in pools of up to a
//! million blocks; forking and copy-on-write.
//!
//! `cargo bench -p pagedkv-core --bench prefix`. One element is one block of 16 tokens, so the inverse
//! of the throughput is the cost per block.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput};
use criterion::{criterion_group, criterion_main, measurement::WallTime};
use pagedkv_core::simulator::mix;
use pagedkv_core::{CacheConfig, CacheKey, GroupKind, KvCacheManager, RowId, TokenId, Tokens};

const BLOCK_SIZE: u32 = 16;
const NUM_TOKENS: u32 = 32 * 1024;
const NUM_COLUMNS: u32 = NUM_TOKENS / BLOCK_SIZE;
const NUM_ROWS: u32 = 64;
const ROW: RowId = RowId::new(0);
const POOLS: [u32; 3] = [10_000, 100_000, 1_000_000];

/// The prompt with this number: all differ from their first block on.
fn prompt(number: u64) -> Vec<TokenId> {
    (0..NUM_TOKENS).map(|i| mix(number, u64::from(i)) as TokenId >> 15).collect()
}

/// A pool in which every block is free and cached, and the number of the last prompt in it.
fn full_of_prompts(num_blocks: u32) -> (KvCacheManager, u64) {
    let mut kv = KvCacheManager::new(
        CacheConfig {
            num_blocks,
            num_swap_blocks: 0,
            block_size: BLOCK_SIZE,
            groups: vec![GroupKind::Full],
            num_rows: NUM_ROWS,
            max_model_len: NUM_TOKENS + BLOCK_SIZE,
            enable_prefix_caching: true,
            hash_key: 1,
            hash_bits: 64,
        },
        usize::MAX,
    );
    let count = u64::from(num_blocks / NUM_COLUMNS) + 1;
    for number in 0..count {
        compute(&mut kv, &prompt(number));
        kv.close_row(ROW);
    }
    (kv, count - 1)
}

fn reserve(kv: &mut KvCacheManager) {
    kv.open_row(ROW, &CacheKey::default());
    assert_eq!(kv.reserve(ROW, 0, NUM_TOKENS), NUM_TOKENS, "all is free or can be evicted");
    kv.begin_batch();
    kv.end_batch();
}

fn compute(kv: &mut KvCacheManager, tokens: &[TokenId]) {
    reserve(kv);
    kv.commit(ROW, Tokens::new(tokens, &[]), NUM_TOKENS);
}

#[expect(clippy::disallowed_methods, reason = "a benchmark has a clock")]
fn timed<T>(elapsed: &mut Duration, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = black_box(work());
    *elapsed += start.elapsed();
    result
}

fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.sample_size(20).warm_up_time(Duration::from_millis(500));
    group.measurement_time(Duration::from_secs(2));
    group.throughput(Throughput::Elements(u64::from(NUM_COLUMNS)));
    group
}

fn prefix_match(criterion: &mut Criterion) {
    let mut group = group(criterion, "match 32k tokens");
    for num_blocks in POOLS {
        let (kv, last) = full_of_prompts(num_blocks);
        let prompts: Vec<_> = (0..4).map(|i| prompt(last - i)).collect();
        let mut next = 0;
        group.bench_function(BenchmarkId::from_parameter(num_blocks), |bencher| {
            bencher.iter(|| {
                next = (next + 1) % prompts.len();
                let tokens = Tokens::new(&prompts[next], &[]);
                let hit = kv.find_prefix(&CacheKey::default(), tokens, NUM_TOKENS);
                assert_eq!(hit.num_tokens, NUM_TOKENS);
                hit
            });
        });
    }
    group.finish();
}

fn attach(criterion: &mut Criterion) {
    let mut group = group(criterion, "match, attach and close 32k tokens");
    for num_blocks in POOLS {
        let (mut kv, last) = full_of_prompts(num_blocks);
        let tokens = prompt(last);
        group.bench_function(BenchmarkId::from_parameter(num_blocks), |bencher| {
            bencher.iter(|| {
                let tokens = Tokens::new(&tokens, &[]);
                let hit = kv.find_prefix(&CacheKey::default(), tokens, NUM_TOKENS);
                kv.open_row(ROW, &CacheKey::default());
                let num_tokens = kv.attach_prefix(ROW, &hit);
                kv.begin_batch();
                kv.end_batch();
                kv.close_row(ROW);
                num_tokens
            });
        });
    }
    group.finish();
}

/// Every prompt is new, so each insertion makes entries and each allocation evicts some.
fn insert_and_evict(criterion: &mut Criterion) {
    for (name, is_insert) in [("insert 32k tokens", true), ("evict 2,048 blocks", false)] {
        let mut group = group(criterion, name);
        for num_blocks in POOLS {
            let (mut kv, mut number) = full_of_prompts(num_blocks);
            group.bench_function(BenchmarkId::from_parameter(num_blocks), |bencher| {
                bencher.iter_custom(|count| {
                    let (mut inserting, mut evicting) = (Duration::ZERO, Duration::ZERO);
                    for _ in 0..count {
                        number += 1;
                        let tokens = prompt(number);
                        timed(&mut evicting, || reserve(&mut kv));
                        timed(&mut inserting, || {
                            kv.commit(ROW, Tokens::new(&tokens, &[]), NUM_TOKENS);
                        });
                        kv.close_row(ROW);
                    }
                    if is_insert { inserting } else { evicting }
                });
            });
        }
        group.finish();
    }
}

fn fork(criterion: &mut Criterion) {
    let mut group = group(criterion, "fork and close 32k tokens");
    let (mut kv, _) = full_of_prompts(100_000);
    compute(&mut kv, &prompt(1 << 40));
    let child = RowId::new(1);
    group.bench_function("blocks", |bencher| {
        bencher.iter(|| {
            kv.fork(ROW, child, NUM_TOKENS);
            kv.begin_batch();
            kv.end_batch();
            kv.close_row(child);
        });
    });
    group.finish();
}

/// 63 rows each write to the block that they share with the first; one element is one copy.
fn copy_on_write(criterion: &mut Criterion) {
    let mut group = group(criterion, "copy on write");
    group.throughput(Throughput::Elements(u64::from(NUM_ROWS - 1)));
    let (mut kv, _) = full_of_prompts(100_000);
    kv.open_row(ROW, &CacheKey::default());
    kv.reserve(ROW, 0, 8);
    let children: Vec<_> = (1..NUM_ROWS).map(RowId::new).collect();
    group.bench_function("copies", |bencher| {
        bencher.iter_custom(|count| {
            let mut elapsed = Duration::ZERO;
            for _ in 0..count {
                for child in &children {
                    kv.fork(ROW, *child, 8);
                }
                timed(&mut elapsed, || {
                    for child in &children {
                        kv.reserve(*child, 8, 9);
                    }
                });
                assert_eq!(kv.copies().len(), children.len());
                kv.begin_batch();
                kv.end_batch();
                for child in &children {
                    kv.close_row(*child);
                }
            }
            elapsed
        });
    });
    group.finish();
}

criterion_group!(benches, prefix_match, attach, insert_and_evict, fork, copy_on_write);
criterion_main!(benches);
