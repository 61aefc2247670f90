//! How many threads a call is worth, and who they are.

use std::process;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::available_parallelism;

use crate::error::Error;
use crate::team::{Team, nap_until};

/// Multiply-adds below which handing work to another thread costs more than it saves (some 5 us of
/// work).
const MIN_WORK_PER_THREAD: usize = 100_000;

static POOL: Mutex<Option<Pool>> = Mutex::new(None);

#[derive(Clone)]
struct Pool {
    num_threads: usize,
    /// The threads beside the caller; None if the caller works alone.
    helpers: Option<Arc<Team>>,
    /// Threads do not survive a fork, so a child process builds its own.
    process_id: u32,
}

/// Sets how many threads a call may use, the calling thread among them. Results do not depend on
/// it.
///
/// # Errors
/// [`Error::NotPositive`] for 0, [`Error::Threads`] if the system refuses.
pub fn set_num_threads(num_threads: usize) -> Result<(), Error> {
    if num_threads == 0 {
        return Err(Error::NotPositive { argument: "num_threads", got: 0 });
    }
    let pool = build(num_threads)?;
    *POOL.lock().unwrap_or_else(PoisonError::into_inner) = Some(pool);
    Ok(())
}

/// How many threads a call may use; one per physical core unless set.
///
/// # Errors
/// [`Error::Threads`] if the system refuses to start them.
pub fn num_threads() -> Result<usize, Error> {
    Ok(current()?.num_threads)
}

/// Calls `run` once for each item, in any order and on several threads if `work` (multiply-adds in
/// all) is worth it.
pub(crate) fn for_each(
    num_items: usize,
    work: usize,
    run: impl Fn(usize) + Sync,
) -> Result<(), Error> {
    let items = Items::new(num_items);
    on_threads(num_items, work, |_| {
        while let Some(item) = items.take() {
            run(item);
        }
    })
}

/// As [`for_each`]; `run` is also told which item its thread will do next, if that is settled: the last
/// items are for whoever is free.
pub(crate) fn for_each_with_next(
    num_items: usize,
    work: usize,
    run: impl Fn(usize, Option<usize>) + Sync,
) -> Result<(), Error> {
    for_each_in_two(0, num_items, work, run)
}

/// As [`for_each_with_next`], of which the first `num_first` items are done before any of the `num_then`
/// others begins.
pub(crate) fn for_each_in_two(
    num_first: usize,
    num_then: usize,
    work: usize,
    run: impl Fn(usize, Option<usize>) + Sync,
) -> Result<(), Error> {
    let items = Items::new(num_first + num_then);
    let left = AtomicUsize::new(num_first);
    let with_done = |item| (item, (item < num_first).then(|| Done(&left)));
    on_threads(num_first + num_then, work, |num_threads| {
        let mut next = None;
        while let Some((item, done)) = next.take().or_else(|| items.take().map(with_done)) {
            next = items.take_early(num_threads).map(with_done);
            if done.is_none() {
                // Whoever does one of the first is awake, and has nothing to wait for.
                nap_until(|| left.load(Ordering::Acquire) == 0);
            }
            run(item, next.as_ref().map(|(next, _)| *next));
        }
    })
}

/// Counts an item off when it is done, or if its thread panics: others wait for it.
struct Done<'a>(&'a AtomicUsize);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

/// Items that are not taken yet.
struct Items {
    next: AtomicUsize,
    end: usize,
}

impl Items {
    fn new(count: usize) -> Self {
        Self { next: AtomicUsize::new(0), end: count }
    }

    fn take(&self) -> Option<usize> {
        Some(self.next.fetch_add(1, Ordering::Relaxed)).filter(|item| *item < self.end)
    }

    /// An item for later, if there are more than one for each thread.
    fn take_early(&self, num_threads: usize) -> Option<usize> {
        let left = self.end.saturating_sub(self.next.load(Ordering::Relaxed));
        if left > num_threads { self.take() } else { None }
    }
}

/// Calls `work_off` on as many threads as `num_items` and `work` are worth, the calling thread among
/// them, and tells it how many may come.
fn on_threads(num_items: usize, work: usize, work_off: impl Fn(usize) + Sync) -> Result<(), Error> {
    let worthwhile = (work / MIN_WORK_PER_THREAD).min(num_items);
    if worthwhile < 2 {
        work_off(1);
        return Ok(());
    }
    let pool = current()?;
    let Some(helpers) = pool.helpers else {
        work_off(1);
        return Ok(());
    };
    let num_threads = worthwhile.min(pool.num_threads);
    helpers.run(num_threads - 1, &|| work_off(num_threads));
    Ok(())
}

fn current() -> Result<Pool, Error> {
    let mut slot = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    match slot.take() {
        Some(pool) if pool.process_id == process::id() => {
            *slot = Some(pool.clone());
            Ok(pool)
        }
        inherited => {
            let num_threads = match inherited {
                Some(pool) => {
                    let num_threads = pool.num_threads;
                    // Dropping would wait for threads that this process does not have.
                    std::mem::forget(pool);
                    num_threads
                }
                None => physical_cores(),
            };
            let pool = build(num_threads)?;
            *slot = Some(pool.clone());
            Ok(pool)
        }
    }
}

fn build(num_threads: usize) -> Result<Pool, Error> {
    let helpers = match num_threads {
        1 => None,
        _ => Some(Arc::new(
            Team::new(num_threads - 1)
                .map_err(|error| Error::Threads { num_threads, reason: error.to_string() })?,
        )),
    };
    Ok(Pool { num_threads, helpers, process_id: process::id() })
}

/// Physical cores this process may use. A second hardware thread per core adds little to
/// arithmetic.
fn physical_cores() -> usize {
    let allowed = available_parallelism().map_or(1, usize::from);
    let mut cores: Vec<String> = (0..1024)
        .map_while(|cpu| {
            let file = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
            std::fs::read_to_string(file).ok()
        })
        .collect();
    cores.sort_unstable();
    cores.dedup();
    if cores.is_empty() { allowed } else { allowed.min(cores.len()) }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    const MUCH: usize = 100 * MIN_WORK_PER_THREAD;

    #[test]
    fn the_first_items_are_done_before_the_others_begin() {
        for (num_first, num_then) in [(0, 3), (1, 1), (3, 0), (5, 9)] {
            for work in [0, MUCH] {
                let done = AtomicUsize::new(0);
                let run = |item, next: Option<usize>| {
                    assert!(next.is_none_or(|next| next > item), "{next:?} after {item}");
                    let seen = done.fetch_add(1, Ordering::SeqCst);
                    assert!(item < num_first || seen >= num_first, "item {item} after {seen}");
                };
                (0..200).for_each(|_| {
                    for_each_in_two(num_first, num_then, work, run).unwrap();
                    assert_eq!(done.swap(0, Ordering::SeqCst), num_first + num_then);
                });
            }
        }
    }

    #[test]
    fn a_panic_among_the_first_items_keeps_nobody_waiting() {
        let run = |item, _| assert_ne!(item, 1, "the second item");
        let call = || for_each_in_two(4, 4, MUCH, run);
        assert!(catch_unwind(AssertUnwindSafe(call)).is_err());
        for_each_in_two(4, 4, MUCH, |_, _| ()).unwrap();
    }
}
