//! Masks of constrained sequences, as the scheduler hands them out.

use pagedkv_core::text::SequenceText;
use pagedkv_core::{Batch, Error, FinishReason, NewRequest, SampleMasks, StopConditions};

#[path = "support/engine.rs"]
mod engine;

use engine::{Engine, config, request};

/// The engine's answers are 0, 1, 2, ...: this text allows the next one, up to `end`, where it is complete.
/// It fails at `stuck_at`.
#[derive(Clone)]
struct Counter {
    next: u32,
    end: u32,
    stuck_at: u32,
}

impl SequenceText for Counter {
    fn push(&mut self, token: u32, _may_stop: bool) -> Option<u32> {
        self.next = token + 1;
        None
    }

    fn finish(&mut self) {}

    fn text(&self) -> &'static str {
        ""
    }

    fn fork(&self) -> Box<dyn SequenceText> {
        Box::new(self.clone())
    }

    fn is_constrained(&self) -> bool {
        true
    }

    fn fill_mask(&mut self, mask: &mut [u32]) -> Result<bool, String> {
        if self.next == self.stuck_at {
            return Err("stuck".to_owned());
        }
        mask.fill(0);
        if !self.is_complete() {
            mask[self.next as usize / 32] |= 1 << (self.next % 32);
        }
        Ok(self.next + 1 >= self.end)
    }

    fn is_complete(&self) -> bool {
        self.next >= self.end
    }
}

const NEVER: u32 = u32::MAX;

fn constrained(id: u64, end: u32, stuck_at: u32) -> NewRequest {
    NewRequest { text: Some(Box::new(Counter { next: 0, end, stuck_at })), ..request(id, 4, 20) }
}

/// Masks of two words for ids 0 to 63, what counts, and failures.
fn masks(engine: &mut Engine, batch: &Batch) -> (Vec<u64>, Vec<bool>, Vec<(u32, String)>) {
    let count = batch.num_samples as usize;
    let (mut words, mut is_constrained) = (vec![0; 2 * count], vec![true; count]);
    let mut masks =
        SampleMasks { words: &mut words, num_words: 2, is_constrained: &mut is_constrained };
    let failures = engine.scheduler.fill_masks(batch, &mut masks).unwrap();
    let words = words.chunks(2).map(|pair| u64::from(pair[0]) | u64::from(pair[1]) << 32);
    (words.collect(), is_constrained, failures)
}

fn update(engine: &mut Engine, batch: &Batch, ids: &[u32]) {
    let logprobs = vec![0.0; ids.len()];
    engine.scheduler.update(batch, ids, &logprobs, &mut engine.output).unwrap();
    engine.scheduler.check_invariants().unwrap();
}

#[test]
fn constrained_samples_are_counted_and_masked_and_others_left_alone() {
    let mut engine = Engine::new(config());
    engine.scheduler.add_request(request(1, 4, 20)).unwrap();
    let two = NewRequest { num_sequences: 2, ..constrained(2, 9, NEVER) };
    engine.scheduler.add_request(two).unwrap();
    for step in 0..3 {
        let batch = engine.plan().unwrap();
        assert_eq!((batch.num_samples, batch.num_constrained), (3, 2));
        let (words, is_constrained, failures) = masks(&mut engine, &batch);
        assert_eq!(is_constrained, [false, true, true]);
        assert_eq!(words[1..], [1 << step; 2]);
        assert!(failures.is_empty());
        update(&mut engine, &batch, &[step; 3]);
    }
}

#[test]
fn ending_ids_inside_the_mask_are_allowed_where_the_text_may_end() {
    let mut engine = Engine::new(config());
    let stop = StopConditions {
        max_tokens: 9,
        eos_token_ids: vec![40, 99],
        stop_token_ids: vec![50],
        ..StopConditions::default()
    };
    let ignoring = StopConditions { ignore_eos: true, ..stop.clone() };
    engine.scheduler.add_request(NewRequest { stop, ..constrained(1, 2, NEVER) }).unwrap();
    engine
        .scheduler
        .add_request(NewRequest { stop: ignoring, ..constrained(2, 2, NEVER) })
        .unwrap();
    let batch = engine.plan().unwrap();
    assert_eq!(masks(&mut engine, &batch).0, [1, 1]);
    update(&mut engine, &batch, &[0, 0]);
    let batch = engine.plan().unwrap();
    let ends = [1 << 40 | 1 << 50, 1 << 50];
    assert_eq!(masks(&mut engine, &batch).0, ends.map(|ends: u64| ends | 2));
    update(&mut engine, &batch, &[1, 1]);
    let batch = engine.plan().unwrap();
    assert_eq!(masks(&mut engine, &batch).0, ends);
    update(&mut engine, &batch, &[40, 50]);
    assert_eq!(engine.output.finished, [1, 2]);
}

#[test]
fn a_complete_text_ends_its_sequence_unless_an_ending_id_can() {
    let answer = |stop: StopConditions| {
        let stop = StopConditions { max_tokens: 9, ..stop };
        let result = Engine::answer(config(), NewRequest { stop, ..constrained(1, 3, NEVER) });
        (result.sequences[0].token_ids.len(), result.sequences[0].finish_reason)
    };
    let eos = StopConditions { eos_token_ids: vec![5], ..StopConditions::default() };
    assert_eq!(answer(StopConditions::default()), (3, FinishReason::Grammar));
    assert_eq!(answer(eos.clone()), (6, FinishReason::Eos));
    let ignored = StopConditions { ignore_eos: true, ..eos.clone() };
    assert_eq!(answer(ignored), (3, FinishReason::Grammar));
    assert_eq!(answer(StopConditions { min_tokens: 4, ..eos.clone() }), (6, FinishReason::Eos));
    assert_eq!(answer(StopConditions { min_tokens: 5, ..eos }), (3, FinishReason::Grammar));
}

#[test]
fn a_sequence_that_cannot_go_on_is_reported_with_its_message() {
    let mut engine = Engine::new(config());
    engine.scheduler.add_request(constrained(1, 9, 0)).unwrap();
    engine.scheduler.add_request(constrained(2, 9, NEVER)).unwrap();
    let batch = engine.plan().unwrap();
    let (words, is_constrained, failures) = masks(&mut engine, &batch);
    assert_eq!((words[1], is_constrained), (1, vec![false, true]));
    assert_eq!(failures, [(0, "stuck".to_owned())]);
    engine.scheduler.abort(1).unwrap();
    update(&mut engine, &batch, &[0, 0]);
    engine.finish();
}

#[test]
fn masks_are_of_the_oldest_batch_and_as_long_as_its_samples() {
    let mut two_in_flight = config();
    two_in_flight.max_in_flight = 2;
    let mut engine = Engine::new(two_in_flight);
    engine.scheduler.add_request(constrained(1, 9, NEVER)).unwrap();
    let first = engine.plan().unwrap();
    let second = engine.plan().unwrap();
    let mut words = [0; 2];
    let mut fill = |batch: &Batch, is_constrained: &mut [bool]| {
        let mut masks = SampleMasks { words: &mut words, num_words: 2, is_constrained };
        engine.scheduler.fill_masks(batch, &mut masks)
    };
    let error = fill(&second, &mut [true]).unwrap_err();
    assert_eq!(error, Error::BatchOrder { verb: "masked", given: 2, expected: 1 });
    let error = fill(&first, &mut [true, true]).unwrap_err();
    assert_eq!(error, Error::Shape { name: "is_constrained", expected: 1, actual: 2 });
    assert_eq!(fill(&first, &mut [true]), Ok(vec![]));
}
