//! Beam search through the scheduler, against the search itself written down plainly.

use std::collections::{HashMap, VecDeque};

use pagedkv_core::{
    Batch, BeamOptions, EarlyStopping, FinishReason, GroupKind, NewRequest, RepetitionLimits,
    RequestResult, SchedulerConfig, StopConditions, TokenId,
};

#[path = "support/engine.rs"]
mod engine;
#[path = "support/language.rs"]
mod language;

use engine::{Engine, config, request};
use language::{EOS, logprobs, search};

/// Runs all requests together, the model answering from the tokens that the batch itself names.
struct Runner {
    engine: Engine,
    /// Tokens by slot of group 0: the cache that a real model would read.
    memory: HashMap<i64, TokenId>,
    host: HashMap<i64, TokenId>,
    /// Tokens of the previous batch, for ids that are late.
    previous: Vec<TokenId>,
    max_rows_of_a_step: u32,
}

impl Runner {
    fn new(config: SchedulerConfig) -> Self {
        Self {
            engine: Engine::new(config),
            memory: HashMap::new(),
            host: HashMap::new(),
            previous: Vec::new(),
            max_rows_of_a_step: 0,
        }
    }

    fn step(&mut self) {
        let batch = self.engine.plan().expect("something to run");
        let (ids, lps) = self.forward(&batch);
        self.max_rows_of_a_step = self.max_rows_of_a_step.max(batch.num_rows);
        self.engine.scheduler.update(&batch, &ids, &lps, &mut self.engine.output).unwrap();
        self.engine.scheduler.check_invariants().unwrap();
    }

    fn forward(&mut self, batch: &Batch) -> (Vec<TokenId>, Vec<f32>) {
        let config = self.engine.scheduler.config().cache.clone();
        let size = i64::from(config.block_size);
        let width = config.blocks_per_row() as usize;
        let arrays = self.engine.buffers.arrays();
        for (copies, count, is_out) in [
            (&arrays.swap_out, batch.num_swap_out, true),
            (&arrays.swap_in, batch.num_swap_in, false),
        ] {
            let (from, to) = if is_out {
                (&mut self.memory, &mut self.host)
            } else {
                (&mut self.host, &mut self.memory)
            };
            for copy in copies.chunks(3).take(count as usize).filter(|copy| copy[0] == 0) {
                for offset in 0..size {
                    if let Some(token) = from.get(&(i64::from(copy[1]) * size + offset)) {
                        to.insert(i64::from(copy[2]) * size + offset, *token);
                    }
                }
            }
        }
        for copy in arrays.block_copies.chunks(3).take(batch.num_block_copies as usize) {
            for offset in 0..size {
                if copy[0] == 0
                    && let Some(token) =
                        self.memory.get(&(i64::from(copy[1]) * size + offset)).copied()
                {
                    self.memory.insert(i64::from(copy[2]) * size + offset, token);
                }
            }
        }
        for t in 0..batch.num_tokens as usize {
            let known = TokenId::try_from(arrays.input_ids[t]);
            let token = known.unwrap_or_else(|_| self.previous[arrays.input_source[t] as usize]);
            self.memory.insert(arrays.slot_mapping[t], token);
        }
        let per_sample = batch.num_candidates.max(1) as usize;
        let (mut ids, mut lps) = (Vec::new(), Vec::new());
        for s in 0..batch.num_samples as usize {
            let at = arrays.logits_indices[s];
            let r = (0..batch.num_rows as usize)
                .find(|r| (arrays.query_start_loc[*r]..arrays.query_start_loc[r + 1]).contains(&at))
                .unwrap();
            let row = arrays.row_ids[r] as usize;
            let tokens: Vec<TokenId> = (0..arrays.seq_lens[r])
                .map(|position| {
                    let column = i64::from(position) / size;
                    let block = arrays.block_tables[row * width + column as usize];
                    self.memory[&(i64::from(block) * size + i64::from(position) % size)]
                })
                .collect();
            let mut best: Vec<(f32, TokenId)> = logprobs(&tokens).into_iter().zip(0..).collect();
            best.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            best.resize(per_sample, (f32::NEG_INFINITY, 0));
            assert!(arrays.num_candidates[s] as usize <= per_sample);
            ids.extend(best.iter().map(|(_, token)| *token));
            lps.extend(best.iter().map(|(logprob, _)| *logprob));
        }
        self.previous = ids.iter().step_by(per_sample).copied().collect();
        (ids, lps)
    }

