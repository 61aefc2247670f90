//! The one seam between the scheduler and a sequence's text.

/// The text of one sequence: it grows token by token, can end the sequence and forks with it.
///
/// Implemented by `pagedkv-text` (byte tables) and by the bindings (a decoder that lives in Python).
/// [`Scheduler::update`](crate::Scheduler::update) is its only caller.
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
}
