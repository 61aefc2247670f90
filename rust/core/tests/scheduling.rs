//! The scheduler, one behaviour a test.

use pagedkv_core::{
    Batch, CacheConfig, CacheKey, Error, FinishReason, GroupKind, NewRequest, Policy,
    RequestResult, Scheduler, SchedulerConfig, StepBuffers, StepOutput, StopConditions, TokenId,
};

fn config() -> SchedulerConfig {
    SchedulerConfig {
        cache: CacheConfig {
            num_blocks: 65,
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
        max_in_flight: 1,
    }
}

fn request(id: u64, prompt_len: u32, max_tokens: u32) -> NewRequest {
    NewRequest {
        id,
        prompt: (0..prompt_len).map(|i| i + 1000 * id as u32).collect(),
        num_sequences: 1,
        stop: StopConditions { max_tokens, ..StopConditions::default() },
        priority: 0,
        key: CacheKey::default(),
        text: None,
        include_stop_in_text: false,
        stream: false,
    }
}

struct Engine {
    scheduler: Scheduler,
    buffers: StepBuffers,
    output: StepOutput,
}

impl Engine {
    fn new(config: SchedulerConfig) -> Self {
        let scheduler = Scheduler::new(config).unwrap();
        let buffers = StepBuffers::new(scheduler.sizes());
        Self { scheduler, buffers, output: StepOutput::default() }
    }

    fn plan(&mut self) -> Option<Batch> {
        let batch = self.scheduler.schedule(&mut self.buffers.arrays()).unwrap();
        self.scheduler.check_invariants().unwrap();
        batch
    }

    /// Runs one step of a model that answers the position of the token it generates.
    fn step(&mut self) -> Batch {
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

    fn finish(&mut self) {
        while self.scheduler.has_unfinished() {
            self.step();
        }
    }

    /// Runs one request alone.
    fn answer(config: SchedulerConfig, request: NewRequest) -> RequestResult {
        let id = request.id;
        let mut engine = Self::new(config);
        engine.scheduler.add_request(request).unwrap();
        engine.finish();
        engine.scheduler.take_output(id).unwrap()
    }
}

// --- what is refused ------------------------------------------------------------------------------

#[test]
fn a_request_that_can_never_fit_is_refused_with_the_numbers() {
    let mut config = config();
    config.cache.num_blocks = 1 + 10;
    // 10 prompt tokens and 3 x (2 shared blocks, 3 own): 2 + 3 x 3 = 11 blocks.
    let mut one_too_many = request(1, 10, 8);
    one_too_many.num_sequences = 3;
    let mut engine = Engine::new(config.clone());
    let error = engine.scheduler.add_request(one_too_many).unwrap_err();
    assert_eq!(
        error,
        Error::NeverFits { needed: 11, available: 10, num_sequences: 3, num_tokens: 17 }
    );
    assert!(error.to_string().contains("raise kv_cache_memory_bytes"), "{error}");
    assert!(!engine.scheduler.has_unfinished());
    // One token less, and the last block of each is not needed: 2 + 3 x 2 = 8.
    let mut fits = request(1, 10, 7);
    fits.num_sequences = 3;
    let result = Engine::answer(config, fits);
    assert!(result.sequences.iter().all(|sequence| sequence.token_ids.len() == 7));
}

#[test]
fn a_request_that_just_fits_runs_with_windows_too() {
    for groups in [
        vec![GroupKind::Full, GroupKind::Sliding(5)],
        vec![GroupKind::Sliding(4), GroupKind::Chunked(8)],
    ] {
        let mut config = config();
        config.cache.groups = groups;
        let mut new = request(1, 30, 30);
        new.num_sequences = 3;
        let needed = config.cache.worst_case_blocks(30, 59, 3);
        config.cache.num_blocks = 1 + needed as u32;
        let result = Engine::answer(config.clone(), new);
        assert!(result.sequences.iter().all(|sequence| sequence.token_ids.len() == 30));
        config.cache.num_blocks -= 1;
        let mut new = request(1, 30, 30);
        new.num_sequences = 3;
        let error = Engine::new(config).scheduler.add_request(new).unwrap_err();
        assert!(matches!(error, Error::NeverFits { .. }));
    }
}

#[test]
fn bad_requests_are_refused_and_leave_nothing_behind() {
    let mut engine = Engine::new(config());
    let mut refuse = |change: &dyn Fn(&mut NewRequest)| {
        let mut new = request(1, 5, 5);
        change(&mut new);
        let message = engine.scheduler.add_request(new).unwrap_err().to_string();
        assert!(!engine.scheduler.has_unfinished());
        engine.scheduler.check_invariants().unwrap();
        message
    };
    assert_eq!(
        refuse(&|new| new.prompt.clear()),
        "prompt must hold at least one token, got an empty one"
    );
    let message = refuse(&|new| new.prompt = vec![1; 64]);
    assert!(message.starts_with("This model's maximum context length is 64 tokens"), "{message}");
    let message = refuse(&|new| new.num_sequences = 9);
    assert_eq!(message, "n must be from 1 to max_num_seqs (8), got 9");
    assert!(refuse(&|new| new.num_sequences = 0).contains("got 0"));
    assert_eq!(refuse(&|new| new.stop.max_tokens = 0), "max_tokens must be at least 1, got 0");
    let message = refuse(&|new| new.stop.min_tokens = 6);
    assert_eq!(message, "min_tokens must be at most max_tokens (5), got 6");
}

#[test]
fn the_queue_is_bounded_and_ids_are_unique() {
    let mut config = config();
    config.max_num_waiting = 2;
    let mut engine = Engine::new(config);
    engine.scheduler.add_request(request(1, 4, 4)).unwrap();
    let duplicate = engine.scheduler.add_request(request(1, 4, 4));
    assert_eq!(duplicate, Err(Error::DuplicateRequest { id: 1 }));
    engine.scheduler.add_request(request(2, 4, 4)).unwrap();
    assert_eq!(
        engine.scheduler.add_request(request(3, 4, 4)),
        Err(Error::QueueFull { waiting: 2 })
    );
    engine.step();
    engine.scheduler.add_request(request(3, 4, 4)).unwrap();
}

#[test]
fn bad_settings_are_refused() {
    let refused = |change: &dyn Fn(&mut SchedulerConfig)| {
        let mut config = config();
        change(&mut config);
        let Err(error) = Scheduler::new(config) else { panic!("the setting was accepted") };
        error.to_string()
    };
    assert_eq!(refused(&|c| c.cache.block_size = 12), "block_size must be a power of two, got 12");
    assert!(refused(&|c| c.cache.num_blocks = 1).starts_with("num_blocks must be at least 2"));
    assert!(refused(&|c| c.cache.groups.clear()).starts_with("kv_groups"));
    assert!(refused(&|c| c.cache.groups = vec![GroupKind::Sliding(0)]).starts_with("kv_groups"));
    assert!(refused(&|c| c.cache.max_model_len = 1).starts_with("max_model_len"));
    assert!(refused(&|c| c.cache.num_rows = 0).starts_with("max_num_seqs"));
    assert!(refused(&|c| c.max_num_batched_tokens = 7).starts_with("max_num_batched_tokens"));
    assert!(refused(&|c| c.max_in_flight = 3).starts_with("max_in_flight must be 1 or 2"));
}

#[test]
fn a_batch_is_updated_once_in_order_and_with_the_right_shape() {
    let mut engine = Engine::new(config());
    engine.scheduler.add_request(request(1, 4, 4)).unwrap();
    let batch = engine.plan().unwrap();
    let error = engine.scheduler.schedule(&mut engine.buffers.arrays()).unwrap_err();
    assert!(matches!(error, Error::BatchOrder { verb: "scheduled", .. }));
    let mut output = StepOutput::default();
    let error = engine.scheduler.update(&batch, &[1, 2], &[0.0], &mut output).unwrap_err();
    assert_eq!(error, Error::Shape { name: "token_ids", expected: 1, actual: 2 });
    engine.scheduler.update(&batch, &[1], &[0.0], &mut output).unwrap();
    let error = engine.scheduler.update(&batch, &[1], &[0.0], &mut output).unwrap_err();
    assert!(matches!(error, Error::BatchOrder { verb: "updated", expected: 0, .. }));
    assert!(engine.scheduler.requeue(&batch).is_err());
}

// --- order and budgets ----------------------------------------------------------------------------

#[test]
fn a_long_prompt_leaves_a_token_for_everyone_behind_it() {
    let mut config = config();
    config.max_num_batched_tokens = 10;
    config.policy = Policy::Priority;
    let mut engine = Engine::new(config);
    for id in 1..=3 {
        engine.scheduler.add_request(request(id, 3, 20)).unwrap();
    }
    engine.step();
    let mut urgent = request(9, 40, 4);
    urgent.priority = -1;
    engine.scheduler.add_request(urgent).unwrap();
    engine.step();
    // From now on the urgent prompt is served first, and yet the others advance.
    let batch = engine.step();
    assert_eq!((batch.num_rows, batch.num_tokens), (4, 10));
    let arrays = engine.buffers.arrays();
    assert_eq!(arrays.query_start_loc[..5], [0, 7, 8, 9, 10]);
}

#[test]
fn requests_start_by_priority_and_then_by_arrival() {
    for (policy, order) in [(Policy::Fcfs, [1, 2, 3]), (Policy::Priority, [3, 1, 2])] {
        let mut config = config();
        config.policy = policy;
        config.cache.num_rows = 1;
        let mut engine = Engine::new(config);
        for (id, priority) in [(1, 5), (2, 5), (3, 0)] {
            engine.scheduler.add_request(NewRequest { priority, ..request(id, 4, 1) }).unwrap();
        }
        let mut finished = Vec::new();
        while engine.scheduler.has_unfinished() {
            engine.step();
            finished.extend_from_slice(&engine.output.finished);
        }
        assert_eq!(finished, order);
    }
}

#[test]
fn the_prompt_of_many_samples_runs_once() {
    let mut new = request(1, 30, 5);
    new.num_sequences = 5;
    let mut engine = Engine::new(config());
    engine.scheduler.add_request(new).unwrap();
    let batch = engine.step();
    assert_eq!((batch.num_rows, batch.num_tokens, batch.num_samples), (1, 30, 5));
    let stats = engine.scheduler.stats();
    assert_eq!((stats.num_used_blocks, stats.num_saved_blocks), (8, 32));
    assert_eq!(engine.buffers.arrays().logits_indices[..5], [29; 5]);
    assert_eq!(engine.output.first_tokens, [1]);
    engine.finish();
    let stats = engine.scheduler.stats();
    assert_eq!(stats.num_scheduled_tokens, 30 + 5 * 4);
    assert_eq!((stats.num_forks, stats.num_cow_copies), (4, 4));
}

#[test]
fn the_latest_arrival_is_preempted_and_the_oldest_never() {
    let mut config = config();
    config.cache.num_blocks = 1 + 10;
    let mut engine = Engine::new(config);
    for id in 1..=3 {
        engine.scheduler.add_request(request(id, 5, 30)).unwrap();
    }
    engine.finish();
    let preemptions: Vec<_> =
        (1..=3).map(|id| engine.scheduler.take_output(id).unwrap().num_preemptions).collect();
    assert_eq!(preemptions[0], 0);
    assert!(preemptions[2] >= 1);
}

// --- endings --------------------------------------------------------------------------------------

/// The answers are 0, 1, 2, ...
fn ending(stop: StopConditions) -> (usize, FinishReason) {
    let result = Engine::answer(config(), NewRequest { stop, ..request(1, 4, 1) });
    (result.sequences[0].token_ids.len(), result.sequences[0].finish_reason)
}

#[test]
fn ending_ids_end_and_are_part_of_the_output() {
    let stop = StopConditions { max_tokens: 9, eos_token_ids: vec![7, 3], ..Default::default() };
    assert_eq!(ending(stop.clone()), (4, FinishReason::Eos));
    assert_eq!(
        ending(StopConditions { ignore_eos: true, ..stop.clone() }),
        (9, FinishReason::Length)
    );
    let stop = StopConditions { stop_token_ids: vec![2], ..stop };
    assert_eq!(ending(stop.clone()), (3, FinishReason::StopToken(2)));
    let stop = StopConditions { min_tokens: 5, ..stop };
    assert_eq!(ending(stop), (8, FinishReason::Eos));
}

#[test]
fn the_context_ends_a_sequence() {
    let stop = StopConditions { max_tokens: 1000, ..Default::default() };
    assert_eq!(ending(stop), (60, FinishReason::Length));
    let stop = StopConditions { max_tokens: 1, ..Default::default() };
    assert_eq!(ending(stop), (1, FinishReason::Length));
}

#[test]
fn log_probabilities_add_up() {
    let result = Engine::answer(config(), request(1, 4, 6));
    assert!((result.sequences[0].cumulative_logprob + 3.0).abs() < 1e-12);
}

// --- abort and failure ----------------------------------------------------------------------------

#[test]
fn abort_works_in_every_state_and_twice_is_harmless() {
    let mut engine = Engine::new(config());
    for id in 1..=3 {
        engine.scheduler.add_request(request(id, 4, 3)).unwrap();
    }
    let waiting = engine.scheduler.abort(2).unwrap();
    assert_eq!(waiting.sequences[0].finish_reason, FinishReason::Abort);
    engine.step();
    engine.step();
    let running = engine.scheduler.abort(1).unwrap();
    assert_eq!(running.sequences[0].token_ids, [0, 1]);
    engine.step();
    let finished = engine.scheduler.abort(3).unwrap();
    assert_eq!(finished.sequences[0].finish_reason, FinishReason::Length);
    for id in 1..=4 {
        assert!(engine.scheduler.abort(id).is_none());
    }
    assert_eq!(engine.scheduler.stats().num_aborted, 2);
    assert_eq!(engine.scheduler.stats().num_used_blocks, 0);
    engine.scheduler.check_invariants().unwrap();
}

#[test]
fn output_is_there_when_the_request_has_ended_and_only_once() {
    let mut engine = Engine::new(config());
    engine.scheduler.add_request(request(1, 4, 2)).unwrap();
    assert_eq!(engine.scheduler.take_output(1).unwrap_err(), Error::NotFinished { id: 1 });
    engine.step();
    assert_eq!(engine.scheduler.output_token_ids(1, 0).unwrap(), [0]);
    assert!(engine.scheduler.output_token_ids(1, 1).is_err());
    engine.finish();
    engine.scheduler.take_output(1).unwrap();
    assert_eq!(engine.scheduler.take_output(1).unwrap_err(), Error::UnknownRequest { id: 1 });
}

#[test]
fn a_failed_batch_is_computed_again() {
    let mut engine = Engine::new(config());
    for id in 1..=2 {
        engine.scheduler.add_request(request(id, 6, 5)).unwrap();
    }
    engine.step();
    let batch = engine.plan().unwrap();
    assert_eq!(engine.scheduler.requeue(&batch).unwrap(), [1, 2]);
    engine.scheduler.check_invariants().unwrap();
    assert_eq!(engine.scheduler.stats().num_used_blocks, 0);
    engine.finish();
    for id in 1..=2 {
        let result = engine.scheduler.take_output(id).unwrap();
        assert_eq!(result.sequences[0].token_ids, [0, 1, 2, 3, 4]);
        assert_eq!(result.num_preemptions, 0, "a failure is nobody's preemption");
    }
}

#[test]
fn streamed_tokens_come_one_by_one_and_end_once() {
    let mut engine = Engine::new(config());
    engine.scheduler.add_request(NewRequest { stream: true, ..request(1, 4, 3) }).unwrap();
    let mut deltas = Vec::new();
    while engine.scheduler.has_unfinished() {
        engine.step();
        deltas.extend(engine.output.deltas.iter().map(|d| (d.token_id, d.finish_reason)));
    }
    assert_eq!(deltas, [(0, None), (1, None), (2, Some(FinishReason::Length))]);
}

#[test]
fn a_cached_prompt_is_counted() {
    let mut config = config();
    config.cache.enable_prefix_caching = true;
    let mut engine = Engine::new(config);
    for id in [1, 2] {
        let new = NewRequest { prompt: (0..10).collect(), ..request(id, 10, 2) };
        engine.scheduler.add_request(new).unwrap();
        engine.finish();
    }
    assert_eq!(engine.scheduler.take_output(1).unwrap().num_cached_tokens, 0);
    assert_eq!(engine.scheduler.take_output(2).unwrap().num_cached_tokens, 8);
    let stats = engine.scheduler.stats();
    assert_eq!((stats.num_prompt_tokens, stats.num_cached_prompt_tokens), (20, 8));
    assert!(engine.scheduler.reset_prefix_cache());
    assert_eq!(engine.scheduler.stats().num_cached_blocks, 0);
}
