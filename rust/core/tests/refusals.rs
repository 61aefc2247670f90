//! What is refused, with which words, and that nothing is left of it.

use pagedkv_core::{
    Error, GroupKind, NewRequest, RepetitionLimits, Scheduler, SchedulerConfig, StepOutput,
};

#[path = "support/engine.rs"]
mod engine;

use engine::{Engine, config, request};

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
    let limits = RepetitionLimits { min_pattern: 1, max_pattern: 1 << 15, min_count: 3 };
    let message = refuse(&|new| new.stop.repetition = Some(limits));
    assert_eq!(message, "max_pattern_size x min_count must be at most 65536, got 98304");
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
