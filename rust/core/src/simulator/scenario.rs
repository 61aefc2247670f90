//! What a seed stands for: a configuration and a stream of requests.

use super::rng::{Rng, mix};
use super::toy_text::ToyText;
use super::truth::{Truth, Voice};
use crate::config::{CacheConfig, GroupKind, Policy, SchedulerConfig};
use crate::prefix_cache::CacheKey;
use crate::repetition::RepetitionLimits;
use crate::request::NewRequest;
use crate::stop::StopConditions;
use crate::text::SequenceText;

/// What may happen in a run, in percent per opportunity; a seed turns a random half of it off, since
/// faults that always occur together hide each other.
#[derive(Clone, Copy, Debug, Default)]
pub struct Events {
    /// A request arrives.
    pub arrival: u32,
    /// A request is aborted, whatever its state.
    pub abort: u32,
    /// The newest batch fails and is requeued.
    pub failure: u32,
    /// The prefix cache is asked to forget everything.
    pub reset: u32,
    /// The next batch is planned although it could wait for the update of the last.
    pub overlap: u32,
    /// A finished request's output is taken.
    pub take: u32,
}

/// Shape of the requests.
#[derive(Clone, Debug)]
struct Shape {
    vocabulary: u32,
    max_siblings: u32,
    max_prompt: u32,
    max_tokens: u32,
    /// Percent of prompts that begin like others.
    shared_prefix: u32,
    num_keys: u32,
    num_priorities: u32,
    max_stop_ids: u32,
    /// Percent of requests that repetitions end.
    repetition: u32,
    /// Percent of requests that may not end early.
    min_tokens: u32,
    /// Percent of requests that have text.
    text: u32,
    documents: Vec<Vec<u32>>,
}

/// A configuration and a stream of requests, all from one seed.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// What everything else follows from.
    pub seed: u64,
    /// The scheduler under test.
    pub config: SchedulerConfig,
    /// What may happen.
    pub events: Events,
    /// Requests to come.
    pub num_requests: u32,
    shape: Shape,
}

impl Scenario {
    /// A small scenario: a few requests, a few rows, some tens of blocks.
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::new(mix(seed, 0x7363_656e));
        let is_pressed = rng.chance(50);
        let max_siblings = if rng.chance(60) { rng.range(1, 5) } else { 1 };
        let config = random_config(&mut rng, max_siblings, is_pressed);
        let mut maybe = |percent: u32| if rng.chance(50) { rng.range(1, percent) } else { 0 };
        let events = Events {
            arrival: 10 + maybe(80),
            abort: maybe(10),
            failure: maybe(10),
            reset: maybe(10),
            overlap: 100 - maybe(90),
            take: 100 - maybe(90),
        };
        let num_requests = rng.range(1, 24);
        let shape = random_shape(&mut rng, &config, max_siblings, is_pressed);
        Self { seed, config, events, num_requests, shape }
    }

    /// The next request of the stream and what it must get.
    pub fn request(&self, rng: &mut Rng, id: u64) -> (NewRequest, Truth) {
        let shape = &self.shape;
        let max_tokens = rng.range(1, shape.max_tokens);
        let ids = |rng: &mut Rng| {
            let count = rng.below(shape.max_stop_ids + 1);
            (0..count).map(|_| rng.below(shape.vocabulary)).collect::<Vec<_>>()
        };
        let stop = StopConditions {
            max_tokens,
            min_tokens: if rng.chance(shape.min_tokens) { rng.below(max_tokens + 1) } else { 0 },
            eos_token_ids: ids(rng),
            stop_token_ids: ids(rng),
            ignore_eos: rng.chance(20),
            repetition: rng.chance(shape.repetition).then(|| repetition_limits(rng)),
        };
        let tenant = rng.below(shape.num_keys);
        let voice = Voice {
            seed: u64::from(rng.below(3)),
            vocabulary: shape.vocabulary,
            stop_modulus: rng.chance(shape.text).then(|| rng.range(2, 12)),
        };
        let request = NewRequest {
            id,
            prompt: self.prompt(rng),
            num_sequences: rng.range(1, shape.max_siblings),
            stop,
            priority: rng.below(shape.num_priorities) as i32,
            key: CacheKey { adapter_id: tenant / 2, salt: vec![7; (tenant % 2) as usize] },
            text: voice.stop_modulus.map(|n| Box::new(ToyText::new(n)) as Box<dyn SequenceText>),
            beams: None,
            include_stop_in_text: rng.chance(30),
            stream: rng.chance(50),
        };
        let truth = Truth::new(&request, voice, self.config.cache.max_model_len);
        (request, truth)
    }

    fn prompt(&self, rng: &mut Rng) -> Vec<u32> {
        let shape = &self.shape;
        let len = rng.range(1, shape.max_prompt) as usize;
        let mut prompt = Vec::new();
        if rng.chance(shape.shared_prefix) {
            let document = &shape.documents[rng.below(shape.documents.len() as u32) as usize];
            let shared = rng.range(1, len as u32) as usize;
            prompt.extend_from_slice(&document[..shared]);
        }
        while prompt.len() < len {
            prompt.push(rng.below(shape.vocabulary));
        }
        prompt
    }
}

