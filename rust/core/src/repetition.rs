//! Output that repeats itself: when the last tokens of a sequence are copies of one pattern.

use crate::error::Error;
use crate::ids::TokenId;

/// What counts as a repetition: `min_count` copies, one behind the other, of a pattern of
/// `min_pattern` to `max_pattern` tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RepetitionLimits {
    /// Tokens of the shortest pattern. At least 1.
    pub min_pattern: u32,
    /// Tokens of the longest one. At least `min_pattern`.
    pub max_pattern: u32,
    /// Copies that end a sequence. At least 2.
    pub min_count: u32,
}

impl RepetitionLimits {
    /// Tokens that are looked at for each new one, `max_pattern * min_count`, at most.
    pub const MAX_WINDOW: u32 = 1 << 16;

    pub(crate) fn check(&self) -> Result<(), Error> {
        let bad = |name, bound: String, value: u64| Err(Error::Parameter { name, bound, value });
        let Self { min_pattern, max_pattern, min_count } = *self;
        if min_pattern == 0 || min_pattern > max_pattern {
            let bound = format!("from 1 to max_pattern_size ({max_pattern})");
            return bad("min_pattern_size", bound, u64::from(min_pattern));
        }
        if min_count < 2 {
            return bad("min_count", "at least 2".to_owned(), u64::from(min_count));
        }
        let window = u64::from(max_pattern) * u64::from(min_count);
        if window > u64::from(Self::MAX_WINDOW) {
            let bound = format!("at most {}", Self::MAX_WINDOW);
            return bad("max_pattern_size x min_count", bound, window);
        }
        Ok(())
    }
}

/// Looks for repetitions in the outputs of a request's sequences.
pub(crate) struct RepetitionScan {
    limits: RepetitionLimits,
    /// Kept for its allocation.
    matches: Vec<u32>,
}

impl RepetitionScan {
    pub(crate) const fn new(limits: RepetitionLimits) -> Self {
        Self { limits, matches: Vec::new() }
    }

    /// Whether `output`, with `last` behind it, ends in a repetition. Takes time proportional to
    /// `max_pattern * min_count` at most.
    ///
    /// Read from its end, the output ends in `n` copies of `p` tokens where it equals itself without
    /// its first `p` tokens over `p * (n - 1)` tokens. How far it does, for every `p`, is its Z-function
    /// (Gusfield, Algorithms on Strings, Trees and Sequences, 1.4).
    pub(crate) fn is_repeating(&mut self, output: &[TokenId], last: TokenId) -> bool {
        let [min_pattern, max_pattern, min_count] =
            [self.limits.min_pattern, self.limits.max_pattern, self.limits.min_count]
                .map(|limit| limit as usize);
        let longest = max_pattern.min((output.len() + 1) / min_count);
        if longest < min_pattern {
            return false;
        }
        let window = longest * min_count;
        let back = |i: usize| if i == 0 { last } else { output[output.len() - i] };
        let matches = &mut self.matches;
        matches.clear();
        matches.push(0);
        // The match that reaches furthest: tokens `start..end` equal the first ones.
        let (mut start, mut end) = (0, 0);
        for pattern in 1..=longest {
            let mut length = 0;
            if pattern < end {
                length = (matches[pattern - start] as usize).min(end - pattern);
            }
            while pattern + length < window && back(length) == back(pattern + length) {
                length += 1;
            }
            if pattern >= min_pattern && length >= pattern * (min_count - 1) {
                return true;
            }
            if pattern + length > end {
                (start, end) = (pattern, pattern + length);
            }
            matches.push(length as u32);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn is_repeating(limits: RepetitionLimits, output: &[TokenId]) -> bool {
        let (last, before) = output.split_last().expect("a token");
        RepetitionScan::new(limits).is_repeating(before, *last)
    }

    /// The definition, word for word.
    fn is_repeating_plainly(limits: RepetitionLimits, output: &[TokenId]) -> bool {
        (limits.min_pattern as usize..=limits.max_pattern as usize).any(|size| {
            let Some(first) = output.len().checked_sub(size * limits.min_count as usize) else {
                return false;
            };
            let mut copies = output[first..].chunks(size);
            let pattern = copies.next();
            copies.all(|copy| Some(copy) == pattern)
        })
    }

    const fn limits(min_pattern: u32, max_pattern: u32, min_count: u32) -> RepetitionLimits {
        RepetitionLimits { min_pattern, max_pattern, min_count }
    }

    #[test]
    fn copies_count_where_they_are_the_last_tokens_and_enough() {
        let three = limits(1, 3, 3);
        assert!(is_repeating(three, &[9, 1, 2, 1, 2, 1, 2]));
        assert!(!is_repeating(three, &[1, 2, 1, 2]), "two copies");
        assert!(!is_repeating(three, &[1, 2, 1, 2, 1, 2, 9]), "not the last tokens");
        assert!(!is_repeating(three, &[1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4]), "too long a pattern");
        assert!(!is_repeating(limits(2, 3, 3), &[5, 5, 5]), "too short a pattern");
        assert!(is_repeating(limits(2, 3, 3), &[5; 6]), "two of them are a pattern too");
    }

    #[test]
    fn limits_that_mean_nothing_are_refused_by_name() {
        for (limits, message) in [
            (limits(0, 3, 2), "min_pattern_size must be from 1 to max_pattern_size (3), got 0"),
            (limits(4, 3, 2), "min_pattern_size must be from 1 to max_pattern_size (3), got 4"),
            (limits(1, 3, 1), "min_count must be at least 2, got 1"),
            (
                limits(1, u32::MAX, u32::MAX),
                "max_pattern_size x min_count must be at most 65536, got 18446744065119617025",
            ),
        ] {
            assert_eq!(limits.check().unwrap_err().to_string(), message);
        }
        limits(1, RepetitionLimits::MAX_WINDOW / 2, 2).check().unwrap();
    }

    proptest! {
        /// Few tokens, and runs of copies with a flaw here and there, come near every border.
        #[test]
        fn the_scan_is_its_definition(
            pattern in prop::collection::vec(0_u32..3, 1..8),
            before in prop::collection::vec(0_u32..3, 0..12),
            num_tokens in 1_usize..60,
            flaw in 0_usize..90,
            (min_pattern, more) in (1_u32..5, 0_u32..8),
            min_count in 2_u32..6,
        ) {
            let copies = pattern.iter().cycle().take(num_tokens);
            let mut output: Vec<_> = before.iter().chain(copies).copied().collect();
            if let Some(token) = output.get_mut(flaw) {
                *token = 3;
            }
            let limits = limits(min_pattern, min_pattern + more, min_count);
            let mut scan = RepetitionScan::new(limits);
            for end in 1..=output.len() {
                let found = scan.is_repeating(&output[..end - 1], output[end - 1]);
                prop_assert_eq!(found, is_repeating_plainly(limits, &output[..end]), "{}", end);
            }
        }
    }
}
