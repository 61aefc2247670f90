//! Sequences that repeat themselves.

use pagedkv_core::{FinishReason, NewRequest, RepetitionLimits, StopConditions, TokenId};

#[path = "support/engine.rs"]
mod engine;

use engine::{Engine, config, request};

const LIMITS: RepetitionLimits = RepetitionLimits { min_pattern: 1, max_pattern: 4, min_count: 3 };

/// What a request gets from a model whose sequence `i` answers 50 + i, 51 + i, and so on, `i + 2` tokens
/// over and over: how many tokens, and why each sequence ended.
fn answer(new: NewRequest) -> Vec<(usize, FinishReason)> {
    let mut engine = Engine::new(config());
    let id = new.id;
    engine.scheduler.add_request(new).unwrap();
    while let Some(batch) = engine.plan() {
        let arrays = engine.buffers.arrays();
        let samples = arrays.sample_index.iter().zip(&*arrays.sample_positions);
        let answer =
            |(index, position): (&i32, &i32)| (50 + index + position % (index + 2)) as TokenId;
        let ids: Vec<_> = samples.take(batch.num_samples as usize).map(answer).collect();
        let logprobs = vec![0.0; ids.len()];
        engine.scheduler.update(&batch, &ids, &logprobs, &mut engine.output).unwrap();
    }
    let result = engine.scheduler.take_output(id).unwrap();
    result.sequences.iter().map(|s| (s.token_ids.len(), s.finish_reason)).collect()
}

fn ending(stop: StopConditions) -> (usize, FinishReason) {
    answer(NewRequest { stop, ..request(1, 4, 1) })[0]
}

#[test]
fn each_sequence_ends_by_its_own_repetition_and_a_long_pattern_is_none() {
    let stop =
        StopConditions { max_tokens: 30, repetition: Some(LIMITS), ..StopConditions::default() };
    let repetition = FinishReason::Repetition;
    assert_eq!(
        answer(NewRequest { num_sequences: 4, stop, ..request(1, 4, 1) }),
        [(6, repetition), (9, repetition), (12, repetition), (30, FinishReason::Length)]
    );
}

#[test]
fn a_prompt_that_goes_on_in_the_output_is_no_part_of_a_repetition() {
    let stop =
        StopConditions { max_tokens: 30, repetition: Some(LIMITS), ..StopConditions::default() };
    let new = NewRequest { prompt: [50, 51].repeat(8), stop, ..request(1, 4, 1) };
    assert_eq!(answer(new), [(6, FinishReason::Repetition)]);
}

#[test]
fn every_other_reason_comes_first_and_min_tokens_before_all() {
    let stop =
        StopConditions { max_tokens: 20, repetition: Some(LIMITS), ..StopConditions::default() };
    assert_eq!(ending(stop.clone()), (6, FinishReason::Repetition));
    assert_eq!(ending(StopConditions { max_tokens: 6, ..stop.clone() }), (6, FinishReason::Length));
    let min_tokens = StopConditions { min_tokens: 6, ..stop.clone() };
    assert_eq!(ending(min_tokens.clone()), (6, FinishReason::Repetition));
    let by_id = StopConditions { stop_token_ids: vec![51], ..min_tokens.clone() };
    assert_eq!(ending(by_id), (6, FinishReason::StopToken(51)));
    let by_eos = StopConditions { eos_token_ids: vec![51], ..min_tokens };
    assert_eq!(ending(by_eos), (6, FinishReason::Eos));
    let late = StopConditions { min_tokens: 9, ..stop };
    assert_eq!(ending(late), (9, FinishReason::Repetition));
}
