//! The text of a sequence: token bytes, a streaming decoder, a stop-string matcher and grammar masks.
//!
//! A [`TokenTable`] knows the bytes of every token id of one tokenizer. A [`Decoder`] turns ids into
//! text as they come, holding back what a later token could still change. A [`StopText`] grows by
//! those pieces, holds back what could become a stop string and ends at the first one. A
//! [`TableText`] is all three behind the trait through which the scheduler sees a sequence's text. A
//! [`ConstrainedText`] puts such a text under a [`Grammar`].
#![forbid(unsafe_code)]

mod decoder;
mod grammar;
mod sequence;
mod spelling;
mod stop;
mod table;

pub use decoder::{Decoder, Piece};
pub use grammar::{
    ConstrainedText, Grammar, GrammarCompiler, GrammarError, GrammarLimits, GrammarMatcher,
    GrammarSource, JsonOptions,
};
pub use sequence::{TableText, TableTextOptions};
pub use spelling::{Spelling, Strip};
pub use stop::{StopSet, StopText};
pub use table::{Token, TokenTable};

/// What a caller got wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// An empty stop string is complete before the first token.
    #[error("stop[{index}] must not be empty")]
    EmptyStop {
        /// Its place in the list.
        index: usize,
    },
    /// More stop-string bytes than the matcher's 32-bit states can count.
    #[error("stop strings must hold at most {max} bytes together, got {got}")]
    StopTooLong {
        /// Bytes of all stop strings.
        got: usize,
        /// The limit.
        max: usize,
    },
    /// A token that spells some of its spaces as the marker and some as spaces.
    #[error("token {id} mixes spaces with the marker {marker:?}, which a table cannot express")]
    MixedSpaces {
        /// The token.
        id: u32,
        /// The tokenizer's marker for a space.
        marker: char,
    },
}
