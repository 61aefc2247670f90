//! The one seam between the scheduler and a sequence's text.

/// The text of one sequence: it grows token by token, can end the sequence and forks with it.
///
/// Implemented by `pagedkv-text` (byte tables) and by the bindings (a decoder that lives in Python).
/// [`Scheduler::update`](crate::Scheduler::update) lets it grow, and
/// [`Scheduler::fill_masks`](crate::Scheduler::fill_masks) asks it what may follow.
pub trait SequenceText: Send {
    /// Appends one generated token. With `may_stop`, returns the index of the stop string that is
    /// complete, if one is; text from the match on is then dropped (or kept, as the request asked).
    fn push(&mut self, token: u32, may_stop: bool) -> Option<u32>;

    /// Releases what was held back: an incomplete character, the start of a stop string.
    fn finish(&mut self);

    /// The text that no later token can change. It only ever grows.
    fn text(&self) -> &str;

    /// A copy for a sequence that shares this one's past.
    fn fork(&self) -> Box<dyn SequenceText>;

    /// Whether not every token may come next; the same for the whole life of a sequence.
    fn is_constrained(&self) -> bool {
        false
    }

    /// Sets the bits of the tokens that may come next and clears all others; returns whether the text may end
    /// here, by an ending id. Only called where [`Self::is_constrained`] holds.
    ///
    /// # Errors
    /// What went wrong, where the sequence cannot go on; every later call says the same.
    fn fill_mask(&mut self, mask: &mut [u32]) -> Result<bool, String> {
        mask.fill(u32::MAX);
        Ok(true)
    }

    /// Whether nothing can follow but an end.
    fn is_complete(&self) -> bool {
        false
    }
}
