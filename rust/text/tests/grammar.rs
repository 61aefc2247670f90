//! What grammars allow: random walks under their masks against checks written by hand.

use std::sync::{Arc, OnceLock};

use pagedkv_core::text::SequenceText;
use pagedkv_text::{
    ConstrainedText, Grammar, GrammarCompiler, GrammarError, GrammarLimits, GrammarMatcher,
    GrammarSource, JsonOptions, Spelling, TableText, TableTextOptions, TokenTable,
};
use proptest::prelude::*;
use serde_json::{Value, json};

const NUM_BYTES: u32 = 256;
const SPECIAL: [&str; 2] = ["<s>", "</s>"];
const WORDS: [&str; 14] =
    ["{", "}", "\"", "{\"", "\":", " ", "  ", "true", "12", "ab", "name", "\"name\"", "é", "😀"];
/// Ids that no token has follow the words.
const NUM_ABSENT: usize = 3;

fn vocab_size() -> usize {
    NUM_BYTES as usize + SPECIAL.len() + WORDS.len() + NUM_ABSENT
}

/// Byte tokens 0 to 255, special tokens, words.
fn table() -> TokenTable {
    let bytes: Vec<String> = (0..=255u8).map(|byte| format!("<0x{byte:02X}>")).collect();
    let tokens = bytes.iter().map(String::as_str).chain(SPECIAL).chain(WORDS).map(Some);
    let spelling = Spelling::Fallback { replacements: vec![], has_byte_tokens: true, strip: None };
    TokenTable::new(spelling, tokens, |token| SPECIAL.contains(&token)).unwrap()
}

fn compiler() -> &'static GrammarCompiler {
    static COMPILER: OnceLock<GrammarCompiler> = OnceLock::new();
    let limits = GrammarLimits::default();
    COMPILER.get_or_init(|| GrammarCompiler::new(&table(), vocab_size(), limits).unwrap())
}

fn json_source(schema: &str) -> GrammarSource {
    let options = JsonOptions {
        any_whitespace: false,
        whitespace_pattern: None,
        additional_properties: true,
    };
    GrammarSource::JsonSchema { schema: schema.to_owned(), options }
}

fn regex(pattern: &str) -> GrammarSource {
    GrammarSource::Regex(pattern.to_owned())
}

fn lark(text: &str) -> GrammarSource {
    GrammarSource::Grammar(text.to_owned())
}

fn choice(choices: &[&str]) -> GrammarSource {
    GrammarSource::Choice(choices.iter().map(|&choice| choice.to_owned()).collect())
}

fn allowed(matcher: &mut GrammarMatcher) -> (Vec<u32>, bool) {
    let mut mask = vec![0; vocab_size().div_ceil(32)];
    let may_end = matcher.fill_mask(&mut mask).unwrap();
    let ids =
        (0..mask.len() as u32 * 32).filter(|id| mask[*id as usize / 32] >> (id % 32) & 1 == 1);
    (ids.collect(), may_end)
}

/// Random tokens until an end is allowed and taken; where nothing ends it, the most likely way out.
fn walk(grammar: &Grammar, seed: u64, max_tokens: usize) -> Option<Vec<u8>> {
    let table = table();
    let mut matcher = grammar.matcher();
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut draw = |bound: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 16) as usize % bound
    };
    let mut text = Vec::new();
    for _ in 0..max_tokens {
        let (ids, may_end) = allowed(&mut matcher);
        if matcher.is_complete() || (may_end && draw(4) == 0) {
            assert!(may_end);
            return Some(text);
        }
        let closing: Vec<u32> = ids.iter().copied().filter(|id| closes(&table, *id)).collect();
        let from = if closing.is_empty() || draw(3) == 0 { &ids } else { &closing };
        let id = from[draw(from.len())];
        text.extend_from_slice(table.token(id).unwrap().bytes);
        matcher.push(id).unwrap();
    }
    None
}

fn closes(table: &TokenTable, id: u32) -> bool {
    table.token(id).unwrap().bytes.iter().any(|byte| b"}]\"".contains(byte))
}

