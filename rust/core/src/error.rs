//! What a caller can do wrong. A full pool is not among it: that is an outcome (a request waits).

use thiserror::Error;

/// A configuration or a request that cannot be honoured, with the numbers and the remedy.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Error {
    /// A configuration value is out of its range.
    #[error("{name} must be {bound}, got {value}")]
    Config {
        /// The setting.
        name: &'static str,
        /// What it must be.
        bound: String,
        /// What was given.
        value: u64,
    },
    /// The prompt holds no token.
    #[error("prompt must hold at least one token, got an empty one")]
    EmptyPrompt,
    /// The prompt leaves no room for a generated token.
    #[error(
        "This model's maximum context length is {max_model_len} tokens, but the prompt has \
         {prompt_len} and at least one token is to be generated; shorten the prompt or raise \
         max_model_len"
    )]
    PromptTooLong {
        /// Tokens in the prompt.
        prompt_len: u32,
        /// The limit.
        max_model_len: u32,
    },
    /// A request parameter is out of its range.
    #[error("{name} must be {bound}, got {value}")]
    Parameter {
        /// The parameter.
        name: &'static str,
        /// What it must be.
        bound: String,
        /// What was given.
        value: u64,
    },
    /// The request needs more blocks than the pool has, even alone.
    #[error(
        "the request can need {needed} KV blocks ({num_sequences} x up to {num_tokens} tokens, \
         prompt shared), but the pool has {available}; raise kv_cache_memory_bytes to hold at \
         least {needed} blocks, or lower max_tokens or n"
    )]
    NeverFits {
        /// Blocks in the worst case.
        needed: u64,
        /// Blocks in the pool.
        available: u32,
        /// Sequences of the request.
        num_sequences: u32,
        /// Longest length of one of them.
        num_tokens: u32,
    },
    /// The waiting queue is full.
    #[error("{waiting} requests are waiting, which is max_num_waiting; try again later")]
    QueueFull {
        /// Requests in the queue.
        waiting: u32,
    },
    /// The id belongs to a request that has not been taken or aborted yet.
    #[error("request_id {id} is in use; ids must be unique among live requests")]
    DuplicateRequest {
        /// The id.
        id: u64,
    },
    /// No live request has this id.
    #[error("request_id {id} is unknown: never added, already taken or aborted")]
    UnknownRequest {
        /// The id.
        id: u64,
    },
    /// The request has not ended.
    #[error("request_id {id} has not finished; call abort to end it")]
    NotFinished {
        /// The id.
        id: u64,
    },
    /// A batch handle that is not the one expected.
    #[error("batch {given} cannot be {verb}: expected batch {expected}")]
    BatchOrder {
        /// What was tried.
        verb: &'static str,
        /// The handle given.
        given: u64,
        /// The handle that would do; 0 if none is in flight.
        expected: u64,
    },
    /// The sampled ids do not fit the batch.
    #[error("{name} must hold {expected} values, got {actual}")]
    Shape {
        /// The argument.
        name: &'static str,
        /// Values expected.
        expected: usize,
        /// Values given.
        actual: usize,
    },
}
