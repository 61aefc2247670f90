//! From token ids to text, one token at a time.
//!
//! What is held back, and why, follows the full decode of the `tokenizers` library:
//!
//! - `ByteLevel` replaces each maximal invalid byte sequence by one U+FFFD, so at most three bytes
//!   (an incomplete character) wait for the next token.
//! - `ByteFallback` looks at a whole run of byte tokens: it is text if all of it is UTF-8, otherwise
//!   every byte becomes U+FFFD. The text of a run is therefore *tentative* until the run ends; it is
//!   reported at once, for a stop string that ends in it, and withdrawn if the run breaks.

use crate::spelling::Strip;
use crate::table::{Token, TokenTable};

const REPLACEMENT: &str = "\u{FFFD}";

/// What one token changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Bytes at the end of the text so far that turned out wrong: all tentative text there is.
    pub num_withdrawn_bytes: usize,
    /// Text to append after that.
    pub text: &'a str,
    /// Whether nothing of the text can be withdrawn any more.
    pub is_settled: bool,
}

/// The state between two tokens: a few words, no heap but a scratch string.
#[derive(Debug, Clone)]
pub struct Decoder {
    scratch: String,
    /// The start of a character whose other bytes have not come.
    tail: [u8; 4],
    tail_len: usize,
    /// How many bytes of `tail` belong to the prompt. The character that they start is the
    /// generated text's, if it is completed there.
    num_prompt_bytes: usize,
    run: Option<Run>,
    strip: Option<Strip>,
    is_first: bool,
    skip_special_tokens: bool,
}

/// A run of byte tokens that has not ended.
#[derive(Debug, Clone, Default)]
struct Run {
    num_bytes: usize,
    num_tentative_bytes: usize,
    is_broken: bool,
}

impl Decoder {
    /// A decoder for what follows `prompt`: only a text without a visible token before it loses its
    /// leading space, and a character may begin in the prompt and end in the generated text.
    pub fn new(table: &TokenTable, prompt: &[u32], skip_special_tokens: bool) -> Self {
        let mut decoder = Self {
            scratch: String::new(),
            tail: [0; 4],
            tail_len: 0,
            num_prompt_bytes: 0,
            run: None,
            strip: table.strip().filter(|strip| strip.max_count > 0),
            is_first: true,
            skip_special_tokens,
        };
        for &token in prompt {
            if !decoder.is_first && decoder.strip.is_none() {
                break;
            }
            decoder.push(table, token);
        }
        decoder.scratch.clear();
        decoder.run = None;
        decoder.take_tail_of(table, prompt);
        decoder
    }