fn repetition_limits(rng: &mut Rng) -> RepetitionLimits {
    let min_pattern = rng.range(1, 3);
    RepetitionLimits {
        min_pattern,
        max_pattern: min_pattern + rng.below(4),
        min_count: rng.range(2, 5),
    }
}

/// `is_pressed`: requests are long and many, blocks few, so that they push each other out.
fn random_config(rng: &mut Rng, max_siblings: u32, is_pressed: bool) -> SchedulerConfig {
    let block_size = rng.pick(&[1, 2, 4, 4, 8, 16]);
    let max_model_len = rng.range(4, 64);
    let num_groups = if rng.chance(50) { 1 } else { rng.range(1, 3) };
    let is_uniform = rng.chance(40);
    let groups: Vec<_> = (0..num_groups)
        .map(|_| match rng.below(if is_uniform { 1 } else { 3 }) {
            0 => GroupKind::Full,
            1 => GroupKind::Sliding(rng.range(1, max_model_len)),
            _ => GroupKind::Chunked(rng.range(1, max_model_len)),
        })
        .collect();
    let num_rows = max_siblings - 1 + rng.range(if is_pressed { 3 } else { 1 }, 7);
    let longest = num_groups * max_model_len.div_ceil(block_size);
    let num_blocks = 1 + match rng.below(4) {
        _ if is_pressed => max_siblings * rng.range(longest, longest * 3 / 2),
        0 => longest * num_rows,
        _ => rng.range(longest.div_ceil(2), longest * 3 / 2),
    };
    let cache = CacheConfig {
        num_blocks,
        num_swap_blocks: if rng.chance(50) { rng.range(1, num_blocks) } else { 0 },
        block_size,
        groups,
        num_rows,
        max_model_len,
        enable_prefix_caching: rng.chance(70),
        hash_key: rng.next_u64(),
        hash_bits: rng.pick(&[64, 64, 8, 1]),
    };
    SchedulerConfig {
        cache,
        max_num_batched_tokens: num_rows + rng.pick(&[0, 1, 5, 16, 64]),
        max_num_waiting: rng.pick(&[1, 4, 100]),
        policy: rng.pick(&[Policy::Fcfs, Policy::Priority]),
        swap_cost: rng.pick(&[0.0, 1.0, 3.0]),
        max_in_flight: rng.range(1, 2),
    }
}

fn random_shape(
    rng: &mut Rng,
    config: &SchedulerConfig,
    max_siblings: u32,
    is_pressed: bool,
) -> Shape {
    let cache = &config.cache;
    let vocabulary = rng.pick(&[2, 3, 8, 100]);
    let documents =
        (0..3).map(|_| (0..cache.max_model_len).map(|_| rng.below(vocabulary)).collect()).collect();
    let longest_prompt = if is_pressed { 8 } else { 64 }.min(cache.max_model_len);
    let are_short = !is_pressed && rng.chance(50);
    Shape {
        vocabulary,
        max_siblings,
        max_prompt: rng.range(1, longest_prompt),
        max_tokens: if are_short { rng.range(1, 12) } else { cache.max_model_len },
        shared_prefix: if rng.chance(60) { rng.range(20, 100) } else { 0 },
        num_keys: if rng.chance(25) { 4 } else { 1 },
        num_priorities: rng.pick(&[1, 3]),
        max_stop_ids: if rng.chance(if is_pressed { 10 } else { 50 }) { 2 } else { 0 },
        repetition: if rng.chance(if is_pressed { 10 } else { 50 }) { 70 } else { 0 },
        min_tokens: rng.pick(&[0, 70]),
        text: if rng.chance(if is_pressed { 10 } else { 50 }) { 70 } else { 0 },
        documents,
    }
}
