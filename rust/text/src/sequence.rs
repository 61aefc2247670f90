//! A sequence's text over a token table.

use std::sync::Arc;

use pagedkv_core::text::SequenceText;

use crate::decoder::{Decoder, Piece};
use crate::stop::{Mark, StopSet, StopText};
use crate::table::TokenTable;

/// What a request says about its text.
#[derive(Debug, Clone, Default)]
pub struct TableTextOptions {
    /// Its stop strings, if any.
    pub stops: Option<Arc<StopSet>>,
    /// Whether special tokens leave no text.
    pub skip_special_tokens: bool,
}

/// The generated text of one sequence, tokens decoded by a table. After [`SequenceText::finish`] it
/// equals the full decode of the tokens, up to the stop string.
#[derive(Debug, Clone)]
pub struct TableText {
    table: Arc<TokenTable>,
    decoder: Decoder,
    text: StopText,
    /// Where the tentative text begins, while there is any.
    tentative_from: Option<Mark>,
}

impl TableText {
    /// An empty text after `prompt`.
    pub fn new(table: Arc<TokenTable>, prompt: &[u32], options: TableTextOptions) -> Self {
        Self {
            decoder: Decoder::new(&table, prompt, options.skip_special_tokens),
            text: StopText::new(options.stops),
            tentative_from: None,
            table,
        }
    }
}

impl SequenceText for TableText {
    fn push(&mut self, token: u32, may_stop: bool) -> Option<u32> {
        let piece = self.decoder.push(&self.table, token);
        apply(&mut self.text, &mut self.tentative_from, piece, may_stop)
    }

    fn finish(&mut self) {
        let piece = self.decoder.finish();
        apply(&mut self.text, &mut self.tentative_from, piece, false);
        self.text.finish();
    }

    fn text(&self) -> &str {
        self.text.released()
    }

    fn fork(&self) -> Box<dyn SequenceText> {
        Box::new(self.clone())
    }
}

/// Tentative text takes part in the search at once: a sequence that stops there ends its run, so
/// that the text is final. It is released only when it is settled.
fn apply(
    text: &mut StopText,
    tentative_from: &mut Option<Mark>,
    piece: Piece<'_>,
    may_stop: bool,
) -> Option<u32> {
    if piece.num_withdrawn_bytes > 0 {
        text.rewind(tentative_from.take().expect("withdrawn text was marked"));
    }
    if !piece.is_settled {
        tentative_from.get_or_insert_with(|| text.mark());
    }
    let stop = text.append(piece.text, may_stop);
    if piece.is_settled {
        *tentative_from = None;
        text.release();
    }
    stop
}
