//! Threads that help their caller with one job at a time.
//!
//! A decode step makes a hundred calls of some 50 us with as much between two of them, and to wake a
//! thread that sleeps can take as long as the call. So a helper stays awake for a moment after a
//! job, giving way to whoever else wants the processor, and then sleeps. A caller waits for nobody
//! who has not begun: where another program has the processor, it does the work itself.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long a thread that waits stays awake.
const PATIENCE: Duration = Duration::from_micros(100);
/// Looks between two times that it gives way.
const LOOKS: usize = 64;

/// States of a helper. Only the caller that has the team moves one from IDLE, or from READY back;
/// only the helper moves it on.
const IDLE: u32 = 0;
const READY: u32 = 1;
const RUNNING: u32 = 2;
const QUIT: u32 = 3;

type Job<'a> = &'a (dyn Fn() + Sync + 'a);

/// Helpers, and whether a caller has them.
pub(crate) struct Team {
    helpers: Vec<Helper>,
    is_taken: AtomicBool,
}

struct Helper {
    desk: Arc<Desk>,
    thread: Option<JoinHandle<()>>,
}

/// Where a helper finds its job.
struct Desk {
    state: AtomicU32,
    /// Written by the caller while IDLE, taken by the helper while RUNNING.
    order: UnsafeCell<Option<Order>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

struct Order {
    job: Job<'static>,
    caller: Thread,
}

// SAFETY: `order` is used by one thread at a time, as the state says; the rest is Sync, and a job may
// be called by any thread.
unsafe impl Sync for Desk {}

impl Team {
    /// Starts `count` helpers.
    ///
    /// # Errors
    /// The system's, if it refuses a thread.
    pub(crate) fn new(count: usize) -> std::io::Result<Self> {
        let mut team = Self { helpers: Vec::new(), is_taken: AtomicBool::new(false) };
        for index in 0..count {
            let desk = Arc::new(Desk {
                state: AtomicU32::new(IDLE),
                order: UnsafeCell::new(None),
                panic: Mutex::new(None),
            });
            let own = Arc::clone(&desk);
            let builder = thread::Builder::new().name(format!("pagedkv-cpu-{index}"));
            let thread = Some(builder.spawn(move || own.work())?);
            team.helpers.push(Helper { desk, thread });
        }
        Ok(team)
    }

    /// Calls `job` here and on up to `count` helpers; alone, if another caller has them. Returns when
    /// all calls have.
    pub(crate) fn run(&self, count: usize, job: Job<'_>) {
        if self.is_taken.swap(true, Ordering::Acquire) {
            job();
            return;
        }
        let helpers = &self.helpers[..count.min(self.helpers.len())];
        let run = Run { team: self, helpers };
        for helper in helpers {
            helper.offer(job);
        }
        job();
        let panic = run.end();
        drop(run);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        for helper in &mut self.helpers {
            helper.desk.state.store(QUIT, Ordering::Release);
            if let Some(thread) = helper.thread.take() {
                thread.thread().unpark();
                // It catches what jobs throw, so it has ended in order.
                let _ = thread.join();
            }
        }
    }
}

impl Helper {
    fn offer(&self, job: Job<'_>) {
        // SAFETY: `Run` ends the job before the caller's borrow does.
        let job = unsafe { std::mem::transmute::<Job<'_>, Job<'static>>(job) };
        // SAFETY: the helper is idle, and no other caller has the team.
        unsafe { *self.desk.order.get() = Some(Order { job, caller: thread::current() }) };
        self.desk.state.store(READY, Ordering::Release);
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

/// A caller's use of the team. It ends also if the job panics: helpers must be done before what the
/// job borrows goes.
struct Run<'a> {
    team: &'a Team,
    helpers: &'a [Helper],
}

impl Run<'_> {
    /// Takes back the job from helpers that have not begun, and waits for the others; what one of
    /// them threw.
    fn end(&self) -> Option<Box<dyn Any + Send>> {
        let mut panic = None;
        for Helper { desk, .. } in self.helpers {
            let (from, to) = (Ordering::Acquire, Ordering::Relaxed);
            if desk.state.compare_exchange(READY, IDLE, from, to).is_err() {
                wait_until(|| desk.state.load(Ordering::Acquire) == IDLE);
            }
            panic = desk.panic().take().or(panic);
        }
        panic
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        // If the job itself panics, that is what the caller sees.
        drop(self.end());
        self.team.is_taken.store(false, Ordering::Release);
    }
}

impl Desk {
    /// What a helper does all its life.
    fn work(&self) {
        loop {
            wait_until(|| matches!(self.state.load(Ordering::Relaxed), READY | QUIT));
            let (from, to) = (Ordering::Acquire, Ordering::Relaxed);
            match self.state.compare_exchange(READY, RUNNING, from, to) {
                Ok(_) => self.run(),
                Err(QUIT) => return,
                // Taken back.
                Err(_) => {}
            }
        }
    }

    /// What the last job threw.
    fn panic(&self) -> MutexGuard<'_, Option<Box<dyn Any + Send>>> {
        self.panic.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        // SAFETY: the state is RUNNING, so nobody else looks.
        let Some(Order { job, caller }) = (unsafe { &mut *self.order.get() }).take() else {
            return;
        };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(job)) {
            *self.panic() = Some(panic);
        }
        self.state.store(IDLE, Ordering::Release);
        caller.unpark();
    }
}

