//! How many grammars are compiled at a time.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// A counter that threads wait for. A compilation that nobody waits for any more keeps its permit, so that
/// hostile grammars occupy so many cores and no more.
#[derive(Debug)]
pub(super) struct Permits {
    num_free: Mutex<usize>,
    returned: Condvar,
}

/// The right to compile; given back when dropped.
#[derive(Debug)]
pub(super) struct Permit(Arc<Permits>);

impl Permits {
    pub(super) fn new(num_permits: usize) -> Arc<Self> {
        Arc::new(Self { num_free: Mutex::new(num_permits), returned: Condvar::new() })
    }

    /// Waits for a permit; none if that takes longer than `limit`.
    pub(super) fn take(self: &Arc<Self>, limit: Duration) -> Option<Permit> {
        let num_free = self.num_free.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut num_free, _) = self
            .returned
            .wait_timeout_while(num_free, limit, |num_free| *num_free == 0)
            .unwrap_or_else(PoisonError::into_inner);
        *num_free = num_free.checked_sub(1)?;
        Some(Permit(Arc::clone(self)))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        *self.0.num_free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.returned.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permit_comes_back_when_it_is_dropped_and_is_not_given_twice() {
        let permits = Permits::new(1);
        let permit = permits.take(Duration::ZERO).unwrap();
        assert!(permits.take(Duration::ZERO).is_none());
        drop(permit);
        assert!(permits.take(Duration::ZERO).is_some());
    }
}
