//! The paged KV cache and its scheduler, as a pure state machine: no clock, no randomness, no I/O,
//! no threads. The same calls give the same results.
//!
//! ```
//! use pagedkv_core::{
//!     CacheConfig, GroupKind, NewRequest, Policy, Scheduler, SchedulerConfig, StepBuffers,
//!     StepOutput, StopConditions,
//! };
//!
//! let cache = CacheConfig {
//!     num_blocks: 64,
//!     num_swap_blocks: 0,
//!     block_size: 16,
//!     groups: vec![GroupKind::Full],
//!     num_rows: 8,
//!     max_model_len: 256,
//!     enable_prefix_caching: true,
//!     hash_key: 0,
//!     hash_bits: 64,
//! };
//! let config = SchedulerConfig {
//!     cache,
//!     max_num_batched_tokens: 32,
//!     max_num_waiting: 16,
//!     policy: Policy::Fcfs,
//!     swap_cost: 1.0,
//!     max_in_flight: 1,
//! };
//! let mut scheduler = Scheduler::new(config)?;
//! let mut buffers = StepBuffers::new(scheduler.sizes());
//! let mut output = StepOutput::default();
//! scheduler.add_request(NewRequest {
//!     id: 7,
//!     prompt: (0..40).collect(),
//!     num_sequences: 2,
//!     stop: StopConditions { max_tokens: 3, ..StopConditions::default() },
//!     priority: 0,
//!     key: pagedkv_core::CacheKey::default(),
//!     text: None,
//!     beams: None,
//!     include_stop_in_text: false,
//!     stream: false,
//! })?;
//! while let Some(batch) = scheduler.schedule(&mut buffers.arrays())? {
//!     // Here a model would run; this one always answers 5.
//!     let ids = vec![5; batch.num_samples as usize];
//!     let logprobs = vec![0.0; ids.len()];
//!     scheduler.update(&batch, &ids, &logprobs, &mut output)?;
//! }
//! let result = scheduler.take_output(7)?;
//! assert_eq!(result.sequences[1].token_ids, [5, 5, 5]);
//! assert_eq!(scheduler.stats().num_forks, 1);
//! # Ok::<(), pagedkv_core::Error>(())
//! ```
#![forbid(unsafe_code)]

mod batch;
mod beam;
mod block_pool;
mod block_tables;
mod config;
mod error;
mod fork;
mod ids;
mod kv_cache;
mod logprobs;
mod prefix_cache;
mod repetition;
mod request;
mod scheduler;
pub mod simulator;
mod stats;
mod stop;
pub mod text;
mod tokens;

pub use batch::{Batch, StepArrays, StepBuffers, StepSizes};
pub use beam::{BeamOptions, EarlyStopping};
pub use block_pool::BlockPool;
pub use block_tables::{BlockTables, RowFork, TableUpdate};
pub use config::{CacheConfig, GroupKind, Policy, SchedulerConfig};
pub use error::Error;
pub use ids::{BlockId, RowId, TokenId, num_blocks_for, slot};
pub use kv_cache::{
    BlockCopy, CacheCounters, KvCacheManager, Miss, MissingBlock, PrefixHit, PrefixMatch, SlotUse,
};
pub use logprobs::TokenLogprob;
pub use prefix_cache::{CacheKey, EntryId, PrefixCache};
pub use repetition::RepetitionLimits;
pub use request::{NewRequest, RequestResult, SequenceResult};
pub use scheduler::{Delta, SampleMasks, Scheduler, StepOutput};
pub use stats::Stats;
pub use stop::{FinishReason, StopConditions};
pub use tokens::Tokens;
