//! Structural tags: which texts they allow, byte by byte, and what is wrong with those that are refused.

mod support;

use pagedkv_text::{GrammarSource, JsonOptions};
use serde_json::{Value, json};
use support::{VOCAB_SIZE, compile};

fn options() -> JsonOptions {
    JsonOptions { any_whitespace: false, whitespace_pattern: None, additional_properties: true }
}

fn source(tag: &Value) -> GrammarSource {
    GrammarSource::StructuralTag { tag: tag.to_string(), options: options() }
}

fn format(format: &Value) -> GrammarSource {
    source(&json!({"type": "structural_tag", "format": format}))
}

/// Whether a text may be generated, and whether it may end there. Every byte is asked of a mask too.
fn allows(source: &GrammarSource, text: &str) -> (bool, bool) {
    let mut matcher = compile(source).unwrap().matcher();
    let mut mask = [0_u32; VOCAB_SIZE / 32];
    for byte in text.bytes() {
        matcher.fill_mask(&mut mask).unwrap();
        let is_allowed = mask[usize::from(byte) / 32] >> (byte % 32) & 1 == 1;
        assert_eq!(matcher.push(u32::from(byte)).is_ok(), is_allowed, "{text:?}");
        if !is_allowed {
            return (false, false);
        }
    }
    (true, matcher.fill_mask(&mut mask).unwrap())
}

#[track_caller]
fn check(source: &GrammarSource, complete: &[&str], beginnings: &[&str], refused: &[&str]) {
    for (texts, expected) in
        [(complete, (true, true)), (beginnings, (true, false)), (refused, (false, false))]
    {
        for text in texts {
            assert_eq!(allows(source, text), expected, "{text:?}");
        }
    }
}

fn city() -> Value {
    json!({"type": "object", "properties": {"city": {"type": "string", "maxLength": 5}},
           "required": ["city"], "additionalProperties": false})
}

fn weather() -> Value {
    json!({"type": "structural_tag",
           "structures": [
               {"begin": "<f=city>", "schema": city(), "end": "</f>"},
               {"begin": "<f=count>", "schema": {"type": "integer"}, "end": "\n</f>"},
               {"begin": "[", "schema": city().to_string(), "end": "]"}],
           "triggers": ["<f=", "["]})
}

#[test]
fn a_trigger_in_free_text_calls_for_one_of_its_structures_and_free_text_goes_on_behind_it() {
    check(
        &source(&weather()),
        &[
            "",
            "free <f <text>\n",
            "<f=city>{\"city\":\"Bern\"}</f>",
            "a<<f=city>{\"city\":\"Bern\"}</f>b[{\"city\":\"x\"}]<f=count>12\n</f>é",
        ],
        &["a <f=", "a <f=c", "<f=city>{\"city\":\"Bern\"}", "["],
        &[
            "a <f=x",
            "<f=city>{\"city\":\"Genève\"",
            "<f=city>{\"city\":\"\"}x",
            "<f=count>12</f>",
            "[1",
        ],
    );
}

#[test]
fn options_of_json_are_those_of_the_schemas_inside() {
    let schema = json!({"properties": {"a": {"type": "integer"}}, "type": "object"});
    let tag =
        json!({"structures": [{"begin": "<", "schema": schema, "end": ">"}], "triggers": ["<"]});
    let with = |any_whitespace, whitespace_pattern: Option<&str>, additional_properties| {
        let whitespace_pattern = whitespace_pattern.map(str::to_owned);
        let options = JsonOptions { any_whitespace, whitespace_pattern, additional_properties };
        GrammarSource::StructuralTag { tag: tag.to_string(), options }
    };
    check(&with(true, None, true), &["<{ \"a\" :1,\"b\":2}>"], &[], &["<{\n\n"]);
    check(&with(false, None, true), &["<{\"a\":1,\"b\":2}>"], &[], &["<{ "]);
    check(&with(true, Some("~"), true), &["<{~\"a\":1}>"], &[], &["<{ "]);
    check(&with(true, None, false), &["<{\"a\":1}>"], &[], &["<{\"b"]);
}

