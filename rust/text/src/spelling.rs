//! How a tokenizer spells text in its tokens: from a token's string to its bytes.

use std::sync::OnceLock;

/// The three decoders of the `tokenizers` library whose tokens have fixed bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spelling {
    /// `ByteLevel`: each character stands for one byte. Bytes of all tokens join into characters,
    /// what is not UTF-8 becomes U+FFFD as in [`String::from_utf8_lossy`].
    ByteLevel,
    /// `Sequence[Replace*, ByteFallback?, Fuse?, Strip?]`, the form of sentencepiece models.
    Fallback {
        /// `Replace`: (pattern, content), applied to each token in this order.
        replacements: Vec<(String, String)>,
        /// `ByteFallback`: `<0xNN>` is one byte. A run of such tokens is text if the whole run is
        /// UTF-8; otherwise each of its bytes becomes U+FFFD.
        has_byte_tokens: bool,
        /// `Strip`: what the start of the whole text loses.
        strip: Option<Strip>,
    },
    /// `Metaspace`: the marker stands for a space.
    Metaspace {
        /// The marker, usually U+2581.
        marker: char,
        /// The first token of a text loses its markers (any prepend scheme but `never`).
        first_loses_marker: bool,
    },
}

/// Up to `max_count` times `character` is taken off the start of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Strip {
    /// Usually a space.
    pub character: char,
    /// Usually 1.
    pub max_count: u32,
}

/// The bytes of a token in the alphabet of `ByteLevel`. A token with any character outside the
/// alphabet (an added token such as `<a b>`) stands for itself.
pub(crate) fn append_byte_level(token: &str, out: &mut Vec<u8>) {
    let start = out.len();
    let bytes = byte_of_char();
    for character in token.chars() {
        let Some(byte) = bytes.get(character as usize).copied().flatten() else {
            out.truncate(start);
            out.extend_from_slice(token.as_bytes());
            return;
        };
        out.push(byte);
    }
}

/// The byte that `<0xNN>` stands for. Two characters that `from_str_radix` accepts, as upstream.
pub(crate) fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// GPT-2's alphabet: printable Latin-1 stands for itself, the other 68 bytes are U+0100 onwards.
fn byte_of_char() -> &'static [Option<u8>; 0x144] {
    static TABLE: OnceLock<[Option<u8>; 0x144]> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut table = [None; 0x144];
        let mut next = 0x100;
        for byte in 0..=u8::MAX {
            let is_printable = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
            let place = if is_printable { usize::from(byte) } else { next };
            next += usize::from(!is_printable);
            table[place] = Some(byte);
        }
        table
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn byte_level(token: &str) -> Vec<u8> {
        let mut out = Vec::new();
        append_byte_level(token, &mut out);
        out
    }

    #[test]
    fn every_byte_has_one_character_of_the_byte_level_alphabet() {
        let mut bytes: Vec<u8> = byte_of_char().iter().copied().flatten().collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=u8::MAX).collect::<Vec<_>>());
    }

    #[test]
    fn byte_level_tokens_read_as_in_gpt2() {
        assert_eq!(byte_level("ĠHello"), b" Hello");
        assert_eq!(byte_level("Ċ"), b"\n");
        assert_eq!(byte_level("âĤ¬"), "€".as_bytes());
        assert_eq!(byte_level("<a Ġb>"), "<a Ġb>".as_bytes(), "a space is not in the alphabet");
    }

    #[test]
    fn only_two_hex_digits_make_a_fallback_byte() {
        assert_eq!(fallback_byte("<0x0A>"), Some(10));
        assert_eq!(fallback_byte("<0xff>"), Some(255));
        assert_eq!(fallback_byte("<0x+A>"), Some(10), "as u8::from_str_radix reads it");
        for other in ["<0xA>", "<0x0AA>", "<0xGG>", "0x0A", "<0x0A", "<0x\u{e9}>"] {
            assert_eq!(fallback_byte(other), None, "{other}");
        }
    }
}