fn invalid(source: &GrammarSource) -> String {
    match compiler().compile(source) {
        Ok(_) => panic!("{source:?} was compiled"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_walk_through_a_schema_is_json_that_satisfies_it() {
    let schema = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 6},
            "age": {"type": "integer", "minimum": 3, "maximum": 120},
            "tags": {"type": "array", "items": {"enum": ["a", "é😀"]}, "maxItems": 2}
        },
        "required": ["name", "age"],
        "additionalProperties": false
    });
    let grammar = compiler().compile(&json_source(&schema.to_string())).unwrap();
    let mut num_ended = 0;
    for seed in 0..60 {
        let Some(text) = walk(&grammar, seed, 200) else { continue };
        num_ended += 1;
        let value: Value = serde_json::from_slice(&text).expect("it parses");
        let object = value.as_object().expect("an object");
        assert!(object.keys().all(|key| ["name", "age", "tags"].contains(&key.as_str())));
        assert!(object["name"].as_str().unwrap().chars().count() <= 6);
        assert!((3..=120).contains(&object["age"].as_i64().unwrap()));
        let tags = object.get("tags").map_or(&[][..], |tags| tags.as_array().unwrap());
        assert!(tags.len() <= 2 && tags.iter().all(|tag| tag == "a" || tag == "é😀"));
    }
    assert!(num_ended > 40, "only {num_ended} walks ended");
}

#[test]
fn any_whitespace_and_a_pattern_of_it_are_what_may_stand_between_tokens() {
    let schema = json!({"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"],
                        "additionalProperties": false});
    let with = |any_whitespace, pattern: Option<&str>| {
        let options = JsonOptions {
            any_whitespace,
            whitespace_pattern: pattern.map(str::to_owned),
            additional_properties: true,
        };
        compiler().compile(&GrammarSource::JsonSchema { schema: schema.to_string(), options })
    };
    let accepts = |grammar: &Grammar, text: &str| {
        let mut matcher = grammar.matcher();
        text.bytes().all(|byte| matcher.push(u32::from(byte)).is_ok()) && matcher.is_complete()
    };
    let (any, none, two) =
        (with(true, None).unwrap(), with(false, None).unwrap(), with(true, Some(" {2}")).unwrap());
    assert!(accepts(&any, "{\n \"a\" :1}") && accepts(&any, "{\"a\":1}"));
    assert!(!accepts(&any, "{\n\n\"a\":1}"), "white space is bounded");
    assert!(accepts(&none, "{\"a\":1}") && !accepts(&none, "{ \"a\":1}"));
    assert!(accepts(&two, "{  \"a\":1}") && !accepts(&two, "{ \"a\":1}"));
}

#[test]
fn additional_properties_are_closed_where_a_schema_does_not_say() {
    let schema = json!({"type": "object", "properties": {"a": {"type": "object"}}});
    let compile = |additional_properties| {
        let options =
            JsonOptions { any_whitespace: false, whitespace_pattern: None, additional_properties };
        compiler()
            .compile(&GrammarSource::JsonSchema { schema: schema.to_string(), options })
            .unwrap()
    };
    let accepts = |grammar: Grammar, text: &str| {
        let mut matcher = grammar.matcher();
        text.bytes().all(|byte| matcher.push(u32::from(byte)).is_ok())
    };
    assert!(accepts(compile(true), "{\"b\":1}"));
    assert!(!accepts(compile(false), "{\"b\":1}"));
    assert!(!accepts(compile(false), "{\"a\":{\"b\":1}}"));
    assert!(accepts(compile(false), "{\"a\":{}}"));
}

#[test]
fn a_schema_cannot_change_how_it_is_read() {
    let schema = json!({"type": "object", "x-guidance": {"whitespace_flexible": true},
                        "additionalProperties": false});
    let grammar = compiler().compile(&json_source(&schema.to_string())).unwrap();
    let mut matcher = grammar.matcher();
    matcher.push(u32::from(b'{')).unwrap();
    assert!(matcher.push(u32::from(b' ')).is_err());
}

#[test]
fn a_regex_matches_as_a_whole_and_anchors_change_nothing() {
    for pattern in ["[0-9]{2}-(ab|é)+", "^[0-9]{2}-(ab|é)+$"] {
        let grammar = compiler().compile(&regex(pattern)).unwrap();
        for seed in 0..20 {
            let Some(text) = walk(&grammar, seed, 60) else { continue };
            let text = String::from_utf8(text).unwrap();
            let (digits, rest) = text.split_at(2);
            assert!(digits.bytes().all(|byte| byte.is_ascii_digit()));
            let rest = rest.strip_prefix('-').expect("a dash");
            assert!(!rest.is_empty() && rest.replace("ab", "").replace('é', "").is_empty());
        }
    }
}