#[test]
fn formats_say_what_they_are_called() {
    let digits = json!({"type": "regex", "pattern": "[0-9]{2}"});
    let x = json!({"type": "const_string", "value": "x"});
    check(&format(&x), &["x"], &[""], &["y"]);
    check(&format(&digits), &["12"], &["1"], &["123"]);
    check(
        &format(&json!({"type": "json_schema", "json_schema": true})),
        &["{\"a\":[1]}"],
        &[],
        &["x"],
    );
    check(&format(&json!({"type": "any_text"})), &["", "a\nb"], &[], &[]);
    let careful = json!({"type": "any_text", "excludes": ["ab", "c"]});
    check(&format(&careful), &["a b"], &[], &["xab", "c"]);
    let either = json!({"type": "or", "elements": [x, digits]});
    check(&format(&either), &["x", "10"], &[], &["x1"]);
    let row = json!({"type": "sequence", "elements": [x, either, x]});
    check(&format(&row), &["xxx", "x10x"], &["x1"], &["xx1"]);
    let repeat = |min, max| json!({"type": "repeat", "content": digits, "min": min, "max": max});
    check(&format(&repeat(2, 3)), &["1234", "123456"], &["12"], &["1234567"]);
    check(&format(&repeat(1, -1)), &["12", "12345678"], &["123"], &[]);
    for (kind, complete, beginning) in
        [("optional", "", "1"), ("star", "1234", "1"), ("plus", "1234", "")]
    {
        check(
            &format(&json!({"type": kind, "content": digits})),
            &[complete, "12"],
            &[beginning],
            &[],
        );
    }
    let nested = json!({"type": "grammar", "grammar": "root ::= \"(\" root \")\" | [a-c]+"});
    let nested = json!({"type": "tag", "begin": "<", "content": nested, "end": "a>"});
    check(&format(&nested), &["<((abc))a>"], &["<((ab)"], &["<((ab)a"]);
}

#[test]
fn free_text_in_a_tag_or_before_a_text_ends_at_the_first_place_it_can() {
    let any = json!({"type": "any_text"});
    let think = json!({"type": "tag", "begin": "<t>", "content": any, "end": ["</t>", "</T>"]});
    check(&format(&think), &["<t>a</t</T>", "<t></t>"], &["<t></t"], &["<t></t>x"]);
    let end = json!({"type": "const_string", "value": "aab"});
    let number = json!({"type": "regex", "pattern": "[0-9a]+"});
    let row = json!({"type": "sequence", "elements": [any, end, number]});
    check(&format(&row), &["aaab1", "aaba1"], &["aaab"], &["aabb"]);
    let row = json!({"type": "sequence", "elements": [any, think, any]});
    check(&format(&row), &["a<t>b</t>c<t>"], &["a<t>"], &[]);
    let either = json!({"type": "or", "elements": [any, number]});
    let either = json!({"type": "tag", "begin": "", "content": either, "end": "."});
    check(&format(&either), &["x.", "1."], &["1"], &["x.1"]);
}

#[test]
fn triggered_tags_have_flags_and_may_end_with_the_tag_around_them() {
    let tag = |begin: &str| json!({"begin": begin, "content": {"type": "json_schema", "json_schema": {"enum": [1, 2]}}, "end": "]"});
    let with = |at_least_one: bool, stop_after_first: bool| {
        json!({"type": "triggered_tags", "triggers": ["[a"], "tags": [tag("[ab"), tag("[ac")],
               "excludes": ["no"], "at_least_one": at_least_one, "stop_after_first": stop_after_first})
    };
    let free = format(&with(false, false));
    check(&free, &["", "x[ab1]y[ac2]"], &["[a"], &["[ad", "n no", "[ab3"]);
    check(&format(&with(true, false)), &["[ab1]x[ac2] y"], &[""], &["x"]);
    check(&format(&with(false, true)), &["x", "x[ab1]"], &["x[a"], &["x[ab1]x"]);
    check(&format(&with(true, true)), &["[ab1]"], &["", "[a"], &["x", "[ab1]x"]);
    for (first, complete, refused) in
        [(false, ["<>", "<x[ab1]y[ac2]z>"], "<no"), (true, ["<x>", "<x[ab1]>"], "<[ab1]x")]
    {
        let inside =
            json!({"type": "tag", "begin": "<", "content": with(false, first), "end": ">"});
        check(&format(&inside), &complete, &["<", "<x[a"], &[refused, "<x>x"]);
    }
}

