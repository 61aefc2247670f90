//! A sequence's text against a twin that decodes everything and searches everything.

use std::sync::Arc;

use pagedkv_core::text::SequenceText;
use pagedkv_text::{
    Spelling, StopSet, StopText, TableText, TableTextOptions, TextError, TokenTable,
};
use proptest::prelude::*;

/// What a text must be: the first character at which a stop string is complete ends it.
fn naive_stop(
    text: &str,
    may_stop_from: usize,
    stops: &[String],
    include: bool,
) -> (String, Option<u32>) {
    for end in (may_stop_from + 1..=text.len()).filter(|&end| text.is_char_boundary(end)) {
        let longest =
            stops.iter().filter(|stop| text[..end].ends_with(*stop)).max_by_key(|s| s.len());
        if let Some(stop) = longest {
            let index = stops.iter().position(|other| other == stop).unwrap();
            let kept = if include { end } else { end - stop.len() };
            return (text[..kept].to_owned(), Some(index as u32));
        }
    }
    (text.to_owned(), None)
}

/// The longest end of the text that a stop string could begin with.
fn naive_held(text: &str, stops: &[String]) -> usize {
    (0..=text.len())
        .filter(|&start| text.is_char_boundary(start))
        .find(|&start| {
            let end = &text[start..];
            stops.iter().any(|stop| stop.len() > end.len() && stop.starts_with(end))
        })
        .map_or(0, |start| text.len() - start)
}

fn small_strings(
    chars: &'static str,
    len: std::ops::Range<usize>,
) -> impl Strategy<Value = String> {
    let letters: Vec<char> = chars.chars().collect();
    prop::collection::vec(prop::sample::select(letters), len)
        .prop_map(|letters| letters.into_iter().collect())
}

fn stops() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec(small_strings("aab€", 1..5), 0..5)
}

/// Byte tokens 0 to 255, then a few words.
fn table() -> Arc<TokenTable> {
    let bytes: Vec<String> = (0..=255u8).map(|byte| format!("<0x{byte:02X}>")).collect();
    let words = ["a", "ab", "ba", "€", "aa€b"].map(Some);
    let tokens = bytes.iter().map(|token| Some(token.as_str())).chain(words);
    let spelling = Spelling::Fallback { replacements: vec![], has_byte_tokens: true, strip: None };
    Arc::new(TokenTable::new(spelling, tokens, |_| false).unwrap())
}

fn tokens() -> impl Strategy<Value = Vec<u32>> {
    let byte = prop::sample::select(vec![0x61u32, 0x62, 0xE2, 0x82, 0xAC]);
    let euro = Just(vec![0xE2, 0x82, 0xAC]);
    let part = prop_oneof![
        2 => byte.prop_map(|id| vec![id]), 2 => euro, 4 => (256..261u32).prop_map(|id| vec![id])
    ];
    prop::collection::vec(part, 0..16).prop_map(|parts| parts.concat())
}

fn new_text(stops: &[String], include: bool) -> TableText {
    let stops = (!stops.is_empty()).then(|| Arc::new(StopSet::new(stops, include).unwrap()));
    TableText::new(table(), &[], TableTextOptions { stops, skip_special_tokens: true })
}

proptest! {
    #[test]
    fn the_matcher_finds_what_a_full_search_finds(
        pieces in prop::collection::vec(small_strings("aab€", 0..4), 0..12),
        stops in stops(), include: bool, min_pieces in 0..6usize,
    ) {
        let set = Arc::new(StopSet::new(&stops, include).unwrap());
        let mut text = StopText::new(Some(set));
        let whole = pieces.concat();
        let may_stop_from = pieces.iter().take(min_pieces).map(String::len).sum();
        let (expected, expected_stop) = naive_stop(&whole, may_stop_from, &stops, include);
        let mut stop = None;
        let mut so_far = String::new();
        for (index, piece) in pieces.iter().enumerate() {
            so_far.push_str(piece);
            stop = text.append(piece, index >= min_pieces);
            text.release();
            if stop.is_some() {
                break;
            }
            let held = naive_held(&so_far, &stops);
            prop_assert_eq!(text.released(), &so_far[..so_far.len() - held]);
        }
        text.finish();
        prop_assert_eq!(stop, expected_stop);
        prop_assert_eq!(text.released(), expected);
    }

    #[test]
    fn a_text_is_the_decode_of_its_tokens_up_to_the_stop_string(
        tokens in tokens(), stops in stops(), include: bool,
    ) {
        let mut text = new_text(&stops, include);
        let mut num_pushed = 0;
        let mut stop = None;
        for &token in &tokens {
            let before = text.text().to_owned();
            stop = text.push(token, true);
            num_pushed += 1;
            prop_assert!(text.text().starts_with(&before), "released text changed");
            if stop.is_some() {
                break;
            }
        }
        text.finish();
        // What the sequence is if it ends where it ended: its own full decode.
        let whole = table().decode(&tokens[..num_pushed], true);
        let (expected, expected_stop) = naive_stop(&whole, 0, &stops, include);
        prop_assert_eq!(stop, expected_stop);
        prop_assert_eq!(text.text(), expected);
    }

    #[test]
    fn forks_go_their_own_ways(
        past in tokens(), left in tokens(), right in tokens(), stops in stops(),
    ) {
        let push_all = |text: &mut dyn SequenceText, tokens: &[u32]| {
            let stop = tokens.iter().find_map(|&token| text.push(token, true));
            text.finish();
            stop
        };
        let mut text = new_text(&stops, false);
        let stop = past.iter().find_map(|&token| text.push(token, true));
        if stop.is_some() {
            return Ok(());
        }
        let mut fork = text.fork();
        let ended = (push_all(&mut text, &left), push_all(fork.as_mut(), &right));
        for (tokens, text, stop) in [(left, text.text(), ended.0), (right, fork.text(), ended.1)] {
            let mut alone = new_text(&stops, false);
            let all: Vec<u32> = past.iter().chain(&tokens).copied().collect();
            prop_assert_eq!(push_all(&mut alone, &all), stop);
            prop_assert_eq!(alone.text(), text);
        }
    }
}