#[test]
fn a_choice_is_one_of_its_texts_and_ends_with_it() {
    let choices = ["yes", "no (.*)", "nö\n", "yes"];
    let grammar = compiler().compile(&choice(&choices)).unwrap();
    let mut seen = std::collections::HashSet::new();
    for seed in 0..40 {
        let text = walk(&grammar, seed, 20).expect("a choice is short");
        let text = String::from_utf8(text).unwrap();
        assert!(choices.contains(&text.as_str()), "{text:?}");
        seen.insert(text);
    }
    assert_eq!(seen.len(), 3);
}

#[test]
fn a_lark_grammar_may_recurse() {
    let grammar = compiler().compile(&lark("start: \"(\" start \")\" | \"ab\"\n")).unwrap();
    for seed in 0..20 {
        let Some(text) = walk(&grammar, seed, 60) else { continue };
        let depth = text.iter().take_while(|byte| **byte == b'(').count();
        let expected = format!("{}ab{}", "(".repeat(depth), ")".repeat(depth));
        assert_eq!(text, expected.as_bytes());
    }
}

#[test]
fn special_tokens_absent_ids_and_bytes_outside_utf8_are_never_allowed() {
    let sources = [regex("(?s:.*)"), regex("[^a]+x"), json_source("{}"), lark("start: /.+/")];
    for source in sources {
        let grammar = compiler().compile(&source).unwrap();
        let mut matcher = grammar.matcher();
        for _ in 0..12 {
            let (ids, _) = allowed(&mut matcher);
            let words = NUM_BYTES + SPECIAL.len() as u32;
            let end = words + WORDS.len() as u32;
            assert!(ids.iter().all(|id| *id < end && !(NUM_BYTES..words).contains(id)), "{ids:?}");
            assert!(!ids.contains(&0xFF) && !ids.contains(&0xC0));
            let id = ids[ids.len() / 2];
            matcher.push(id).unwrap();
        }
    }
}

#[test]
fn a_fork_goes_its_own_way() {
    let grammar = compiler().compile(&choice(&["ab", "a1"])).unwrap();
    let mut matcher = grammar.matcher();
    matcher.push(u32::from(b'a')).unwrap();
    let mut fork = matcher.fork();
    matcher.push(u32::from(b'b')).unwrap();
    assert!(matcher.is_complete() && !fork.is_complete());
    assert_eq!(allowed(&mut fork), (vec![u32::from(b'1'), u32::from(b'b')], false));
    fork.push(u32::from(b'1')).unwrap();
    assert!(fork.is_complete());
}

#[test]
fn after_its_end_a_text_allows_an_end_and_nothing_else() {
    let grammar = compiler().compile(&choice(&["a"])).unwrap();
    let mut matcher = grammar.matcher();
    matcher.push(u32::from(b'a')).unwrap();
    assert_eq!(allowed(&mut matcher), (vec![], true));
    assert!(matches!(matcher.push(u32::from(b'a')), Err(GrammarError::Stuck(_))));
}

#[test]
fn a_token_that_is_not_allowed_spoils_its_own_sequence_alone() {
    let grammar = compiler().compile(&regex("[a-c]{4}")).unwrap();
    let (mut bad, mut good) = (grammar.matcher(), grammar.matcher());
    for token in [u32::from(b'z'), NUM_BYTES, vocab_size() as u32 + 7] {
        let mut matcher = bad.fork();
        assert!(matches!(matcher.push(token), Err(GrammarError::Stuck(_))), "{token}");
    }
    bad.push(u32::from(b'z')).unwrap_err();
    let mut mask = vec![0; vocab_size().div_ceil(32)];
    assert!(bad.fill_mask(&mut mask).is_err());
    assert!(bad.fill_mask(&mut mask).is_err(), "the error stays");
    for _ in 0..4 {
        assert!(!allowed(&mut good).0.is_empty());
        good.push(u32::from(b'b')).unwrap();
    }
    assert!(good.is_complete());
}

#[test]
fn a_constrained_text_decodes_stops_and_forks_with_its_grammar() {
    let grammar = compiler().compile(&regex("[ab]{3}")).unwrap();
    let table = Arc::new(table());
    let text = TableText::new(Arc::clone(&table), &[0], TableTextOptions::default());
    let mut text = ConstrainedText::new(Some(Box::new(text)), &grammar);
    assert!(text.is_constrained());
    text.push(u32::from(b'a'), true);
    let mut fork = text.fork();
    for token in [b'b', b'b'] {
        fork.push(u32::from(token), true);
    }
    fork.finish();
    assert_eq!((fork.text(), fork.is_complete()), ("abb", true));
    let mut mask = vec![0; vocab_size().div_ceil(32)];
    assert_eq!(text.fill_mask(&mut mask), Ok(false));
    let mut bare = ConstrainedText::new(None, &grammar);
    bare.push(u32::from(b'z'), true);
    assert_eq!(bare.text(), "");
    let message = bare.fill_mask(&mut mask).unwrap_err();
    assert!(message.starts_with("the grammar cannot go on: "), "{message}");
    assert!(!message.contains('\n') && !message.contains("0x"), "{message}");
}

