//! The scheduler, one behaviour a test.

use pagedkv_core::{Error, FinishReason, NewRequest, Policy, StopConditions};

#[path = "support/engine.rs"]
mod engine;

use engine::{Engine, config, request};

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
fn a_request_tells_the_slots_that_it_held_and_what_it_lost() {
    let mut new = request(1, 6, 3);
    new.num_sequences = 2;
    let result = Engine::answer(config(), new);
    // A shared block of the prompt, two with its rest and two tokens of output each.
    assert_eq!((result.slot_use.num_held, result.slot_use.num_used), (12, 4 + 2 * 4));
    let mut config = config();
    config.cache.num_blocks = 5;
    let mut engine = Engine::new(config);
    for id in 1..=2 {
        engine.scheduler.add_request(request(id, 3, 8)).unwrap();
    }
    engine.finish();
    let results = [1, 2].map(|id| engine.scheduler.take_output(id).unwrap());
    let stats = engine.scheduler.stats();
    assert!(stats.num_tokens_lost > 0);
    let sum: u64 = results.iter().map(|result| result.num_tokens_lost).sum();
    assert_eq!(sum, stats.num_tokens_lost);
    for result in results {
        assert_eq!((result.slot_use.num_held, result.slot_use.num_used), (12, 10));
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
        deltas.extend(engine.output.deltas.iter().map(|d| (d.token_ids[0], d.finish_reason)));
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
