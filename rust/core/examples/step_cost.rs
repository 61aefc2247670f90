//! Prints what one decode step (schedule, arrays, update) costs without Python, in microseconds:
//! `cargo run --release --example step_cost -- NUM_SEQS NUM_STEPS`. benches/step.py runs the same loop through the
//! bindings.
#![expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
#![expect(clippy::print_stdout, reason = "its result")]

use std::time::Instant;

use pagedkv_core::{
    CacheConfig, CacheKey, Error, GroupKind, NewRequest, Policy, Scheduler, SchedulerConfig,
    StepBuffers, StepOutput, StopConditions,
};

const BLOCK_SIZE: u32 = 16;
const PROMPT_LEN: u32 = 16;
const MAX_MODEL_LEN: u32 = 4096;
const NUM_WARM_UP_STEPS: u32 = 32;

fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1).map(|number| number.parse::<u32>());
    let (Some(Ok(num_seqs)), Some(Ok(num_steps))) = (arguments.next(), arguments.next()) else {
        println!("usage: step_cost NUM_SEQS NUM_STEPS");
        return Ok(());
    };
    let num_tokens = PROMPT_LEN + BLOCK_SIZE + NUM_WARM_UP_STEPS + num_steps + 1;
    let mut scheduler = new_scheduler(num_seqs, num_tokens)?;
    for id in 0..num_seqs {
        scheduler.add_request(request(id, num_tokens))?;
    }
    let mut buffers = StepBuffers::new(scheduler.sizes());
    let mut output = StepOutput::default();
    let token_ids = vec![5; num_seqs as usize];
    let logprobs = vec![0.0; num_seqs as usize];
    let mut microseconds = Vec::new();
    let mut num_warm = 0;
    while (microseconds.len() as u32) < num_steps {
        let started = Instant::now();
        let batch = scheduler.schedule(&mut buffers.arrays())?.expect("sequences are longer");
        let n = batch.num_samples as usize;
        scheduler.update(&batch, &token_ids[..n], &logprobs[..n], &mut output)?;
        let seconds = started.elapsed().as_secs_f64();
        if batch.num_tokens == num_seqs {
            num_warm += 1;
        }
        if num_warm > NUM_WARM_UP_STEPS {
            microseconds.push(seconds * 1e6);
        }
    }
    microseconds.sort_by(f64::total_cmp);
    println!("{:.3}", microseconds[microseconds.len() / 2]);
    Ok(())
}

fn new_scheduler(num_seqs: u32, num_tokens: u32) -> Result<Scheduler, Error> {
    Scheduler::new(SchedulerConfig {
        cache: CacheConfig {
            num_blocks: num_seqs * (num_tokens.div_ceil(BLOCK_SIZE) + 1) + 1,
            num_swap_blocks: 0,
            block_size: BLOCK_SIZE,
            groups: vec![GroupKind::Full],
            num_rows: num_seqs,
            max_model_len: MAX_MODEL_LEN,
            enable_prefix_caching: true,
            hash_key: 0,
            hash_bits: 64,
        },
        max_num_batched_tokens: num_seqs.max(2048),
        max_num_waiting: num_seqs,
        policy: Policy::Fcfs,
        swap_cost: 1.0,
        max_in_flight: 1,
    })
}

/// A request whose prompt starts with a token of its own, so that nothing is shared. Lengths differ, so
/// that every step completes as many blocks as any other.
fn request(id: u32, num_tokens: u32) -> NewRequest {
    NewRequest {
        id: u64::from(id),
        prompt: (id..id + PROMPT_LEN + id % BLOCK_SIZE).collect(),
        num_sequences: 1,
        stop: StopConditions { max_tokens: num_tokens, ..StopConditions::default() },
        priority: 0,
        key: CacheKey::default(),
        text: None,
        beams: None,
        include_stop_in_text: false,
        stream: false,
    }
}