#[test]
fn what_cannot_be_compiled_says_why() {
    for (source, part) in [
        (json_source("{\"type\": "), "not JSON"),
        (json_source("[1]"), "must be an object, got an array"),
        (json_source("false"), "nothing satisfies"),
        (json_source(r#"{"type": "unsupported"}"#), "unsupported"),
        (json_source(r#"{"properties": 3}"#), "properties"),
        (json_source(r##"{"$ref": "#/nowhere"}"##), "nowhere"),
        (json_source(r#"{"$ref": "http://example.com/x.json"}"#), "http"),
        (json_source(r#"{"$ref": "file:///etc/passwd"}"#), "file"),
        (json_source(r#"{"type": "integer", "minimum": 3, "maximum": 2}"#), ""),
        (json_source(r#"{"type": "number", "multipleOf": 0}"#), ""),
        (regex(""), "empty"),
        (regex("(ab"), "unclosed"),
        (regex("[a"), "unclosed"),
        (regex(r"(?=a)b"), "look"),
        (regex(r"(a)\1"), "backreference"),
        (regex(r"a\bb"), "look"),
        (choice(&[]), "empty"),
        (choice(&["a", ""]), "choice 1 is empty"),
        (lark("root ::= (\"a\""), "line 1 of the grammar: expected ')'"),
        (lark("start: <|eos|>"), "names a token"),
        (lark("start: \"\""), "empty text"),
        (lark("nothing: \"a\""), "start"),
        (lark("start: missing"), "missing"),
    ] {
        let message = invalid(&source);
        assert!(message.contains(part), "{source:?}: {message}");
        assert!(!message.contains('\n') && message.len() < 400, "{message}");
        assert!(!message.contains("panic") && !message.contains("/root"), "{message}");
    }
}

#[test]
fn sizes_beyond_the_limits_are_refused_with_numbers() {
    let deep = |depth: usize| format!("{}{{}}{}", "{\"items\":".repeat(depth), "}".repeat(depth));
    let parentheses = |depth: usize| format!("{}a{}", "(".repeat(depth), ")".repeat(depth));
    for (source, part) in [
        (json_source(&deep(64)), "nesting of the schema must be at most 64, got 65"),
        (json_source(&deep(500)), "more than 64 deep"),
        (json_source(&deep(30_000)), "more than 64 deep"),
        (json_source(&" ".repeat(2 << 20)), "bytes of the schema must be at most 1048576"),
        (regex(&parentheses(30_000)), "bytes of the regular expression"),
        (regex(&parentheses(10_000)), "nest"),
        (regex(&"a".repeat(1 << 16)), "must be at most 32768, got 65536"),
        (lark(&format!("start: {}", parentheses(65))), "nesting of the grammar must be at most 64"),
        (GrammarSource::Choice(vec!["a".into(); 1_000_000]), "number of choices"),
    ] {
        let message = invalid(&source);
        assert!(message.contains(part), "{message}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn masks_allow_exactly_what_push_takes(seed in any::<u64>(), which in 0..4_usize) {
        let sources = [
            regex("(ab|a1|é){1,3}"),
            json_source(r#"{"type":"object","properties":{"name":{"type":"boolean"}}}"#),
            choice(&["ab12", "abab", "a"]),
            lark("start: \"{\" (start \"}\" | \"12\"+)\n"),
        ];
        let grammar = compiler().compile(&sources[which]).unwrap();
        let mut matcher = grammar.matcher();
        for step in 0..8_u32 {
            let (ids, _) = allowed(&mut matcher);
            for id in 0..vocab_size() as u32 {
                prop_assert_eq!(ids.contains(&id), matcher.fork().push(id).is_ok(), "id {}", id);
            }
            let Some(id) = ids.get(seed.rotate_left(step * 7) as usize % ids.len().max(1)) else { break };
            matcher.push(*id).unwrap();
        }
    }
}