#[test]
fn a_stop_string_in_a_byte_run_ends_the_text_at_once() {
    let mut text = new_text(&["\n".to_owned()], false);
    assert_eq!(text.push(256, true), None);
    assert_eq!(text.push(0x0A, true), Some(0), "<0x0A> is a newline in sentencepiece models");
    text.finish();
    assert_eq!(text.text(), "a");
}

#[test]
fn withdrawn_text_takes_no_part_in_a_match() {
    let mut text = new_text(&["a\u{FFFD}".to_owned()], false);
    assert_eq!(text.push(0x61, true), None);
    assert_eq!(text.push(0xFF, true), None, "the run is two invalid bytes, not an a and one");
    text.finish();
    assert_eq!(text.text(), "\u{FFFD}\u{FFFD}");
}

#[test]
fn of_stop_strings_that_end_together_the_longest_counts() {
    let stops = ["b", "ab", "aab", "ab"].map(String::from);
    let mut text = new_text(&stops, false);
    assert_eq!(text.push(256, true), None);
    assert_eq!(text.text(), "", "\"a\" may be the start of \"ab\"");
    assert_eq!(text.push(257, true), Some(2));
    assert_eq!(text.text(), "");
}

#[test]
fn a_match_before_min_tokens_does_not_count_later() {
    let mut text = new_text(&["ab".to_owned()], false);
    assert_eq!(text.push(257, false), None);
    assert_eq!(text.text(), "ab", "it is ordinary text, so it is not held back either");
    assert_eq!(text.push(256, true), None);
    assert_eq!(text.push(257, true), Some(0));
    text.finish();
    assert_eq!(text.text(), "aba");
}

#[test]
fn a_match_may_begin_before_min_tokens() {
    let mut text = new_text(&["ab".to_owned()], false);
    assert_eq!(text.push(256, false), None);
    assert_eq!(text.push(258, true), Some(0));
    assert_eq!(text.text(), "");
}

#[test]
fn a_stopped_text_takes_nothing_more() {
    let mut text = new_text(&["b".to_owned()], true);
    assert_eq!(text.push(257, true), Some(0));
    assert_eq!(text.push(257, true), None);
    text.finish();
    assert_eq!(text.text(), "ab");
}

#[test]
fn the_start_of_a_stop_string_is_released_at_the_end() {
    let mut text = new_text(&["abc".to_owned()], false);
    text.push(257, true);
    assert_eq!(text.text(), "");
    text.finish();
    assert_eq!(text.text(), "ab");
}

#[test]
fn an_empty_stop_string_is_refused_with_its_place() {
    let error = StopSet::new(&["a", ""], false).unwrap_err();
    assert_eq!(error, TextError::EmptyStop { index: 1 });
    assert_eq!(error.to_string(), "stop[1] must not be empty");
}

/// "aaa...ab" over "aaaa..." makes a restarting search quadratic. Linear means: steps are bounded
/// by twice the text, which 4 MB against 64 kB show by finishing (the square would take minutes).
#[test]
fn a_long_stop_string_of_one_letter_costs_linear_time() {
    let stop = "a".repeat(65_536) + "b";
    let set = Arc::new(StopSet::new(&[stop], false).unwrap());
    let mut text = StopText::new(Some(set));
    let piece = "a".repeat(4_096);
    for _ in 0..1_024 {
        assert_eq!(text.append(&piece, true), None);
        text.release();
    }
    assert_eq!(text.released().len(), 4_096 * 1_024 - 65_536);
}
