//! The streaming decoder against the full decode, written the way the `tokenizers` library does.

use pagedkv_text::{Decoder, Spelling, Strip, TokenTable};
use proptest::prelude::*;

/// Every byte as a token of its own, then tokens of several bytes, a special token, and a hole.
fn byte_level_table() -> TokenTable {
    let alphabet: Vec<String> = byte_level_alphabet().into_iter().map(String::from).collect();
    let spell = |bytes: &[u8]| bytes.iter().map(|&b| alphabet[usize::from(b)].as_str()).collect();
    let more: Vec<String> = [
        "é".as_bytes(),
        &[0xF0, 0x9F],
        &[0x91, 0xA9, b'!'],
        b" a",
        &[0x82, 0xAC, 0xE2],
        &[0xE2, b'x', 0xC3],
    ]
    .into_iter()
    .map(spell)
    .collect();
    let tokens = alphabet.iter().chain(&more).map(|token| Some(token.as_str()));
    let tokens = tokens.chain([Some("<s>"), None, Some("<a b>")]);
    TokenTable::new(Spelling::ByteLevel, tokens, |token| token == "<s>").unwrap()
}

fn byte_level_alphabet() -> Vec<char> {
    let mut next = 0x100;
    let mut alphabet = Vec::new();
    for byte in 0..=255u8 {
        if matches!(byte, 33..=126 | 161..=172 | 174..=255) {
            alphabet.push(char::from(byte));
        } else {
            alphabet.push(char::from_u32(next).unwrap());
            next += 1;
        }
    }
    alphabet
}

/// Byte tokens 0 to 255 as `<0xNN>`, then words, an empty token, a special token, and a hole.
fn fallback_table(strip: Option<Strip>) -> TokenTable {
    let bytes: Vec<String> = (0..=255u8).map(|byte| format!("<0x{byte:02X}>")).collect();
    let tokens = bytes.iter().map(|token| Some(token.as_str())).chain([
        Some("▁a"),
        Some("b"),
        Some("▁"),
        Some("▁▁日本"),
        Some(""),
        Some("<s>"),
        None,
    ]);
    let spelling = Spelling::Fallback {
        replacements: vec![("▁".into(), " ".into())],
        has_byte_tokens: true,
        strip,
    };
    TokenTable::new(spelling, tokens, |token| token == "<s>").unwrap()
}

/// The full decode: runs of byte tokens are text as a whole or not at all.
fn naive_decode(table: &TokenTable, tokens: &[u32], skip_special_tokens: bool) -> String {
    let mut joined = Vec::new();
    let mut text = String::new();
    let mut run = Vec::new();
    let end_run = |run: &mut Vec<u8>, text: &mut String| {
        match String::from_utf8(run.clone()) {
            Ok(valid) => text.push_str(&valid),
            Err(_) => text.extend(run.iter().map(|_| '\u{FFFD}')),
        }
        run.clear();
    };
    for &id in tokens {
        let Some(token) = table.visible_token(id, skip_special_tokens) else { continue };
        if table.joins_bytes() {
            joined.extend_from_slice(token.bytes);
        } else if token.is_byte {
            run.push(token.bytes[0]);
        } else {
            end_run(&mut run, &mut text);
            text.push_str(std::str::from_utf8(token.bytes).unwrap());
        }
    }
    end_run(&mut run, &mut text);
    text.push_str(&String::from_utf8_lossy(&joined));
    if let Some(strip) = table.strip() {
        for _ in 0..strip.max_count {
            if text.starts_with(strip.character) {
                text.remove(0);
            }
        }
    }
    text
}

/// Streams the tokens and checks what each piece claims.
fn stream(table: &TokenTable, prompt: &[u32], tokens: &[u32], skip: bool) -> String {
    let mut decoder = Decoder::new(table, prompt, skip);
    let mut text = String::new();
    let mut num_settled = 0;
    for &token in tokens {
        let piece = decoder.push(table, token);
        let kept = text.len() - piece.num_withdrawn_bytes;
        assert!(kept >= num_settled, "settled text was withdrawn");
        text.truncate(kept);
        text.push_str(piece.text);
        if piece.is_settled {
            num_settled = text.len();
        }
    }
    let piece = decoder.finish();
    text.truncate(text.len() - piece.num_withdrawn_bytes);
    text.push_str(piece.text);
    text
}

/// Tokens biased towards bytes that nearly form characters.
fn tokens(num_ids: u32) -> impl Strategy<Value = Vec<u32>> {
    let likely =
        prop::sample::select(vec![0xE2u32, 0x82, 0xAC, 0xF0, 0x9F, 0x91, 0xA9, 0xC3, 0x20]);
    let character =
        any::<char>().prop_map(|c| c.to_string().bytes().map(u32::from).collect::<Vec<_>>());
    let part = prop_oneof![
        4 => likely.prop_map(|id| vec![id]),
        3 => (0..num_ids).prop_map(|id| vec![id]),
        2 => (256..num_ids).prop_map(|id| vec![id]),
        3 => character,
    ];
    prop::collection::vec(part, 0..24).prop_map(|parts| parts.concat())
}

