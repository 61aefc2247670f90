//! GBNF against a recogniser that tries everything: the texts of a grammar are allowed, all of them and no others.

mod support;

use std::collections::BTreeSet;

use pagedkv_text::{Grammar, GrammarSource};
use proptest::prelude::*;
use support::reads;

fn compile(grammar: &str) -> Result<Grammar, String> {
    support::compile(&GrammarSource::Grammar(grammar.to_owned()))
}

#[track_caller]
fn check(grammar: &str, allowed: &[&str], refused: &[&str]) {
    let grammar = compile(grammar).unwrap();
    for text in allowed {
        assert!(reads(&grammar, text), "{text:?}");
    }
    for text in refused {
        assert!(!reads(&grammar, text), "{text:?}");
    }
}

#[test]
fn what_ends_a_part_may_also_go_on_with_it() {
    let sums = r#"
root  ::= (expr "=" ws term "\n")+
expr  ::= term ([-+*/] term)*
term  ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z] [a-z0-9_]* ws
num   ::= [0-9]+ ws
ws    ::= [ \t\n]*
"#;
    let allowed = ["1=1\n", "1=1 \n\n", "(a1 +b)*2 =\n(3)\n", "a=1\n\nb = c\n"];
    check(sums, &allowed, &["1=1", "1=1 ", "(1=1\n", "1+=1\n"]);
    let words = "root ::= x \";\"\nx ::= [a-z]+ y | \"(\" x \")\"\ny ::= \"b1\" x | \".\"";
    check(words, &["abc.;", "ab1c.;", "abb1x.;", "((bb1b.));"], &["b1c.;", "(ab1.);"]);
}

#[test]
fn alternatives_may_be_one_text_in_several_spellings() {
    let grammar = "root ::= \"a\" | (\"aab\" | \"a\" \"ab\") root \"b\"";
    check(grammar, &["a", "aabab", "aabaababb"], &["aab", "ab", "aababb"]);
    let grammar = "root ::= (\"aab\" | [a] x) \"!\"\nx ::= \"ab\"";
    check(grammar, &["aab!"], &["ab!", "aab"]);
    let grammar =
        "root ::= \"a\" | (\"aab\" | \"a\" \"ab\" | [a] x | x? \"!\") root \"b\"\nx ::= \"ab\"";
    check(grammar, &["a", "aabab", "aab!ab!abbb", "!ab"], &["aab", "aabb", "ab!a"]);
}

