//! What one step costs: `schedule`, the arrays and `update`, without a model.
//!
//! `cargo bench -p pagedkv-core --bench step`. One element is one running sequence, so the inverse of
//! the throughput is the cost per sequence and step.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pagedkv_core::{
    CacheConfig, CacheKey, GroupKind, NewRequest, Policy, Scheduler, SchedulerConfig, StepBuffers,
    StepOutput, StopConditions, TokenId,
};

const BLOCK_SIZE: u32 = 16;

/// Sequences that decode.
#[derive(Clone)]
struct Load {
    num_sequences: u32,
    prompt_len: u32,
    num_blocks: u32,
    num_waiting: u32,
    groups: Vec<GroupKind>,
    enable_prefix_caching: bool,
    /// All have the same prompt, so that setting up is quick.
    shares_prompt: bool,
}

impl Load {
    fn new(num_sequences: u32) -> Self {
        Self {
            num_sequences,
            prompt_len: 128,
            num_blocks: num_sequences * 160 + 1,
            num_waiting: 0,
            groups: vec![GroupKind::Full],
            enable_prefix_caching: true,
            shares_prompt: false,
        }
    }
}

/// Steps that a sequence can run before its load is set up again.
const NUM_STEPS: u32 = 2048;

struct World {
    scheduler: Scheduler,
    buffers: StepBuffers,
    output: StepOutput,
    token_ids: Vec<TokenId>,
    logprobs: Vec<f32>,
    num_left: u32,
}

impl World {
    /// Runs all prompts, so that every step from here on is a decode.
    fn new(load: &Load) -> Self {
        let max_num_batched_tokens = load.num_sequences.max(8192);
        let scheduler = Scheduler::new(SchedulerConfig {
            cache: CacheConfig {
                num_blocks: load.num_blocks,
                num_swap_blocks: 0,
                block_size: BLOCK_SIZE,
                groups: load.groups.clone(),
                num_rows: load.num_sequences,
                max_model_len: load.prompt_len + NUM_STEPS + 64,
                enable_prefix_caching: load.enable_prefix_caching,
                hash_key: 1,
                hash_bits: 64,
            },
            max_num_batched_tokens,
            max_num_waiting: load.num_waiting + load.num_sequences,
            policy: Policy::Fcfs,
            swap_cost: 1.0,
            max_in_flight: 1,
        });
        let scheduler = scheduler.expect("the settings are valid");
        let count = load.num_sequences as usize;
        let mut world = Self {
            buffers: StepBuffers::new(scheduler.sizes()),
            scheduler,
            output: StepOutput::default(),
            token_ids: (0..count as TokenId).collect(),
            logprobs: vec![-1.0; count],
            num_left: NUM_STEPS,
        };
        for id in 0..u64::from(load.num_sequences + load.num_waiting) {
            let is_waiting = id >= u64::from(load.num_sequences);
            let prompt_len = if is_waiting { 4 } else { load.prompt_len };
            let number = if load.shares_prompt { 0 } else { id as u32 };
            world.add(id, (0..prompt_len).map(|i| i ^ number << 12).collect());
            while load.shares_prompt && world.scheduler.stats().num_generated_tokens == 0 {
                world.step();
            }
        }
        while world.step() != (load.num_sequences, load.num_sequences) {
            // The first to be ready decode while the others still run their prompts.
            world.num_left -= 1;
        }
        assert_eq!(world.scheduler.num_running(), load.num_sequences);
        world
    }

    fn add(&mut self, id: u64, prompt: Vec<TokenId>) {
        let request = NewRequest {
            id,
            prompt,
            num_sequences: 1,
            stop: StopConditions { max_tokens: u32::MAX, ..StopConditions::default() },
            priority: 0,
            key: CacheKey::default(),
            text: None,
            beams: None,
            include_stop_in_text: false,
            stream: false,
        };
        self.scheduler.add_request(request).expect("the request is valid");
    }

    /// Returns how many sequences ran, and how many tokens.
    fn step(&mut self) -> (u32, u32) {
        let batch = self.scheduler.schedule(&mut self.buffers.arrays()).expect("none in flight");
        let batch = batch.expect("something runs");
        let n = batch.num_samples as usize;
        let (ids, logprobs) = (&self.token_ids[..n], &self.logprobs[..n]);
        let updated = self.scheduler.update(&batch, ids, logprobs, &mut self.output);
        updated.expect("the batch is in flight");
        black_box(&self.output);
        (batch.num_rows, batch.num_tokens)
    }
}

/// Times steps only; a load that nears its end is set up again, untimed.
#[expect(clippy::disallowed_methods, reason = "a benchmark has a clock")]
fn time_steps(load: &Load, world: &mut Option<World>, num_steps: u64) -> Duration {
    let mut elapsed = Duration::ZERO;
    let mut left = num_steps;
    while left > 0 {
        if world.as_ref().is_none_or(|world| world.num_left == 0) {
            // The old one goes first: its memory is needed.
            *world = None;
        }
        let world = world.get_or_insert_with(|| World::new(load));
        let count = left.min(u64::from(world.num_left));
        let start = Instant::now();
        for _ in 0..count {
            world.step();
        }
        elapsed += start.elapsed();
        world.num_left -= count as u32;
        left -= count;
    }
    elapsed
}

fn bench(criterion: &mut Criterion, group: &str, loads: &[(String, Load)]) {
    let mut group = criterion.benchmark_group(group);
    group.sample_size(20).warm_up_time(Duration::from_millis(500));
    group.measurement_time(Duration::from_secs(2));
    for (name, load) in loads {
        group.throughput(Throughput::Elements(u64::from(load.num_sequences)));
        let mut world = None;
        group.bench_with_input(BenchmarkId::from_parameter(name), load, |bencher, load| {
            bencher.iter_custom(|num_steps| time_steps(load, &mut world, num_steps));
        });
    }
    group.finish();
}

fn running_sequences(criterion: &mut Criterion) {
    let loads = [1, 64, 256, 1024, 4096].map(|n| (n.to_string(), Load::new(n)));
    bench(criterion, "decode step by running sequences", &loads);
}

/// None of these may cost more than the first.
fn what_must_not_matter(criterion: &mut Criterion) {
    let base = Load::new(256);
    let long = 32 * 1024;
    let loads = [
        ("plain", base.clone()),
        ("no prefix cache", Load { enable_prefix_caching: false, ..base.clone() }),
        ("1,000,000 blocks", Load { num_blocks: 1_000_000, ..base.clone() }),
        ("100,000 waiting", Load { num_waiting: 100_000, ..base.clone() }),
        ("32k tokens each", Load { prompt_len: long, shares_prompt: true, ..base.clone() }),
    ];
    bench(criterion, "decode step of 256", &loads.map(|(name, load)| (name.to_owned(), load)));
}

fn groups(criterion: &mut Criterion) {
    let base = Load::new(256);
    let groups = vec![GroupKind::Full, GroupKind::Sliding(512)];
    let loads = [(
        "full and sliding".to_owned(),
        Load { num_blocks: base.num_blocks * 2, groups, ..base.clone() },
    )];
    bench(criterion, "decode step of 256 with two groups", &loads);
}

criterion_group!(benches, running_sequences, what_must_not_matter, groups);
criterion_main!(benches);
