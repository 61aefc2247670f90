//! Tells what a scheduler does, step by step, in a form that a reader can check by eye.
//!
//! Tokens are letters. The model continues the alphabet. Siblings skip letters, so that they differ:
//! 0 and 1 of a request from their second letter on, all others from the first.

use std::collections::VecDeque;
use std::fmt::Write as _;

use pagedkv_core::{
    Batch, CacheConfig, CacheKey, FinishReason, GroupKind, NewRequest, Policy, Scheduler,
    SchedulerConfig, StepBuffers, StepOutput, StopConditions, TokenId,
};

pub(crate) struct Story {
    scheduler: Scheduler,
    arenas: Vec<StepBuffers>,
    in_flight: VecDeque<(Batch, Vec<TokenId>)>,
    /// Samples of the batch before: where late ids come from.
    previous: Vec<TokenId>,
    /// Request and index in each row.
    rows: Vec<(char, u32)>,
    num_planned: usize,
    /// The letter that ends a sequence.
    pub(crate) eos: Option<char>,
    text: String,
}

/// 4 tokens a block, 4 rows, 8 tokens a step, one group that sees everything.
pub(crate) fn small() -> SchedulerConfig {
    SchedulerConfig {
        cache: CacheConfig {
            num_blocks: 17,
            num_swap_blocks: 0,
            block_size: 4,
            groups: vec![GroupKind::Full],
            num_rows: 4,
            max_model_len: 32,
            enable_prefix_caching: true,
            hash_key: 0,
            hash_bits: 64,
        },
        max_num_batched_tokens: 8,
        max_num_waiting: 8,
        policy: Policy::Fcfs,
        swap_cost: 1.0,
        max_in_flight: 1,
    }
}

impl Story {
    pub(crate) fn new(config: SchedulerConfig) -> Self {
        let rows = vec![('?', 0); config.max_num_seqs() as usize];
        let num_arenas = config.max_in_flight;
        let scheduler = Scheduler::new(config).unwrap();
        let sizes = scheduler.sizes();
        Self {
            arenas: (0..num_arenas).map(|_| StepBuffers::new(sizes)).collect(),
            scheduler,
            in_flight: VecDeque::new(),
            previous: Vec::new(),
            rows,
            num_planned: 0,
            eos: None,
            text: String::new(),
        }
    }

    pub(crate) fn add(&mut self, name: char, prompt: &str, n: u32, max_tokens: u32) {
        writeln!(self.text, "{name} arrives: {prompt}, n = {n}, max_tokens = {max_tokens}")
            .unwrap();
        let eos_token_ids = self.eos.iter().map(|eos| *eos as u32 - 'a' as u32).collect();
        let request = NewRequest {
            id: name as u64,
            prompt: prompt.bytes().map(|letter| TokenId::from(letter - b'a')).collect(),
            num_sequences: n,
            stop: StopConditions { max_tokens, eos_token_ids, ..StopConditions::default() },
            priority: 0,
            key: CacheKey::default(),
            text: None,
            beams: None,
            include_stop_in_text: false,
            stream: false,
        };
        self.scheduler.add_request(request).unwrap();
    }

    pub(crate) fn abort(&mut self, name: char) {
        let result = self.scheduler.abort(name as u64).unwrap();
        let outputs: Vec<_> = result.sequences.iter().map(|s| letters(&s.token_ids)).collect();
        writeln!(self.text, "{name} is aborted with {outputs:?}").unwrap();
        self.tell_pool();
    }

    /// Plans a batch and takes its tokens.
    pub(crate) fn step(&mut self) {
        if self.plan() {
            self.update();
        }
    }

    /// Steps until nothing is left to do.
    pub(crate) fn finish(&mut self) {
        while self.scheduler.has_unfinished() {
            self.step();
        }
        self.tell_pool();
    }

    /// Steps without telling, until nothing is left to do.
    pub(crate) fn finish_silently(&mut self) {
        let len = self.text.len();
        self.finish();
        self.text.truncate(len);
        self.text.push_str("...\n");
        self.tell_pool();
    }

    pub(crate) fn plan(&mut self) -> bool {
        let arena = self.num_planned % self.arenas.len();
        let planned = self.scheduler.schedule(&mut self.arenas[arena].arrays()).unwrap();
        self.scheduler.check_invariants().unwrap();
        let Some(batch) = planned else {
            self.text.push_str("nothing to run\n");
            return false;
        };
        self.num_planned += 1;
        let samples = self.tell_batch(&batch, arena);
        self.in_flight.push_back((batch, samples));
        true
    }