#[test]
fn tags_with_separator_have_nothing_but_it_between_them() {
    let tags = json!([{"type": "tag", "begin": "(", "content": {"type": "any_text"}, "end": ")"}]);
    let with = |at_least_one: bool, stop_after_first: bool| {
        let all = json!({"type": "tags_with_separator", "tags": tags, "separator": ", ",
                         "at_least_one": at_least_one, "stop_after_first": stop_after_first});
        let end = json!({"type": "const_string", "value": "."});
        format(&json!({"type": "sequence", "elements": [all, end]}))
    };
    check(&with(false, false), &[".", "(a).", "(a), (b), ()."], &["(a), "], &["(a) ", "(a), ."]);
    check(&with(true, false), &["(a).", "(a), (b)."], &[], &["."]);
    check(&with(false, true), &[".", "(a)."], &[], &["(a),"]);
    check(&with(true, true), &["(a)."], &[], &[".", "(a),"]);
}

/// A field of `weather` and its value, and what is said of it.
/// A lexeme goes on for as long as it can: JSON, patterns and free text are divided where that takes what others need.
#[test]
fn what_may_stand_at_one_place_does_not_take_the_characters_of_one_another() {
    let any_of = |formats: Value| format(&json!({"type": "or", "elements": formats}));
    let text = |value: &str| json!({"type": "const_string", "value": value});
    let row = |elements: Value| json!({"type": "sequence", "elements": elements});
    let schema = json!({"type": "array", "items": {"type": "integer"}});
    let list = json!({"type": "json_schema", "json_schema": schema});
    check(
        &any_of(json!([list, text("[1x"), text("[1,2]!")])),
        &["[1,2]", "[1,2]!", "[1x", "[]", "[12,3]"],
        &["[1,", "[1"],
        &["[1x,", "[1,2]?", "x"],
    );
    let tag = |begin: &str, content: &Value, end: &str| json!({"type": "tag", "begin": begin, "content": content, "end": end});
    let free = json!({"type": "any_text"});
    let tags = [tag("<f>", &list, "</f>"), tag("<f>", &free, "<stop>")];
    check(
        &format(&json!({"type": "triggered_tags", "triggers": ["<f"], "tags": tags})),
        &["so <f>[1]</f> and", "<f>[1]</f><f>[x]<stop>", "<f>[1]</f><stop>", "<f>[1]<stop>"],
        &["<f>[x]</f>", "<f>[1]</f><f>", "<f>[1]<st"],
        &[],
    );
    let number = json!({"type": "regex", "pattern": "^[0-9]+$"});
    check(
        &any_of(json!([row(json!([number, list])), row(json!([text("7"), text("!")]))])),
        &["12[3]", "7!", "7[]"],
        &["7", "71"],
        &["71!", "!"],
    );
    let integer = json!({"type": "json_schema", "json_schema": {"type": "integer"}});
    check(&format(&row(json!([integer, text("1")]))), &[], &["1", "11"], &["11.", "11a"]);
    check(&format(&row(json!([integer, text("."), integer]))), &["11.1"], &["11."], &["11a"]);
    let pairs = row(
        json!([{"type": "regex", "pattern": "a+"}, list, {"type": "star", "content": text("ab")}]),
    );
    check(&format(&pairs), &["aa[1]", "a[]ab"], &["aa"], &["ab", "a[]b"]);
}

