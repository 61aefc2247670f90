//! Structural tags against a recogniser that tries everything: their texts are allowed, all of them and no others.

mod support;

use std::collections::BTreeSet;

use pagedkv_text::{Grammar, GrammarSource, JsonOptions};
use proptest::prelude::*;
use regex::Regex;
use serde_json::{Value, json};
use support::reads;

const MAX_LENGTH: usize = 5;

fn compile(format: &Value) -> Result<Grammar, String> {
    let options = JsonOptions {
        any_whitespace: false,
        whitespace_pattern: None,
        additional_properties: true,
    };
    let tag = json!({"format": format}).to_string();
    support::compile(&GrammarSource::StructuralTag { tag, options })
}

/// What is said of formats that nothing satisfies, or whose free text has no end.
const REFUSALS: [&str; 4] = [
    "cannot tell where to stop",
    "never comes to its end",
    "nothing but the empty text satisfies it",
    "can follow",
];

type Places = BTreeSet<usize>;

/// A format over the letters a, b and 1. JSON is the number 1.
#[derive(Debug, Clone)]
enum Format {
    Text(&'static str),
    Json,
    Pattern(&'static str),
    AnyText(Vec<&'static str>),
    Row(Vec<Self>),
    Any(Vec<Self>),
    Repeat(Box<Self>, u32, Option<u32>),
    Tag(Tag),
    Triggered { tags: Vec<Tag>, at_least_one: bool, stop_after_first: bool },
    Separated { tags: Vec<Tag>, at_least_one: bool, stop_after_first: bool },
}

#[derive(Debug, Clone)]
struct Tag {
    begin: &'static str,
    content: Box<Format>,
    ends: Vec<&'static str>,
}

const PATTERNS: [&str; 5] = ["a*", "(ab)+", "[ab]1?", "1{2,3}|a", "^.b$"];
const TRIGGER: &str = "b";
const SEPARATOR: &str = "a";

impl Tag {
    fn json(&self) -> Value {
        json!({"type": "tag", "begin": self.begin, "content": self.content.json(), "end": self.ends})
    }

    /// Where it ends behind its first `skipped` bytes, which stand there already.
    fn places(&self, text: &str, from: &Places, skipped: usize) -> Places {
        let inside = word(text, from, &self.begin[skipped..]);
        any_word(text, &self.content.places(text, &inside, Some(&self.ends)), &self.ends)
    }
}

fn word(text: &str, from: &Places, word: &str) -> Places {
    from.iter().filter(|at| text[**at..].starts_with(word)).map(|at| at + word.len()).collect()
}

fn any_word(text: &str, from: &Places, words: &[&str]) -> Places {
    words.iter().flat_map(|each| word(text, from, each)).collect()
}

/// Where a pattern may end that starts at one of `from`.
fn matches(text: &str, from: &Places, pattern: &str) -> Places {
    let regex = Regex::new(&format!("^(?:{pattern})$")).expect("it is one of the patterns here");
    let all = from.iter().flat_map(|from| (*from..=text.len()).map(move |place| (*from, place)));
    all.filter(|(from, place)| regex.is_match(&text[*from..*place]))
        .map(|(_, place)| place)
        .collect()
}

/// Where free text may end that starts at `from`: before one of `ends`, if there are some, and before anything of
/// `stops` and of `ends` is complete.
fn free(
    text: &str,
    from: usize,
    stops: &[&str],
    excludes: &[&str],
    ends: Option<&[&str]>,
) -> Places {
    let has =
        |words: &[&str], until: usize| words.iter().any(|word| text[from..until].contains(word));
    let mut places = Places::new();
    for place in from..=text.len() {
        match ends {
            None if !has(stops, place) && !has(excludes, place) => {
                places.insert(place);
            }
            None => {}
            Some(ends) => {
                for end in ends.iter().filter(|end| text[place..].starts_with(**end)) {
                    let last = place + end.len();
                    if !has(stops, last - 1) && !has(ends, last - 1) && !has(excludes, last) {
                        places.insert(place);
                    }
                }
            }
        }
    }
    places
}

impl Format {
    fn json(&self) -> Value {
        let all = |parts: &[Self]| -> Vec<Value> { parts.iter().map(Self::json).collect() };
        let tags = |tags: &[Tag]| -> Vec<Value> { tags.iter().map(Tag::json).collect() };
        match self {
            Self::Text(value) => json!({"type": "const_string", "value": value}),
            Self::Json => json!({"type": "json_schema", "json_schema": {"const": 1}}),
            Self::Pattern(pattern) => json!({"type": "regex", "pattern": pattern}),
            Self::AnyText(excludes) => json!({"type": "any_text", "excludes": excludes}),
            Self::Row(parts) => json!({"type": "sequence", "elements": all(parts)}),
            Self::Any(parts) => json!({"type": "or", "elements": all(parts)}),
            Self::Repeat(part, min, max) => json!({
                "type": "repeat", "content": part.json(), "min": min, "max": max.map_or(-1, i64::from)
            }),
            Self::Tag(tag) => tag.json(),
            Self::Triggered { tags: each, at_least_one, stop_after_first } => json!({
                "type": "triggered_tags", "triggers": [TRIGGER], "tags": tags(each),
                "at_least_one": at_least_one, "stop_after_first": stop_after_first
            }),
            Self::Separated { tags: each, at_least_one, stop_after_first } => json!({
                "type": "tags_with_separator", "separator": SEPARATOR, "tags": tags(each),
                "at_least_one": at_least_one, "stop_after_first": stop_after_first
            }),
        }
    }

    /// The text that ends what stands before it, if it begins with one.
    fn opening(&self) -> Option<&'static str> {
        match self {
            Self::Text(text) | Self::Tag(Tag { begin: text, .. }) => {
                (!text.is_empty()).then_some(*text)
            }
            _ => None,
        }
    }

    /// Where it may end that starts at one of `from`, before one of `ends`.
    fn places(&self, text: &str, from: &Places, ends: Option<&[&str]>) -> Places {
        match self {
            Self::Text(value) => word(text, from, value),
            Self::Json => word(text, from, "1"),
            Self::Pattern(pattern) => matches(text, from, pattern),
            Self::AnyText(excludes) => {
                from.iter().flat_map(|from| free(text, *from, &[], excludes, ends)).collect()
            }
            Self::Row(parts) => {
                let mut places = from.clone();
                for (i, part) in parts.iter().enumerate() {
                    let opening = parts.get(i + 1).map(Self::opening);
                    let next = [opening.flatten().unwrap_or("")];
                    let after = if opening.is_some() { Some(&next[..]) } else { ends };
                    places = part.places(text, &places, after);
                }
                places
            }
            Self::Any(parts) => {
                parts.iter().flat_map(|part| part.places(text, from, ends)).collect()
            }
            Self::Repeat(part, min, max) => {
                let (mut places, mut found) = (from.clone(), Places::new());
                for round in 0..=max.unwrap_or(min + MAX_LENGTH as u32 + 1) {
                    if round >= *min {
                        found.extend(&places);
                    }
                    places = part.places(text, &places, None);
                }
                found
            }
            Self::Tag(tag) => tag.places(text, from, 0),
            Self::Triggered { tags, at_least_one, stop_after_first } => {
                triggered(text, from, tags, (*at_least_one, *stop_after_first), ends)
            }
            Self::Separated { tags, at_least_one, stop_after_first } => {
                let mut found = if *at_least_one { Places::new() } else { from.clone() };
                let mut places = any_tag(text, from, tags, 0);
                for _ in 0..=MAX_LENGTH {
                    found.extend(&places);
                    if *stop_after_first {
                        break;
                    }
                    places = any_tag(text, &word(text, &places, SEPARATOR), tags, 0);
                }
                found
            }
        }
    }
}

fn any_tag(text: &str, from: &Places, tags: &[Tag], skipped: usize) -> Places {
    tags.iter().flat_map(|tag| tag.places(text, from, skipped)).collect()
}

fn triggered(
    text: &str,
    from: &Places,
    tags: &[Tag],
    (at_least_one, stop_after_first): (bool, bool),
    ends: Option<&[&str]>,
) -> Places {
    let mut starts = if at_least_one { any_tag(text, from, tags, 0) } else { from.clone() };
    if at_least_one && stop_after_first {
        return starts;
    }
    let mut found = Places::new();
    let mut called = Places::new();
    for _ in 0..=MAX_LENGTH {
        for start in &starts {
            found.extend(free(text, *start, &[TRIGGER], &[], ends));
        }
        let triggers: Places = starts
            .iter()
            .flat_map(|start| free(text, *start, ends.unwrap_or(&[]), &[], Some(&[TRIGGER])))
            .map(|place| place + TRIGGER.len())
            .collect();
        called = any_tag(text, &triggers, tags, TRIGGER.len());
        if stop_after_first {
            break;
        }
        starts.extend(&called);
    }
    if stop_after_first {
        let closed = |place: &&usize| {
            ends.is_none_or(|ends| ends.iter().any(|end| text[**place..].starts_with(end)))
        };
        found.extend(called.iter().filter(closed));
    }
    found
}

fn tag(
    content: impl Strategy<Value = Format> + Clone,
    begins: Vec<&'static str>,
) -> impl Strategy<Value = Tag> + Clone {
    let ends = prop::sample::select(vec![
        vec!["a"],
        vec!["b"],
        vec!["ab"],
        vec!["b", "ab"],
        vec!["aa", "1"],
    ]);
    (prop::sample::select(begins), content, ends).prop_map(|(begin, content, ends)| Tag {
        begin,
        content: Box::new(content),
        ends,
    })
}

fn format() -> impl Strategy<Value = Format> {
    let leaf = prop_oneof![
        prop::sample::select(vec!["a", "b", "ab", "ba", "1", ""]).prop_map(Format::Text),
        Just(Format::Json),
        prop::sample::select(PATTERNS.to_vec()).prop_map(Format::Pattern),
        prop::sample::select(vec![vec![], vec!["aa"], vec!["1", "ba"]]).prop_map(Format::AnyText),
    ];
    leaf.prop_recursive(3, 8, 3, |inner| {
        let tags = prop_oneof![
            tag(inner.clone(), vec!["b", "ba", "b1"]).prop_map(|tag| vec![tag]),
            (tag(inner.clone(), vec!["ba"]), tag(inner.clone(), vec!["bb", "b1"]))
                .prop_map(|(first, second)| vec![first, second]),
        ];
        let flags = (any::<bool>(), any::<bool>());
        prop_oneof![
            prop::collection::vec(inner.clone(), 1..4).prop_map(Format::Row),
            prop::collection::vec(inner.clone(), 1..4).prop_map(Format::Any),
            (inner.clone(), prop::sample::select(vec![(0, None), (0, Some(1)), (2, Some(3))]))
                .prop_map(|(part, (min, max))| Format::Repeat(Box::new(part), min, max)),
            tag(inner, vec!["a", "ab", "", "1"]).prop_map(Format::Tag),
            (tags.clone(), flags).prop_map(|(tags, (at_least_one, stop_after_first))| {
                Format::Triggered { tags, at_least_one, stop_after_first }
            }),
            (tags, flags).prop_map(|(tags, (at_least_one, stop_after_first))| {
                Format::Separated { tags, at_least_one, stop_after_first }
            }),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn the_texts_of_a_tag_are_allowed_and_no_others(format in format()) {
        let json = format.json();
        let grammar = match compile(&json) {
            Ok(grammar) => grammar,
            Err(error) => {
                prop_assert!(REFUSALS.iter().any(|part| error.contains(part)), "{}: {}", json, error);
                return Ok(());
            }
        };
        let mut texts = vec![String::new()];
        for _ in 0..=MAX_LENGTH {
            for text in &texts {
                let expected = format.places(text, &Places::from([0]), None).contains(&text.len());
                prop_assert_eq!(reads(&grammar, text), expected, "{:?} of {}", text, json);
            }
            texts = texts.iter().flat_map(|text| ["a", "b", "1"].map(|letter| format!("{text}{letter}"))).collect();
        }
    }
}