#[test]
fn json_with_every_kind_of_escape_is_read() {
    let json = r#"
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws (string ":" ws value ("," ws string ":" ws value)*)? "}" ws
array  ::= "[" ws (value ("," ws value)*)? "]" ws
string ::= "\"" ([^"\\\x7F\x00-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4}))* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9]+)? ws
ws     ::= [ \t\n]*
"#;
    let allowed = ["{}", "{ \"a\\n\\u00e9\" : [1, -2.5e+3,\n{\"狐\":null}] }\n"];
    check(json, &allowed, &["", "[]", "{\"a\"}", "{\"a\":01}", "{\"\\x\":1}", "{\"a\":1,}"]);
}

#[test]
fn characters_beyond_ascii_are_one_character() {
    check("root ::= [^a-z] . \"\\U0001F98A\"", &["é狐🦊", "A\n🦊"], &["aé🦊", "éa", "é🦊"]);
    check("root ::= [ぁ-ゟ]{2,3}", &["きつ", "きつね"], &["き", "きつねが", "キツ"]);
}

#[test]
fn a_class_of_thousands_of_ranges_is_not_copied_for_each_place_it_stands_at() {
    let class: String = ('一'..'龥').step_by(2).collect();
    let row = "c ".repeat(1900);
    let choices: Vec<String> = (0..30).map(|i| format!("\"{i}\" {row} root")).collect();
    let grammar = format!("root ::= {} | c\nc ::= [{class}]", choices.join(" | "));
    check(&grammar, &["一"], &["丁"]);
}

/// A grammar over the letters a and b.
#[derive(Debug, Clone)]
enum Part {
    Text(&'static str),
    Class(&'static str),
    Rule(usize),
    Row(Vec<Self>),
    Any(Vec<Self>),
    Repeat(Box<Self>, u32, Option<u32>),
}

const NUM_RULES: usize = 3;
const NAMES: [&str; NUM_RULES] = ["root", "one", "two"];
const MAX_LENGTH: usize = 5;

impl Part {
    fn gbnf(&self) -> String {
        let all = |parts: &[Self], between: &str| {
            let parts: Vec<String> = parts.iter().map(Self::gbnf).collect();
            format!("({})", parts.join(between))
        };
        match self {
            Self::Text(text) => format!("\"{text}\""),
            Self::Class(class) => format!("[{class}]"),
            Self::Rule(rule) => NAMES[*rule].to_owned(),
            Self::Row(parts) => all(parts, " "),
            Self::Any(parts) => all(parts, " | "),
            Self::Repeat(part, min, None) => format!("{}{{{min},}}", part.gbnf()),
            Self::Repeat(part, min, Some(max)) => format!("{}{{{min},{max}}}", part.gbnf()),
        }
    }

    /// Where texts of the part end that start at one of some places.
    fn ends(&self, text: &[u8], starts: &BTreeSet<usize>, known: &Known) -> BTreeSet<usize> {
        match self {
            Self::Text(word) => starts
                .iter()
                .filter(|start| text[**start..].starts_with(word.as_bytes()))
                .map(|start| start + word.len())
                .collect(),
            Self::Class(class) => starts
                .iter()
                .filter(|start| {
                    text.get(**start).is_some_and(|byte| class.as_bytes().contains(byte))
                })
                .map(|start| start + 1)
                .collect(),
            Self::Rule(rule) => {
                starts.iter().flat_map(|start| &known[*rule][*start]).copied().collect()
            }
            Self::Row(parts) => {
                parts.iter().fold(starts.clone(), |starts, part| part.ends(text, &starts, known))
            }
            Self::Any(parts) => {
                parts.iter().flat_map(|part| part.ends(text, starts, known)).collect()
            }
            Self::Repeat(part, min, max) => {
                let mut places = starts.clone();
                let mut ends = BTreeSet::new();
                // Nothing new comes after as many rounds as there are places.
                for round in 0..=max.unwrap_or(min + MAX_LENGTH as u32 + 1) {
                    if round >= *min {
                        ends.extend(&places);
                    }
                    places = part.ends(text, &places, known);
                }
                ends
            }
        }
    }
}

/// Where a rule's texts end, by rule and place.
type Known = Vec<Vec<BTreeSet<usize>>>;

/// Whether the text is one of the grammar, whose rules may lead to themselves in any way.
fn is_text_of(rules: &[Part], text: &str) -> bool {
    let mut known: Known = vec![vec![BTreeSet::new(); text.len() + 1]; rules.len()];
    loop {
        let next: Known = rules
            .iter()
            .map(|rule| {
                let ends = |start| rule.ends(text.as_bytes(), &BTreeSet::from([start]), &known);
                (0..=text.len()).map(ends).collect()
            })
            .collect();
        if next == known {
            return known[0][0].contains(&text.len());
        }
        known = next;
    }
}

fn part() -> impl Strategy<Value = Part> {
    let leaf = prop_oneof![
        prop::sample::select(vec!["a", "b", "ab", "ba", "aab", ""]).prop_map(Part::Text),
        prop::sample::select(vec!["a", "b", "ab"]).prop_map(Part::Class),
        (0..NUM_RULES).prop_map(Part::Rule),
    ];
    leaf.prop_recursive(3, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 1..4).prop_map(Part::Row),
            prop::collection::vec(inner.clone(), 1..4).prop_map(Part::Any),
            (inner, prop::sample::select(vec![(0, None), (1, None), (0, Some(1)), (2, Some(3))]))
                .prop_map(|(part, (min, max))| Part::Repeat(Box::new(part), min, max)),
        ]
    })
}

/// Mostly one with an end, and one that goes through rules.
fn rule() -> impl Strategy<Value = Part> {
    let word = prop::sample::select(vec!["a", "b", "ab"]).prop_map(Part::Text);
    let around = (part(), 0..NUM_RULES, part())
        .prop_map(|(before, rule, after)| Part::Row(vec![before, Part::Rule(rule), after]));
    prop_oneof![
        4 => (word, around).prop_map(|(word, around)| Part::Any(vec![word, around])),
        1 => part(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn the_texts_of_a_grammar_are_allowed_and_no_others(
        rules in prop::collection::vec(rule(), NUM_RULES..=NUM_RULES)
    ) {
        let lines = rules.iter().zip(NAMES).map(|(rule, name)| format!("{name} ::= {}", rule.gbnf()));
        let text = lines.collect::<Vec<_>>().join("\n");
        let grammar = compile(&text);
        let mut texts = vec![String::new()];
        for length in 0..=MAX_LENGTH {
            for word in &texts {
                let expected = is_text_of(&rules, word);
                match &grammar {
                    Ok(grammar) => prop_assert_eq!(reads(grammar, word), expected, "{:?} of\n{}", word, text),
                    Err(error) if error.contains("has no end") => {}
                    // Nothing but the empty text satisfies it.
                    Err(error) => prop_assert!(!expected || length == 0, "{}: {:?} of\n{}", error, word, text),
                }
            }
            texts = texts.iter().flat_map(|word| ["a", "b"].map(|letter| format!("{word}{letter}"))).collect();
        }
    }
}
