//! The characters of a grammar: where the parser stands, escapes, numbers.

use super::{Parser, invalid};
use crate::grammar::GrammarError;

const MAX_REPEATS: u32 = 1 << 16;

impl Parser {
    pub(super) fn peek(&self) -> Option<char> {
        self.rest.get(self.position).copied()
    }

    pub(super) fn next(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.position += 1;
        self.line += usize::from(next == '\n');
        Some(next)
    }

    pub(super) fn take(&mut self, expected: char) -> bool {
        let is_next = self.peek() == Some(expected);
        if is_next {
            self.next();
        }
        is_next
    }

    /// Skips white space and comments, but for the ends of lines.
    pub(super) fn skip_spaces(&mut self) {
        while let Some(next) = self.peek() {
            match next {
                ' ' | '\t' | '\r' => {
                    self.next();
                }
                '#' => {
                    while self.peek().is_some_and(|next| next != '\n') {
                        self.next();
                    }
                }
                _ => return,
            }
        }
    }

    pub(super) fn skip_lines(&mut self) {
        self.skip_spaces();
        while self.take('\n') {
            self.skip_spaces();
        }
    }

    pub(super) fn number(&mut self) -> Result<u32, GrammarError> {
        let mut digits = String::new();
        while let Some(digit) = self.peek().filter(char::is_ascii_digit) {
            digits.push(digit);
            self.next();
        }
        if digits.is_empty() {
            return self.unexpected("a number");
        }
        match digits.parse() {
            Ok(number) if number <= MAX_REPEATS => Ok(number),
            _ => {
                invalid(self.line, &format!("a count must be at most {MAX_REPEATS}, got {digits}"))
            }
        }
    }

    /// The next character, which may be escaped; none for the closing one.
    pub(super) fn character(
        &mut self,
        closing: char,
        what: &str,
    ) -> Result<Option<char>, GrammarError> {
        match self.peek() {
            None | Some('\n') => self.unexpected(&format!("{closing:?} that closes {what}")),
            Some('\\') => {
                self.next();
                self.escape().map(Some)
            }
            Some(character) => {
                self.next();
                Ok((character != closing).then_some(character))
            }
        }
    }

    pub(super) fn escape(&mut self) -> Result<char, GrammarError> {
        let Some(kind) = self.peek().filter(|kind| *kind != '\n') else {
            return self.unexpected("a character after the backslash");
        };
        let num_digits = match kind {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => 0,
        };
        self.next();
        let plain = match kind {
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            '"' | '\\' | '[' | ']' | '-' | '^' | '/' | '\'' => kind,
            _ if num_digits > 0 => return self.code_point(kind, num_digits),
            _ => {
                let problem = format!(
                    "\\{kind} is no escape; there are \\n \\r \\t \\\" \\\\ \\[ \\] \\- \\^ \
                     \\xNN \\uNNNN \\UNNNNNNNN"
                );
                return invalid(self.line, &problem);
            }
        };
        Ok(plain)
    }

    pub(super) fn code_point(
        &mut self,
        kind: char,
        num_digits: usize,
    ) -> Result<char, GrammarError> {
        let mut digits = String::new();
        while let Some(digit) = self.peek().filter(char::is_ascii_hexdigit) {
            if digits.len() == num_digits {
                break;
            }
            digits.push(digit);
            self.next();
        }
        if digits.len() < num_digits {
            return self.unexpected(&format!("{num_digits} hexadecimal digits after \\{kind}"));
        }
        let code = u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32);
        let problem = || format!("\\{kind}{digits} is no character of Unicode");
        code.map_or_else(|| invalid(self.line, &problem()), Ok)
    }

    pub(super) fn unexpected<T>(&self, expected: &str) -> Result<T, GrammarError> {
        let got = match self.peek() {
            None => "the end of the grammar".to_owned(),
            Some('\n') => "the end of the line".to_owned(),
            Some(next) => format!("{next:?}"),
        };
        invalid(self.line, &format!("expected {expected}, got {got}"))
    }
}