    /// Plans each batch while the one before it still runs.
    fn finish_overlapped(&mut self) {
        let mut flights = VecDeque::new();
        for _ in 0..100_000 {
            let max_in_flight = self.engine.scheduler.config().max_in_flight as usize;
            if flights.len() < max_in_flight
                && let Some(batch) = self.engine.plan()
            {
                flights.push_back((batch, self.forward(&batch)));
                if flights.len() < max_in_flight {
                    continue;
                }
            }
            let Some((batch, (ids, lps))) = flights.pop_front() else { return };
            self.engine.scheduler.update(&batch, &ids, &lps, &mut self.engine.output).unwrap();
            self.engine.scheduler.check_invariants().unwrap();
        }
        panic!("no progress");
    }

    fn finish(&mut self) {
        let mut num_steps = 0;
        while self.engine.scheduler.has_unfinished() {
            self.step();
            num_steps += 1;
            assert!(num_steps < 100_000, "no progress");
        }
    }

    fn result(&mut self, id: u64) -> RequestResult {
        self.engine.scheduler.take_output(id).unwrap()
    }
}

fn options(num_returned: u32, early_stopping: EarlyStopping, length_penalty: f64) -> BeamOptions {
    BeamOptions {
        num_returned,
        length_penalty,
        early_stopping,
        track_rows: false,
        num_logprobs: None,
    }
}

fn beams(
    id: u64,
    prompt_len: u32,
    max_tokens: u32,
    width: u32,
    options: BeamOptions,
) -> NewRequest {
    let stop = StopConditions { max_tokens, eos_token_ids: vec![EOS], ..StopConditions::default() };
    NewRequest {
        num_sequences: width,
        beams: Some(options),
        stop,
        ..request(id, prompt_len, max_tokens)
    }
}

fn check(
    result: &RequestResult,
    new: &(Vec<TokenId>, u32, StopConditions, BeamOptions),
    name: &str,
) {
    let (prompt, width, stop, options) = new;
    let expected = search(prompt, *width as usize, stop, *options);
    let got: Vec<_> =
        result.sequences.iter().map(|s| (s.score.unwrap(), s.token_ids.clone())).collect();
    assert_eq!(got, expected, "{name}");
}

fn plain(new: &NewRequest) -> (Vec<TokenId>, u32, StopConditions, BeamOptions) {
    (new.prompt.clone(), new.num_sequences, new.stop.clone(), new.beams.unwrap())
}

fn modes() -> impl Iterator<Item = (EarlyStopping, f64)> {
    [EarlyStopping::Always, EarlyStopping::Heuristic, EarlyStopping::Never]
        .into_iter()
        .flat_map(|mode| [1.0, 0.0, 2.0, -0.5].map(|penalty| (mode, penalty)))
}

#[test]
fn a_search_alone_equals_the_plain_one_in_every_mode_at_any_block_size() {
    for block_size in [1, 4, 16] {
        for (mode, penalty) in modes() {
            for width in [1, 2, 5] {
                let mut config = config();
                config.cache.block_size = block_size;
                config.cache.num_blocks = 400 / block_size + 1;
                let mut runner = Runner::new(config);
                let new = beams(0, 6, 12, width, options(width, mode, penalty));
                let expected = plain(&new);
                runner.engine.scheduler.add_request(new).unwrap();
                runner.finish();
                let name = format!("block size {block_size}, {mode:?}, {penalty}, width {width}");
                check(&runner.result(0), &expected, &name);
            }
        }
    }
}

#[test]
fn the_prompt_is_computed_once_and_beams_run_in_one_step() {
    let mut runner = Runner::new(config());
    let new = beams(0, 10, 8, 4, options(4, EarlyStopping::Never, 1.0));
    runner.engine.scheduler.add_request(new).unwrap();
    runner.finish();
    let stats = runner.engine.scheduler.stats();
    assert!(stats.num_scheduled_tokens <= 10 + 7 * 4, "{}", stats.num_scheduled_tokens);
    assert_eq!(runner.max_rows_of_a_step, 4);
    assert_eq!(stats.num_steps, 8, "one step per token");
}