    pub(crate) fn update(&mut self) {
        let (batch, samples) = self.in_flight.pop_front().unwrap();
        let mut output = StepOutput::default();
        let logprobs = vec![0.0; samples.len()];
        self.scheduler.update(&batch, &samples, &logprobs, &mut output).unwrap();
        self.scheduler.check_invariants().unwrap();
        for (s, _) in output.accepted.iter().enumerate().filter(|(_, accepted)| !**accepted) {
            writeln!(self.text, "  sample {s} of batch {} is too late", batch.id).unwrap();
        }
        for id in output.finished {
            let result = self.scheduler.take_output(id).unwrap();
            let name = u8::try_from(id).unwrap() as char;
            let outputs: Vec<_> = result.sequences.iter().map(|s| letters(&s.token_ids)).collect();
            assert!(result.sequences.iter().all(|s| s.finish_reason != FinishReason::Abort));
            writeln!(
                self.text,
                "  {name} ends with {outputs:?}, {} tokens cached, {} preemptions",
                result.num_cached_tokens, result.num_preemptions
            )
            .unwrap();
        }
    }

    pub(crate) fn told(self) -> String {
        self.text
    }

    fn tell_pool(&mut self) {
        let stats = self.scheduler.stats();
        writeln!(
            self.text,
            "pool: {} used, {} free, {} cached",
            stats.num_used_blocks, stats.num_free_blocks, stats.num_cached_blocks
        )
        .unwrap();
    }

    fn name(&self, row: i32) -> String {
        let (request, index) = self.rows[row as usize];
        format!("{request}{index}")
    }

    fn tell_batch(&mut self, batch: &Batch, arena: usize) -> Vec<TokenId> {
        let mut buffers =
            std::mem::replace(&mut self.arenas[arena], StepBuffers::new(self.scheduler.sizes()));
        let arrays = buffers.arrays();
        for fill in arrays.row_fills.chunks(3).take(batch.num_row_fills as usize) {
            let name = u8::try_from(fill[1]).unwrap() as char;
            self.rows[fill[0] as usize] = (name, fill[2] as u32);
        }
        let mut text = format!("batch {}\n", batch.id);
        for copy in arrays.block_copies.chunks(3).take(batch.num_block_copies as usize) {
            writeln!(text, "  copy block {} to {}", copy[1], copy[2]).unwrap();
        }
        let mut inputs = Vec::new();
        for r in 0..batch.num_rows as usize {
            let [start, end] = [r, r + 1].map(|i| arrays.query_start_loc[i] as usize);
            let mut shown = String::new();
            for t in start..end {
                let token = if arrays.input_ids[t] < 0 {
                    write!(shown, "<{}>", arrays.input_source[t]).unwrap();
                    self.previous[arrays.input_source[t] as usize]
                } else {
                    shown.push_str(&letters(&[arrays.input_ids[t] as u32]));
                    arrays.input_ids[t] as u32
                };
                inputs.push(token);
            }
            let (first, len) = (arrays.positions[start], arrays.seq_lens[r]);
            let row = pagedkv_core::RowId::new(arrays.row_ids[r] as u32);
            let kv = self.scheduler.kv_cache();
            let tables: Vec<_> = (0..kv.config().groups.len())
                .map(|group| {
                    let line = &kv.tables().line(group, row)[..kv.num_columns(row) as usize];
                    let show = |id: &u32| if *id == 0 { "-".to_owned() } else { id.to_string() };
                    format!("[{}]", line.iter().map(show).collect::<Vec<_>>().join(" "))
                })
                .collect();
            let name = self.name(arrays.row_ids[r]);
            let range = format!("{first}..{len}");
            writeln!(text, "  {name} runs {range:<6} {shown:<8} in {}", tables.join(" ")).unwrap();
        }
        for fork in arrays.row_forks.chunks(2).take(batch.num_row_forks as usize) {
            writeln!(text, "  {} forks from {}", self.name(fork[1]), self.name(fork[0])).unwrap();
        }
        let mut samples = Vec::new();
        for s in 0..batch.num_samples as usize {
            let index = arrays.sample_index[s] as u32;
            let num_skipped = index * (arrays.sample_positions[s] as u32 + 1) / 2;
            let token = (inputs[arrays.logits_indices[s] as usize] + 1 + num_skipped) % 26;
            let name = self.name(arrays.sample_rows[s]);
            writeln!(text, "  {name} gets {}", letters(&[token])).unwrap();
            samples.push(token);
        }
        self.text.push_str(&text);
        self.arenas[arena] = buffers;
        self.previous.clone_from(&samples);
        samples
    }
}

fn letters(tokens: &[TokenId]) -> String {
    tokens.iter().map(|token| char::from(b'a' + *token as u8)).collect()
}
