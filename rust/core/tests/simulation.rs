//! Ten thousand small worlds: random requests, faults and pools too small for them. After every call
//! the invariants hold, no sequence ever reads anything but its own past, and each gets exactly what
//! it gets alone.
//!
//! `SEED=7 cargo test -p pagedkv-core simulation` replays one world.
#![expect(clippy::print_stdout, reason = "shows what the worlds came to")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pagedkv_core::simulator::{Report, simulate};

const NUM_SCENARIOS: u64 = 10_000;
const NUM_THREADS: usize = 2;

/// Seeds that once found a bug.
const REGRESSIONS: &[u64] = &[];

/// What a set of runs did, to know that they came where the bugs live.
#[derive(Debug, Default)]
struct Coverage {
    operations: u64,
    discarded: u64,
    repeating: u64,
    refused: u64,
    preemptions: u64,
    swaps: u64,
    forks: u64,
    cow_copies: u64,
    partial_copies: u64,
    evictions: u64,
    cached_tokens: u64,
    aborted: u64,
    finished: u64,
}

impl Coverage {
    fn add(&mut self, report: &Report) {
        self.operations += report.num_operations;
        self.discarded += report.num_discarded;
        self.repeating += report.num_repeating;
        self.refused += report.num_refused;
        self.preemptions += report.stats.num_preemptions;
        self.swaps += report.stats.num_swaps;
        self.forks += report.stats.num_forks;
        self.cow_copies += report.stats.num_cow_copies;
        self.partial_copies += report.stats.num_partial_copies;
        self.evictions += report.stats.num_evictions;
        self.cached_tokens += report.stats.num_cached_prompt_tokens;
        self.aborted += report.stats.num_aborted;
        self.finished += report.stats.num_finished;
    }
}

/// Runs one world; panics are failures like any other.
fn run(seed: u64) -> Result<Report, String> {
    match catch_unwind(AssertUnwindSafe(|| simulate(seed))) {
        Ok(Ok(report)) => Ok(report),
        Ok(Err(failure)) => Err(failure.to_string()),
        Err(_) => Err(format!("seed {seed} panicked")),
    }
}

/// Runs seeds from `first` on until `is_enough` or the first failure.
fn run_many(first: u64, is_enough: impl Fn(u64, &Coverage) -> bool + Sync) -> Coverage {
    let next = AtomicU64::new(first);
    let is_over = AtomicBool::new(false);
    let coverage = Mutex::new(Coverage::default());
    let failure = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..NUM_THREADS {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    match run(seed) {
                        Ok(report) => {
                            let mut coverage = coverage.lock().unwrap();
                            coverage.add(&report);
                            if is_enough(seed + 1 - first, &coverage) {
                                is_over.store(true, Ordering::Relaxed);
                            }
                        }
                        Err(message) => {
                            *failure.lock().unwrap() = Some((seed, message));
                            is_over.store(true, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    if let Some((seed, message)) = failure.into_inner().unwrap() {
        panic!("{message}\nreplay: SEED={seed} cargo test -p pagedkv-core simulation");
    }
    coverage.into_inner().unwrap()
}

#[test]
fn simulation_of_one_seed() {
    let seed = std::env::var("SEED").map_or(7, |seed| seed.parse().expect("SEED is a number"));
    match run(seed) {
        Ok(report) => println!("{report:#?}"),
        Err(message) => panic!("{message}"),
    }
}

#[test]
fn seeds_that_once_failed_pass() {
    for seed in REGRESSIONS {
        run(*seed).unwrap();
    }
}

#[test]
fn equal_seeds_give_equal_runs() {
    for seed in 0..200 {
        assert_eq!(run(seed).unwrap().trace, run(seed).unwrap().trace, "seed {seed}");
    }
}

#[test]
fn ten_thousand_worlds_keep_every_promise() {
    let coverage = run_many(0, |count, _| count >= NUM_SCENARIOS);
    println!("{coverage:#?}");
    let Coverage {
        operations: _,
        discarded,
        repeating,
        refused,
        preemptions,
        swaps,
        forks,
        cow_copies,
        partial_copies,
        evictions,
        cached_tokens,
        aborted,
        finished,
    } = coverage;
    for (name, count) in [
        ("tokens too late", discarded),
        ("repetitions", repeating),
        ("requests refused", refused),
        ("preemptions by swap", swaps),
        ("preemptions by recompute", preemptions - swaps),
        ("forks", forks),
        ("copies on write", cow_copies),
        ("copies of a part", partial_copies),
        ("evictions", evictions),
        ("cached tokens", cached_tokens),
        ("aborts", aborted),
        ("finished requests", finished),
    ] {
        assert!(count > 1000, "only {count} {name}: the scenarios miss what they are for");
    }
}

#[test]
#[ignore = "long: ten million operations; cargo test --release -- --ignored"]
fn ten_million_operations_keep_every_promise() {
    let first = 1 << 32;
    let coverage = run_many(first, |_, coverage| coverage.operations >= 10_000_000);
    println!("{coverage:#?}");
}
