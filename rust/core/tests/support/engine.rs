//! A scheduler with a model that answers the position of each token it generates: 0, 1, 2, ...
#![allow(dead_code, reason = "each test that includes this file uses a part of it")]

use pagedkv_core::{
    Batch, CacheConfig, CacheKey, GroupKind, NewRequest, Policy, RequestResult, Scheduler,
    SchedulerConfig, StepBuffers, StepOutput, StopConditions, TokenId,
};

pub(crate) fn config() -> SchedulerConfig {
    SchedulerConfig {
        cache: CacheConfig {
            num_blocks: 65,
            num_swap_blocks: 0,
            block_size: 4,
            groups: vec![GroupKind::Full],
            num_rows: 8,
            max_model_len: 64,
            enable_prefix_caching: false,
            hash_key: 0,
            hash_bits: 64,
        },
        max_num_batched_tokens: 64,
        max_num_waiting: 8,
        policy: Policy::Fcfs,
        swap_cost: 1.0,
        max_in_flight: 1,
    }
}

pub(crate) fn request(id: u64, prompt_len: u32, max_tokens: u32) -> NewRequest {
    NewRequest {
        id,
        prompt: (0..prompt_len).map(|i| i + 1000 * id as u32).collect(),
        num_sequences: 1,
        stop: StopConditions { max_tokens, ..StopConditions::default() },
        priority: 0,
        key: CacheKey::default(),
        text: None,
        beams: None,
        include_stop_in_text: false,
        stream: false,
    }
}

pub(crate) struct Engine {
    pub(crate) scheduler: Scheduler,
    pub(crate) buffers: StepBuffers,
    pub(crate) output: StepOutput,
}

impl Engine {
    pub(crate) fn new(config: SchedulerConfig) -> Self {
        let scheduler = Scheduler::new(config).unwrap();
        let buffers = StepBuffers::new(scheduler.sizes());
        Self { scheduler, buffers, output: StepOutput::default() }
    }

    pub(crate) fn plan(&mut self) -> Option<Batch> {
        let batch = self.scheduler.schedule(&mut self.buffers.arrays()).unwrap();
        self.scheduler.check_invariants().unwrap();
        batch
    }

    /// Runs one step of a model that answers the position of the token it generates.
    pub(crate) fn step(&mut self) -> Batch {
        let batch = self.plan().expect("something to run");
        let arrays = self.buffers.arrays();
        let ids: Vec<TokenId> = arrays.sample_positions[..batch.num_samples as usize]
            .iter()
            .map(|position| *position as TokenId)
            .collect();
        let logprobs = vec![-0.5; ids.len()];
        self.scheduler.update(&batch, &ids, &logprobs, &mut self.output).unwrap();
        self.scheduler.check_invariants().unwrap();
        batch
    }

    pub(crate) fn finish(&mut self) {
        while self.scheduler.has_unfinished() {
            self.step();
        }
    }

    /// Runs one request alone.
    pub(crate) fn answer(config: SchedulerConfig, request: NewRequest) -> RequestResult {
        let id = request.id;
        let mut engine = Self::new(config);
        engine.scheduler.add_request(request).unwrap();
        engine.finish();
        engine.scheduler.take_output(id).unwrap()
    }
}