/// Waits: awake at first, then asleep until the thread is unparked.
fn wait_until(is_over: impl Fn() -> bool) {
    if !watch(&is_over) {
        while !is_over() {
            thread::park();
        }
    }
}

/// Waits for what takes a moment and nobody tells of: awake at first, then with naps.
pub(crate) fn nap_until(is_over: impl Fn() -> bool) {
    if !is_over() && !watch(&is_over) {
        while !is_over() {
            thread::sleep(PATIENCE);
        }
    }
}

/// Looks for as long as patience lasts; whether it is over.
#[expect(clippy::disallowed_methods, reason = "no result depends on this clock")]
fn watch(is_over: &impl Fn() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        for _ in 0..LOOKS {
            if is_over() {
                return true;
            }
            std::hint::spin_loop();
        }
        thread::yield_now();
    }
    false
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// Calls that each take their share of `0..count`; how often each number was taken.
    fn taken(team: &Team, count: usize) -> Vec<usize> {
        let next = AtomicUsize::new(0);
        let taken: Vec<_> = (0..count).map(|_| AtomicUsize::new(0)).collect();
        team.run(team.helpers.len(), &|| {
            while let Some(counter) = taken.get(next.fetch_add(1, Ordering::Relaxed)) {
                counter.fetch_add(1, Ordering::Relaxed);
            }
        });
        taken.into_iter().map(AtomicUsize::into_inner).collect()
    }

    #[test]
    fn every_item_is_done_once_when_a_run_returns_awake_or_asleep() {
        for num_helpers in [0, 1, 3] {
            let team = Team::new(num_helpers).unwrap();
            for round in 0..300 {
                assert_eq!(taken(&team, round % 7), vec![1; round % 7]);
                if round % 50 == 0 {
                    thread::sleep(PATIENCE * 3);
                }
            }
        }
    }

    #[test]
    fn helpers_do_take_part() {
        let team = Team::new(2).unwrap();
        let all_here = std::sync::Barrier::new(3);
        team.run(2, &|| {
            all_here.wait();
        });
    }

    #[test]
    fn callers_share_a_team_and_jobs_may_call_it_again() {
        let team = Team::new(2).unwrap();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        assert_eq!(taken(&team, 5), vec![1; 5]);
                    }
                });
            }
        });
        team.run(2, &|| assert_eq!(taken(&team, 3), vec![1; 3]));
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_goes_on() {
        let team = Team::new(2).unwrap();
        let in_all = std::sync::Barrier::new(3);
        let in_helpers = |caller: thread::ThreadId| {
            in_all.wait();
            assert_eq!(thread::current().id(), caller, "a helper's");
        };
        let caller = thread::current().id();
        let run = || team.run(2, &|| in_helpers(caller));
        assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
        let run = || team.run(2, &|| assert_ne!(thread::current().id(), caller, "the caller's"));
        assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
        let in_each = || {
            in_all.wait();
            panic!("everybody's");
        };
        assert!(catch_unwind(AssertUnwindSafe(|| team.run(2, &in_each))).is_err());
        assert_eq!(taken(&team, 6), vec![1; 6]);
    }
}
