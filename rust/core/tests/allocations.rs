//! Steady decoding never asks for memory.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use pagedkv_core::{
    CacheConfig, CacheKey, GroupKind, NewRequest, Policy, Scheduler, SchedulerConfig, StepBuffers,
    StepOutput, StopConditions,
};

thread_local! {
    static NUM_ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        NUM_ALLOCATIONS.set(NUM_ALLOCATIONS.get() + 1);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const NUM_SEQUENCES: u32 = 64;
const NUM_STEPS: u32 = 500;

/// Allocations during 500 steps in which 64 sequences decode.
fn count(groups: Vec<GroupKind>, enable_prefix_caching: bool, max_in_flight: u32) -> u64 {
    let cache = CacheConfig {
        num_blocks: 64 * 48 * groups.len() as u32 + 1,
        num_swap_blocks: 0,
        block_size: 16,
        groups,
        num_rows: NUM_SEQUENCES,
        max_model_len: 1024,
        enable_prefix_caching,
        hash_key: 0,
        hash_bits: 64,
    };
    let mut scheduler = Scheduler::new(SchedulerConfig {
        cache,
        max_num_batched_tokens: 4096,
        max_num_waiting: 1000,
        policy: Policy::Fcfs,
        swap_cost: 1.0,
        max_in_flight,
    })
    .unwrap();
    let sizes = scheduler.sizes();
    let mut arenas: Vec<_> = (0..max_in_flight).map(|_| StepBuffers::new(sizes)).collect();
    // Requests of four sequences each, so that blocks are shared too.
    for id in 0..u64::from(NUM_SEQUENCES) / 4 {
        let request = NewRequest {
            id,
            prompt: (0..40).map(|i| id as u32 * 100 + i).collect(),
            num_sequences: 4,
            stop: StopConditions { max_tokens: 700, ..StopConditions::default() },
            priority: 0,
            key: CacheKey::default(),
            text: None,
            beams: None,
            include_stop_in_text: false,
            stream: false,
        };
        scheduler.add_request(request).unwrap();
    }
    let mut output = StepOutput::default();
    let tokens: Vec<u32> = (0..NUM_SEQUENCES).collect();
    let logprobs = vec![0.0; tokens.len()];
    let mut in_flight = std::collections::VecDeque::with_capacity(4);
    let mut run = |num_steps: u32| {
        for step in 0..num_steps as usize {
            let arena = &mut arenas[step % max_in_flight as usize];
            let batch = scheduler.schedule(&mut arena.arrays()).unwrap().unwrap();
            in_flight.push_back(batch);
            if in_flight.len() == max_in_flight as usize {
                let batch: pagedkv_core::Batch = in_flight.pop_front().unwrap();
                let n = batch.num_samples as usize;
                scheduler.update(&batch, &tokens[..n], &logprobs[..n], &mut output).unwrap();
            }
        }
    };
    run(100);
    let before = NUM_ALLOCATIONS.get();
    run(NUM_STEPS);
    let count = NUM_ALLOCATIONS.get() - before;
    assert_eq!(scheduler.num_running(), NUM_SEQUENCES / 4, "all sequences decode to the end");
    assert_eq!(scheduler.stats().max_rows, NUM_SEQUENCES);
    count
}

#[test]
fn the_counter_counts() {
    let before = NUM_ALLOCATIONS.get();
    drop(Vec::<u8>::with_capacity(10));
    assert_eq!(NUM_ALLOCATIONS.get() - before, 1);
}

#[test]
fn decoding_allocates_nothing() {
    assert_eq!(count(vec![GroupKind::Full], false, 1), 0);
}

#[test]
fn decoding_with_a_prefix_cache_allocates_nothing() {
    assert_eq!(count(vec![GroupKind::Full], true, 1), 0);
}

#[test]
fn decoding_with_windows_and_overlap_allocates_nothing() {
    assert_eq!(count(vec![GroupKind::Full, GroupKind::Sliding(100)], true, 2), 0);
}
