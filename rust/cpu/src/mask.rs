//! Which keys a query attends.

use crate::error::Error;

/// The mask of a layer. The keys of a query are always one run of positions that ends at its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mask {
    /// Every key up to the query's own position.
    Full,
    /// Keys with `query - key < window`.
    Sliding {
        /// Width in tokens, at least 1.
        window: usize,
    },
    /// Keys with `query / window == key / window`.
    Chunked {
        /// Width of a chunk in tokens, at least 1.
        window: usize,
    },
}

impl Mask {
    /// The position of the first key that the query at `position` attends.
    #[inline]
    pub fn first_key(self, position: usize) -> usize {
        match self {
            Self::Full => 0,
            Self::Sliding { window } => (position + 1).saturating_sub(window),
            Self::Chunked { window } => position - position % window,
        }
    }

    /// Refuses windows of no width.
    pub(crate) fn check(self) -> Result<(), Error> {
        match self {
            Self::Sliding { window: 0 } | Self::Chunked { window: 0 } => {
                Err(Error::NotPositive { argument: "window", got: 0 })
            }
            _ => Ok(()),
        }
    }
}