/// Searches and sampled requests in a pool that holds a fraction of them, with and without a prefix
/// cache, windows, chunked prompts, one batch after the other or the next while one runs.
#[test]
fn a_mix_under_pressure_equals_each_request_alone_and_leaves_nothing_behind() {
    let (mut num_preemptions, mut num_swaps) = (0, 0);
    for (case, groups) in [
        vec![GroupKind::Full],
        vec![GroupKind::Full],
        vec![GroupKind::Full, GroupKind::Sliding(64)],
    ]
    .into_iter()
    .enumerate()
    {
        for ((mode, penalty), max_in_flight) in
            modes().flat_map(|mode| [1, 2].map(|max_in_flight| (mode, max_in_flight)))
        {
            let mut config = config();
            config.max_in_flight = max_in_flight;
            config.cache.groups = groups.clone();
            config.cache.num_blocks = 1 + 32 * groups.len() as u32;
            config.cache.num_rows = 24;
            config.cache.num_swap_blocks = 20 * case as u32;
            config.swap_cost = 2.0;
            config.cache.enable_prefix_caching = case > 0;
            config.max_num_batched_tokens = 24;
            let mut runner = Runner::new(config);
            let mut expected = Vec::new();
            let sampled = NewRequest { num_sequences: 2, ..request(9, 5, 20) };
            runner.engine.scheduler.add_request(sampled).unwrap();
            for id in 0..6 {
                let width = [1, 5, 3][id as usize % 3];
                let mut new =
                    beams(id, 3 + 5 * id as u32 % 11, 14, width, options(width, mode, penalty));
                new.stop.min_tokens = 12;
                expected.push(plain(&new));
                runner.engine.scheduler.add_request(new).unwrap();
            }
            runner.finish_overlapped();
            for (id, expected) in (0..).zip(&expected) {
                check(&runner.result(id), expected, &format!("request {id}, {mode:?}, {penalty}"));
            }
            assert_eq!(runner.result(9).sequences[1].token_ids.len(), 20);
            num_preemptions += runner.engine.scheduler.stats().num_preemptions;
            num_swaps += runner.engine.scheduler.stats().num_swaps;
            assert_eq!(runner.engine.scheduler.kv_cache().pool().num_referenced(), 0);
        }
    }
    let num_recomputed = num_preemptions - num_swaps;
    assert!(num_recomputed > 10 && num_swaps > 5, "{num_recomputed} and {num_swaps} by swap");
}

#[test]
fn only_as_many_as_wanted_are_returned_and_the_minimum_length_holds_back_endings() {
    let mut runner = Runner::new(config());
    let mut new = beams(0, 5, 9, 6, options(2, EarlyStopping::Always, 1.0));
    new.stop.min_tokens = 4;
    let expected = plain(&new);
    runner.engine.scheduler.add_request(new).unwrap();
    runner.finish();
    let result = runner.result(0);
    assert_eq!(result.sequences.len(), 2);
    assert!(result.sequences.iter().all(|sequence| sequence.token_ids.len() >= 4));
    check(&result, &expected, "two of six");
}

#[test]
fn a_beam_that_repeats_itself_is_kept_as_ended() {
    let limits = RepetitionLimits { min_pattern: 1, max_pattern: 3, min_count: 2 };
    let mut num_repeating = 0;
    for (prompt_len, (mode, penalty)) in (5..).zip(modes()) {
        let mut new = beams(0, prompt_len, 12, 5, options(5, mode, penalty));
        new.stop.repetition = Some(limits);
        new.stop.min_tokens = prompt_len % 3;
        let (mut runner, expected) = (Runner::new(config()), plain(&new));
        runner.engine.scheduler.add_request(new).unwrap();
        runner.finish();
        let result = runner.result(0);
        check(&result, &expected, &format!("{mode:?}, {penalty}"));
        let reasons = result.sequences.iter().map(|sequence| sequence.finish_reason);
        num_repeating += reasons.filter(|reason| *reason == FinishReason::Repetition).count();
    }
    assert!(num_repeating > 5, "{num_repeating}");
}