fn strip() -> impl Strategy<Value = Option<Strip>> {
    prop::option::of((0..4u32).prop_map(|max_count| Strip { character: ' ', max_count }))
}

proptest! {
    #[test]
    fn byte_level_pieces_join_to_the_full_decode(tokens in tokens(266), skip: bool) {
        let table = byte_level_table();
        let expected = naive_decode(&table, &tokens, skip);
        prop_assert_eq!(&table.decode(&tokens, skip), &expected);
        prop_assert_eq!(stream(&table, &[], &tokens, skip), expected);
    }

    #[test]
    fn byte_fallback_pieces_join_to_the_full_decode(
        tokens in tokens(264), strip in strip(), skip: bool,
    ) {
        let table = fallback_table(strip);
        let expected = naive_decode(&table, &tokens, skip);
        prop_assert_eq!(stream(&table, &[], &tokens, skip), expected);
    }

    #[test]
    fn text_after_a_prompt_is_the_rest_of_the_joint_decode(
        prompt in "[ a-b日]{0,4}", tokens in tokens(264), strip in strip(), skip: bool,
    ) {
        // A word between the two ends the prompt's run, so that its text is final.
        let table = fallback_table(strip);
        let mut all: Vec<u32> = prompt.bytes().map(u32::from).chain([257]).collect();
        let num_prompt = all.len();
        all.extend_from_slice(&tokens);
        let before = naive_decode(&table, &all[..num_prompt], skip);
        let joint = naive_decode(&table, &all, skip);
        let text = stream(&table, &all[..num_prompt], &tokens, skip);
        prop_assert_eq!(format!("{before}{text}"), joint);
    }

    #[test]
    fn a_character_that_the_prompt_begins_belongs_to_the_text_that_ends_it(
        text in "\\PC{1,6}", split in any::<prop::sample::Index>(), is_byte_level: bool,
    ) {
        let table = if is_byte_level { byte_level_table() } else { fallback_table(None) };
        let ids: Vec<u32> = text.bytes().map(u32::from).collect();
        let split = split.index(ids.len() + 1);
        let start = (0..=split).rev().find(|&place| text.is_char_boundary(place)).unwrap();
        let generated = stream(&table, &ids[..split], &ids[split..], true);
        let expected = if split == text.len() { "" } else { &text[start..] };
        prop_assert_eq!(generated, expected);
    }
}

#[test]
fn at_most_three_bytes_wait_for_the_end_of_a_character() {
    let table = byte_level_table();
    let mut decoder = Decoder::new(&table, &[], true);
    for (byte, expected) in [(0xF0, ""), (0x9F, ""), (0x91, ""), (0xA9, "👩"), (0x61, "a")] {
        assert_eq!(decoder.push(&table, byte).text, expected);
    }
}

#[test]
fn a_byte_run_is_tentative_until_it_ends() {
    let table = fallback_table(None);
    let mut decoder = Decoder::new(&table, &[], true);
    let newline = decoder.push(&table, 0x0A);
    assert_eq!((newline.text, newline.is_settled), ("\n", false));
    let word = decoder.push(&table, 257);
    assert_eq!((word.text, word.is_settled, word.num_withdrawn_bytes), ("b", true, 0));
    decoder.push(&table, 0x0A);
    let broken = decoder.push(&table, 0xFF);
    assert_eq!((broken.text, broken.num_withdrawn_bytes), ("\u{FFFD}\u{FFFD}", 1));
    assert!(broken.is_settled, "no later byte can mend the run");
}

#[test]
fn half_a_character_at_the_end_of_the_prompt_does_not_leak() {
    for (table, word) in [(byte_level_table(), u32::from(b'b')), (fallback_table(None), 257)] {
        assert_eq!(stream(&table, &[0xE2, 0x82], &[], true), "");
        let text = stream(&table, &[0xE2, 0x82], &[word], true);
        assert_eq!(text, "b", "the prompt's invalid bytes are the prompt's");
    }
}

#[test]
fn only_the_first_token_of_a_text_loses_its_metaspace_markers() {
    let spelling = Spelling::Metaspace { marker: '▁', first_loses_marker: true };
    let tokens = [Some("<s>"), Some("▁a▁b"), Some("▁c"), Some(" d")];
    let table = TokenTable::new(spelling, tokens, |token| token == "<s>").unwrap();
    assert_eq!(stream(&table, &[], &[1, 2], true), "ab c");
    assert_eq!(stream(&table, &[], &[0, 1, 2], true), "ab c", "a skipped token is not first");
    assert_eq!(stream(&table, &[], &[0, 1, 2], false), "<s> a b c");
    assert_eq!(stream(&table, &[0], &[1], true), "ab", "nor is a prompt of skipped tokens");
    assert_eq!(stream(&table, &[2], &[1], true), " a b");
    assert_eq!(stream(&table, &[], &[3], true), " d", "a space is not a marker");
}