    /// Decodes one generated token.
    pub fn push(&mut self, table: &TokenTable, token: u32) -> Piece<'_> {
        self.scratch.clear();
        let mut num_withdrawn_bytes = 0;
        if let Some(token) = table.visible_token(token, self.skip_special_tokens) {
            let loses_marker = self.is_first && token.has_marker && table.first_loses_marker();
            self.is_first = false;
            if table.joins_bytes() {
                self.push_joined(token.bytes);
            } else if token.is_byte {
                num_withdrawn_bytes = self.push_run_byte(token.bytes[0]);
            } else {
                num_withdrawn_bytes = self.end_run();
                self.push_text(token, loses_marker);
            }
        }
        let is_settled = self.run.as_ref().is_none_or(|run| run.num_tentative_bytes == 0);
        Piece { num_withdrawn_bytes, text: &self.scratch, is_settled }
    }

    /// The text ends here: what is incomplete becomes U+FFFD.
    pub fn finish(&mut self) -> Piece<'_> {
        self.scratch.clear();
        let num_withdrawn_bytes = if self.run.is_some() {
            self.end_run()
        } else {
            self.replace_tail();
            0
        };
        Piece { num_withdrawn_bytes, text: &self.scratch, is_settled: true }
    }

    /// Bytes of neighbouring tokens join: complete the character that waits, then decode the rest.
    fn push_joined(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while self.tail_len > 0 && !rest.is_empty() {
            self.tail[self.tail_len] = rest[0];
            match classify(&self.tail[..=self.tail_len]) {
                Sequence::Complete => {
                    self.tail_len += 1;
                    self.emit_tail();
                    rest = &rest[1..];
                }
                Sequence::Incomplete => {
                    self.tail_len += 1;
                    rest = &rest[1..];
                }
                // The byte does not continue the character, so it starts something of its own.
                Sequence::Invalid => self.replace_tail(),
            }
        }
        for chunk in rest.utf8_chunks() {
            self.emit(chunk.valid());
            let broken = chunk.invalid();
            if classify(broken) == Sequence::Incomplete && is_end_of(rest, broken) {
                self.tail_len = broken.len();
                self.tail[..self.tail_len].copy_from_slice(broken);
            } else if !broken.is_empty() {
                self.emit(REPLACEMENT);
            }
        }
    }

    /// One byte token; returns the number of tentative bytes that are withdrawn.
    fn push_run_byte(&mut self, byte: u8) -> usize {
        let run = self.run.get_or_insert_default();
        run.num_bytes += 1;
        if run.is_broken {
            self.emit(REPLACEMENT);
            return 0;
        }
        self.tail[self.tail_len] = byte;
        self.tail_len += 1;
        match classify(&self.tail[..self.tail_len]) {
            Sequence::Complete => {
                let before = self.scratch.len();
                self.emit_tail();
                let num_emitted = self.scratch.len() - before;
                self.run.get_or_insert_default().num_tentative_bytes += num_emitted;
                0
            }
            Sequence::Incomplete => 0,
            Sequence::Invalid => self.break_run(),
        }
    }

    /// Something other than a byte token comes, or nothing does.
    fn end_run(&mut self) -> usize {
        let num_withdrawn_bytes = if self.tail_len > 0 { self.break_run() } else { 0 };
        self.run = None;
        num_withdrawn_bytes
    }

    /// Every byte of the run becomes U+FFFD; returns how much tentative text that replaces.
    fn break_run(&mut self) -> usize {
        self.tail_len = 0;
        self.num_prompt_bytes = 0;
        let run = self.run.get_or_insert_default();
        run.is_broken = true;
        let num_withdrawn_bytes = std::mem::take(&mut run.num_tentative_bytes);
        for _ in 0..run.num_bytes {
            self.emit(REPLACEMENT);
        }
        num_withdrawn_bytes
    }

    /// A token that is text by itself.
    fn push_text(&mut self, token: Token<'_>, loses_marker: bool) {
        for chunk in token.bytes.utf8_chunks() {
            if loses_marker {
                chunk.valid().split(' ').for_each(|part| self.emit(part));
            } else {
                self.emit(chunk.valid());
            }
        }
    }

    /// The tail is a whole character.
    fn emit_tail(&mut self) {
        let tail = self.tail;
        let len = std::mem::take(&mut self.tail_len);
        self.num_prompt_bytes = 0;
        self.emit(std::str::from_utf8(&tail[..len]).expect("the tail was classified as complete"));
    }

    /// The tail will not be completed. If it is all the prompt's, so is its U+FFFD.
    fn replace_tail(&mut self) {
        if self.tail_len > self.num_prompt_bytes {
            self.emit(REPLACEMENT);
        }
        self.tail_len = 0;
        self.num_prompt_bytes = 0;
    }

    /// Appends to the piece, less what the start of a text loses.
    fn emit(&mut self, text: &str) {
        let mut text = text;
        while let Some(strip) = &mut self.strip {
            let Some(first) = text.chars().next() else { return };
            if first == strip.character {
                text = &text[first.len_utf8()..];
                strip.max_count -= 1;
            }
            if first != strip.character || strip.max_count == 0 {
                self.strip = None;
            }
        }
        self.scratch.push_str(text);
    }

    /// Remembers a character that the prompt begins and does not end.
    fn take_tail_of(&mut self, table: &TokenTable, prompt: &[u32]) {
        self.tail_len = 0;
        let mut last = [0; 3];
        let mut num_last = 0;
        for &id in prompt.iter().rev() {
            let Some(token) = table.visible_token(id, self.skip_special_tokens) else { continue };
            if !table.joins_bytes() && !token.is_byte {
                break;
            }
            for &byte in token.bytes.iter().rev().take(3 - num_last) {
                num_last += 1;
                last[3 - num_last] = byte;
            }
            if num_last == 3 {
                break;
            }
        }
        let mut ends = (1..=num_last).map(|len| &last[3 - len..]);
        if let Some(bytes) = ends.find(|bytes| starts_character(bytes)) {
            self.tail[..bytes.len()].copy_from_slice(bytes);
            self.tail_len = bytes.len();
            self.num_prompt_bytes = bytes.len();
            self.run = (!table.joins_bytes()).then(Run::default);
        }
    }
}

impl TokenTable {
    /// The full decode of a text, from its first token to its last.
    pub fn decode(&self, tokens: &[u32], skip_special_tokens: bool) -> String {
        let mut decoder = Decoder::new(self, &[], skip_special_tokens);
        let mut text = String::new();
        let mut append = |piece: Piece<'_>| {
            text.truncate(text.len() - piece.num_withdrawn_bytes);
            text.push_str(piece.text);
        };
        for &token in tokens {
            append(decoder.push(self, token));
        }
        append(decoder.finish());
        text
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sequence {
    Complete,
    Incomplete,
    Invalid,
}

/// Whether bytes are text, could become text with more bytes, or cannot.
fn classify(bytes: &[u8]) -> Sequence {
    match std::str::from_utf8(bytes) {
        Ok(_) => Sequence::Complete,
        Err(error) if error.error_len().is_none() => Sequence::Incomplete,
        Err(_) => Sequence::Invalid,
    }
}

/// Whether bytes are the start of one character and nothing else.
fn starts_character(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes)
        .is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
}

/// Whether `part`, a subslice of `whole`, reaches its end.
fn is_end_of(whole: &[u8], part: &[u8]) -> bool {
    whole.as_ptr_range().end == part.as_ptr_range().end
}