#[test]
fn an_aborted_search_returns_what_it_has_and_frees_everything() {
    let mut runner = Runner::new(config());
    let new = beams(0, 9, 20, 4, options(4, EarlyStopping::Never, 1.0));
    runner.engine.scheduler.add_request(new).unwrap();
    for _ in 0..5 {
        runner.step();
    }
    let result = runner.engine.scheduler.abort(0).unwrap();
    assert_eq!(result.sequences.len(), 4);
    assert!(result.sequences.iter().any(|s| s.finish_reason == FinishReason::Abort));
    assert!(result.sequences.is_sorted_by(|a, b| a.score >= b.score));
    runner.engine.scheduler.check_invariants().unwrap();
    assert_eq!(runner.engine.scheduler.kv_cache().pool().num_referenced(), 0);
}

#[test]
fn a_width_above_the_rows_and_a_wrong_number_returned_are_refused() {
    let mut engine = Engine::new(config());
    for (width, num_returned, name) in
        [(9, 1, "max_num_seqs (8)"), (4, 5, "the width (4)"), (4, 0, "the width (4)")]
    {
        let new = beams(0, 4, 4, width, options(num_returned, EarlyStopping::Always, 1.0));
        let error = engine.scheduler.add_request(new).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
}

#[test]
fn tracked_rows_are_reported_whenever_they_continue_another_beam() {
    let mut runner = Runner::new(config());
    let options = BeamOptions { track_rows: true, ..options(3, EarlyStopping::Never, 1.0) };
    runner.engine.scheduler.add_request(beams(0, 4, 6, 3, options)).unwrap();
    runner.step();
    let batch = runner.engine.plan().unwrap();
    assert_eq!((batch.num_rows, batch.num_row_fills), (3, 3));
}

#[test]
fn reported_logprobs_add_up_to_the_sum_of_their_sequence() {
    let mut runner = Runner::new(config());
    let options = BeamOptions { num_logprobs: Some(3), ..options(4, EarlyStopping::Never, 1.0) };
    runner.engine.scheduler.add_request(beams(0, 5, 9, 4, options)).unwrap();
    runner.finish();
    for sequence in runner.result(0).sequences {
        let tokens = sequence.logprobs.unwrap();
        assert_eq!(tokens.len(), sequence.token_ids.len());
        let sum: f32 = tokens.iter().map(|token| token.logprob).sum();
        assert_eq!(f64::from(sum).to_bits(), sequence.cumulative_logprob.to_bits());
        let prompt: Vec<TokenId> = (0..5).collect();
        for (i, (token, id)) in tokens.iter().zip(&sequence.token_ids).enumerate() {
            let all = logprobs(&[&prompt, &sequence.token_ids[..i]].concat());
            assert_eq!(all[*id as usize].to_bits(), token.logprob.to_bits());
            let num_better = all.iter().filter(|other| **other > token.logprob).count();
            assert_eq!(num_better as u32 + 1, token.rank);
            assert!(token.top.len() == 3 && token.top.is_sorted_by(|a, b| a.1 >= b.1));
        }
    }
}

/// The beams of a batch in flight are not decided yet: what they will share is not known.
#[test]
fn a_search_that_is_preempted_while_its_batch_runs_equals_one_alone() {
    let mut num_swaps = 0;
    for num_blocks in 24..64 {
        let mut config = config();
        config.max_in_flight = 2;
        config.cache.num_blocks = num_blocks;
        config.cache.num_swap_blocks = 64;
        config.cache.num_rows = 16;
        config.swap_cost = 0.0;
        let mut runner = Runner::new(config);
        let sampled = NewRequest { num_sequences: 3, ..request(9, 6, 22) };
        runner.engine.scheduler.add_request(sampled).unwrap();
        let mut expected = Vec::new();
        for id in 0..2 {
            let mut new = beams(id, 7, 16, 4, options(4, EarlyStopping::Never, 1.0));
            new.stop.min_tokens = 14;
            expected.push(plain(&new));
            if runner.engine.scheduler.add_request(new).is_err() {
                expected.clear();
                break;
            }
        }
        runner.finish_overlapped();
        for (id, expected) in (0..).zip(&expected) {
            check(&runner.result(id), expected, &format!("{num_blocks} blocks, request {id}"));
        }
        num_swaps += runner.engine.scheduler.stats().num_swaps;
    }
    assert!(num_swaps > 10, "{num_swaps}");
}
