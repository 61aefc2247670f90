//! How a run ended.

use std::fmt;

use crate::stats::Stats;

/// What a run came to.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// Arrivals, steps, updates, aborts and faults.
    pub num_operations: u64,
    /// Requests that were refused when they arrived.
    pub num_refused: u64,
    /// Tokens that came too late to count.
    pub num_discarded: u64,
    /// Sequences that a repetition ended.
    pub num_repeating: u64,
    /// A hash of every array and every output: equal for equal runs.
    pub trace: u64,
    /// The scheduler's own figures at the end.
    pub stats: Stats,
}

/// The first thing that went wrong in a run.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Replays the run.
    pub seed: u64,
    /// Operations before it.
    pub num_operations: u64,
    /// What it was.
    pub message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, num_operations, message } = self;
        write!(f, "seed {seed} after {num_operations} operations: {message}")
    }
}

impl std::error::Error for Failure {}