const MISTAKES_OF_STRUCTURES: [(&str, &str, &str); 17] = [
    ("type", r#""tag""#, r#"type must be "structural_tag", got "tag""#),
    ("format", "{}", "structures is unknown; leave it out or use one of type, format"),
    ("more", "1", "more is unknown; leave it out or use one of type, structures, triggers"),
    ("structures", "[]", "structures is empty; give at least one element"),
    ("triggers", "[]", "triggers is empty; give at least one element"),
    ("triggers", r#"["<f=", "[", ""]"#, "triggers[2] is empty; it needs a character"),
    ("triggers", r#""<""#, r#"triggers must be a list, got "<""#),
    ("triggers", r#"["<f=", "[", "x"]"#, r#"triggers[2] "x" begins no tag; leave it out"#),
    ("triggers", r#"["<f="]"#, r#"structures[2].begin "[" begins with none of triggers"#),
    ("triggers", r#"["<f=", "<f", "["]"#, r#"triggers[0] "<f=" contains trigger "<f""#),
    ("structures", "[3]", "structures[0] must be an object, got 3"),
    ("structures", r#"[{"begin": "<", "schema": {}}]"#, "structures[0].end is missing"),
    (
        "structures",
        r#"[{"begin": 3, "schema": {}, "end": ""}]"#,
        "structures[0].begin must be a text",
    ),
    ("structures", r#"[{"begin": "[", "end": ""}]"#, "structures[0].schema is missing"),
    ("structures", r#"[{"schema": "{"}]"#, "structures[0].schema: the schema is not JSON"),
    ("structures", r#"[{"schema": []}]"#, "structures[0].schema: a schema must be an object"),
    ("structures", r#"[{"begin": "[", "x": 1}]"#, "structures[0].x is unknown"),
];

/// A format, and what is said of it.
const MISTAKES_OF_FORMATS: [(&str, &str); 19] = [
    ("3", "format must be an object, got 3"),
    ("{}", "format.type is missing"),
    (
        r#"{"type": "token"}"#,
        r#"format.type "token" is not supported; use one of any_text, const_"#,
    ),
    (r#"{"type": "const_string"}"#, "format.value is missing"),
    (r#"{"type": "regex", "pattern": ""}"#, "format.pattern: the regular expression is empty"),
    (r#"{"type": "regex", "pattern": "(a"}"#, "unclosed group"),
    (
        r#"{"type": "regex", "pattern": "a\\"}"#,
        "format.pattern: the regular expression ends in a back",
    ),
    (r#"{"type": "any_text", "excluded": []}"#, "format.excluded is unknown"),
    (r#"{"type": "json_schema", "style": "x"}"#, r#"format.style must be "json", got "x""#),
    (r#"{"type": "json_schema", "json_schema": {"type": "nothing"}}"#, "nothing"),
    (r#"{"type": "grammar", "grammar": "a ::= b"}"#, "format.grammar: the grammar defines no rule"),
    (
        r#"{"type": "sequence", "elements": [{"type": "any_text"}, {"type": "regex", "pattern": "a"}]}"#,
        "format.elements[0] cannot tell where to stop; put it last",
    ),
    (
        r#"{"type": "repeat", "content": {"type": "any_text"}, "min": 3, "max": 2}"#,
        "format.max must be at least min (3), got 2",
    ),
    (
        r#"{"type": "repeat", "min": 1, "max": 20, "content": {"type": "repeat", "min": 30, "max": -1, "content":
            {"type": "tag", "begin": "", "content": {"type": "any_text"}, "end": "/"}}}"#,
        "format repeats free text 600 times; 256 are the most",
    ),
    (r#"{"type": "repeat", "min": -1}"#, "format.min must be 0 to 65536, got -1"),
    (r#"{"type": "star", "content": {"type": "any_text"}}"#, "format.content cannot tell"),
    (r#"{"type": "tag", "begin": {"type": "token"}}"#, "format.begin must be a text"),
    (
        r#"{"type": "triggered_tags", "triggers": ["<"], "excludes": ["<"],
            "tags": [{"begin": "<a>", "content": {"type": "any_text"}, "end": ">"}]}"#,
        r#"format.triggers[0] "<" contains "<", which is excluded"#,
    ),
    (
        r#"{"type": "tag", "begin": "", "end": "</", "content": {"type": "triggered_tags", "triggers": ["<"],
            "tags": [{"begin": "<a>", "content": {"type": "any_text"}, "end": ">"}]}}"#,
        r#"format.content never comes to its end "</", which contains "<""#,
    ),
];

#[track_caller]
fn is_refused(tag: String, part: &str) {
    let source = GrammarSource::StructuralTag { tag, options: options() };
    let Err(message) = compile(&source) else { panic!("{source:?} was compiled") };
    assert!(message.contains(part), "{source:?}: {message}");
    assert!(message.len() < 400 && !message.starts_with("at "), "{message}");
}

#[test]
fn a_mistake_is_named_with_its_place() {
    for (field, value, part) in MISTAKES_OF_STRUCTURES {
        let mut tag = weather();
        tag[field] = serde_json::from_str(value).unwrap();
        is_refused(tag.to_string(), part);
    }
    for (format, part) in MISTAKES_OF_FORMATS {
        is_refused(format!("{{\"format\": {format}}}"), part);
    }
    is_refused("{".to_owned(), "the structural tag is not JSON");
    is_refused("[1]".to_owned(), "the structural tag must be an object, got [1]");
    is_refused("{\"triggers\": [\"a\"]}".to_owned(), "structures is missing");
    let deep = (0..24)
        .fold(json!({"type": "any_text"}), |inner, _| json!({"type": "or", "elements": [inner]}));
    is_refused(json!({"format": deep}).to_string(), "is nested more than 24 formats deep");
}

#[test]
fn hostile_tags_are_refused_or_run() {
    let structures: Vec<Value> = (0..3000)
        .map(|i| json!({"begin": format!("<{i}>"), "schema": {"type": "integer"}, "end": ">"}))
        .collect();
    let many = json!({"structures": structures, "triggers": ["<"]});
    let error = compile(&source(&many)).err().expect("it is refused");
    assert!(error.contains("rules and groups of the grammar must be at most"), "{error}");
    let some = json!({"structures": structures[..500], "triggers": ["<"]});
    check(&source(&some), &["<123>4>"], &["<4"], &["<a"]);
    let triggers: Vec<String> = (0..500).map(|i| format!("{}!", "a".repeat(i))).collect();
    let hidden = json!({"structures": [{"begin": triggers[0], "schema": {}, "end": ""}], "triggers": triggers});
    assert!(compile(&source(&hidden)).is_err());
    let long = json!({"type": "any_text", "excludes": ["ab".repeat(20_000)]});
    assert!(support::reads(&compile(&format(&long)).unwrap(), "abab"));
}

/// What is looked for is copied for each place where it is: squares of a megabyte would be terabytes.
#[test]
fn many_ends_and_triggers_are_refused_before_they_are_multiplied() {
    let numbers = |count: usize| -> Vec<String> { (0..count).map(|i| format!("{i:05}")).collect() };
    let part = "number of ends and triggers of free text times their bytes must be at most";
    let tag = |begin: &str, content: &Value, end: &Value| json!({"type": "tag", "begin": begin, "content": content, "end": end});
    let any = json!({"type": "any_text"});
    let text = json!({"type": "const_string", "value": "x"});
    let tags: Vec<Value> =
        numbers(9000).iter().map(|number| tag(number, &text, &json!("!"))).collect();
    let mut alternatives = vec![text.clone(); 15_000];
    alternatives.push(any.clone());
    for format in [
        json!({"type": "triggered_tags", "triggers": numbers(9000), "tags": tags}),
        tag("", &any, &json!(numbers(50_000))),
        tag("", &json!({"type": "or", "elements": vec![&any; 20_000]}), &json!(numbers(100))),
        tag("", &json!({"type": "or", "elements": alternatives}), &json!(numbers(400))),
    ] {
        let error = compile(&self::format(&format)).err().expect("it is refused");
        assert!(error.contains(part), "{error}");
    }
}
