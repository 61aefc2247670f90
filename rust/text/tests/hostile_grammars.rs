//! Grammars that are meant to hang or to crash a server. Each ends, and in an error where it must: a
//! compilation that exceeds its time is an error too, and masks have fuel.

use std::sync::OnceLock;
use std::time::Duration;

use pagedkv_text::{
    GrammarCompiler, GrammarError, GrammarLimits, GrammarSource, JsonOptions, Spelling, TokenTable,
};
use serde_json::{Map, Value, json};

const VOCAB_SIZE: usize = 256;

fn make_compiler(limits: GrammarLimits) -> GrammarCompiler {
    let bytes: Vec<String> = (0..=255u8).map(|byte| format!("<0x{byte:02X}>")).collect();
    let tokens = bytes.iter().map(|token| Some(token.as_str()));
    let spelling = Spelling::Fallback { replacements: vec![], has_byte_tokens: true, strip: None };
    let table = TokenTable::new(spelling, tokens, |_| false).unwrap();
    GrammarCompiler::new(&table, VOCAB_SIZE, limits).unwrap()
}

fn compiler() -> &'static GrammarCompiler {
    static COMPILER: OnceLock<GrammarCompiler> = OnceLock::new();
    COMPILER.get_or_init(|| make_compiler(GrammarLimits::default()))
}

/// Compiles and generates for a while, always the last token that is allowed. Returns the length.
fn run(source: &GrammarSource) -> Result<usize, GrammarError> {
    const MAX_TOKENS: usize = 200;
    let mut matcher = compiler().compile(source)?.matcher();
    let mut mask = vec![0_u32; VOCAB_SIZE.div_ceil(32)];
    for length in 0..MAX_TOKENS {
        matcher.fill_mask(&mut mask)?;
        let Some(word) = mask.iter().rposition(|word| *word != 0) else { return Ok(length) };
        matcher.push(word as u32 * 32 + 31 - mask[word].leading_zeros())?;
    }
    Ok(MAX_TOKENS)
}

fn schema(schema: &Value) -> GrammarSource {
    let options =
        JsonOptions { any_whitespace: true, whitespace_pattern: None, additional_properties: true };
    GrammarSource::JsonSchema { schema: schema.to_string(), options }
}

fn regex(pattern: &str) -> GrammarSource {
    GrammarSource::Regex(pattern.to_owned())
}

fn lark(text: &str) -> GrammarSource {
    GrammarSource::Grammar(text.to_owned())
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|i| format!("name {i}")).collect()
}

#[track_caller]
fn runs(name: &str, source: &GrammarSource) {
    let result = run(source);
    assert!(result.is_ok(), "{name}: {result:?}");
}

#[track_caller]
fn is_refused(name: &str, source: &GrammarSource, part: &str) {
    match run(source) {
        Err(GrammarError::Invalid(message)) => assert!(message.contains(part), "{name}: {message}"),
        other => panic!("{name}: {other:?}"),
    }
}

#[track_caller]
fn gets_stuck(name: &str, source: &GrammarSource) {
    let result = run(source);
    assert!(matches!(result, Err(GrammarError::Stuck(_))), "{name}: {result:?}");
}

#[test]
fn large_schemas_compile_or_run_into_a_limit() {
    runs("an enum of 20,000", &schema(&json!({"enum": names(20_000)})));
    runs("20,000 choices", &GrammarSource::Choice(names(20_000)));
    let properties: Map<String, Value> =
        names(2000).into_iter().map(|name| (name, json!({"type": "string"}))).collect();
    gets_stuck("2,000 properties", &schema(&json!({"type": "object", "properties": properties})));
    let options: Vec<Value> = names(2000)
        .into_iter()
        .map(|name| json!({"type": "object", "properties": {name: {"type": "integer"}}}))
        .collect();
    gets_stuck("2,000 objects in anyOf", &schema(&json!({"anyOf": options})));
    runs("maxLength", &schema(&json!({"type": "string", "maxLength": 1_000_000})));
    runs("minLength", &schema(&json!({"type": "string", "minLength": 1_000_000})));
    runs("minItems", &schema(&json!({"type": "array", "minItems": 100_000})));
    let factor = json!({"type": "integer", "multipleOf": 1_000_003, "minimum": 5});
    is_refused("multipleOf", &schema(&factor), "fuel exhausted");
}

#[test]
fn references_that_go_round_or_nowhere_end() {
    let refused = "can follow";
    is_refused("itself", &schema(&json!({"$ref": "#"})), refused);
    runs("a list of itself", &schema(&json!({"type": "array", "items": {"$ref": "#"}})));
    let a_and_b = |a: Value, b: Value| json!({"$ref": "#/$defs/a", "$defs": {"a": a, "b": b}});
    let mutual = a_and_b(json!({"$ref": "#/$defs/b"}), json!({"$ref": "#/$defs/a"}));
    is_refused("each other", &schema(&mutual), refused);
    let siblings = a_and_b(
        json!({"$ref": "#/$defs/b", "type": "object"}),
        json!({"$ref": "#/$defs/a", "type": "object"}),
    );
    is_refused("each other, with siblings", &schema(&siblings), "circular references");
    let itself = json!({"allOf": [{"$ref": "#"}, {"type": "object"}]});
    is_refused("itself in allOf", &schema(&itself), "circular references");
}

/// Definitions that refer to one another in a row, each this deep inside the one before.
fn chain(count: usize, depth: usize) -> Value {
    let mut definitions = Map::new();
    for i in 0..count {
        let mut definition = json!({"$ref": format!("#/$defs/d{}", i + 1)});
        for _ in 0..depth {
            definition = json!({"type": "array", "items": definition});
        }
        definitions.insert(format!("d{i}"), definition);
    }
    definitions.insert(format!("d{count}"), json!({"type": "integer"}));
    json!({"$ref": "#/$defs/d0", "$defs": definitions})
}

#[test]
fn what_recursion_there_is_fits_the_stack() {
    runs("a long chain of references", &schema(&chain(2000, 0)));
    runs("a deep chain of references", &schema(&chain(120, 60)));
    let result = run(&schema(&chain(4000, 0)));
    assert!(matches!(result, Err(GrammarError::TooLarge { .. })), "{result:?}");
    for (name, upper) in [("rules", false), ("terminals", true)] {
        let rule = if upper { "R" } else { "r" };
        let rules = (0..4000).map(|i| format!("{rule}{i}: \"a\" {rule}{}\n", i + 1));
        let text = format!("start: {rule}0\n{}{rule}4000: \"b\"\n", rules.collect::<String>());
        runs(name, &lark(&text));
    }
    let nested = format!("start: {}\"a\"{}", "(".repeat(60), ")".repeat(60));
    is_refused("groups", &lark(&nested), "too deeply nested");
    let nested = format!("{}a{}", "(".repeat(240), ")*".repeat(240));
    is_refused("groups of a regex", &regex(&nested), "maximum number of nested");
    runs("a long literal", &regex(&"ab".repeat(16_000)));
}

#[test]
fn what_nothing_satisfies_is_refused() {
    let nothing = json!({"type": "object", "required": ["a"], "properties": {"a": false}});
    is_refused("a required property", &schema(&nothing), "Unsatisfiable");
    let nothing = json!({"allOf": [{"type": "string"}, {"type": "integer"}]});
    is_refused("two types at once", &schema(&nothing), "Unsatisfiable");
    is_refused("an empty class", &regex(r"[^\s\S]"), "can follow");
    let overlapping = json!({"oneOf": [{"type": "number"}, {"type": "integer"}]});
    is_refused("an overlapping oneOf", &schema(&overlapping), "use anyOf");
    let overlapping = json!({"type": "object", "patternProperties": {"a*": {}, "a": {}}});
    is_refused("overlapping patterns", &schema(&overlapping), "not disjoint");
    is_refused("recursion without a start", &lark("start: start"), "can follow");
    is_refused("a circle of terminals", &lark("start: A\nA: B\nB: A"), "circular reference");
}

#[test]
fn regexes_that_blow_up_automata_run_or_run_into_a_limit() {
    for pattern in [
        "(a+)+$",
        "(a*)*b",
        "((a{1,100}){1,100}){1,100}b",
        "a{1,10000000}",
        "(a|b)*a(a|b){200}c",
        r"(\w|\p{L}){1,500}\d(\w|\p{N}){1,500}",
    ] {
        runs(pattern, &regex(pattern));
    }
    gets_stuck("counted twice", &regex("(a{1,1000}){1,1000}"));
    runs("pattern", &schema(&json!({"type": "string", "pattern": "(a+)+$"})));
}

#[test]
fn ambiguous_and_endless_grammars_run_or_run_into_a_limit() {
    runs("left recursion", &lark("start: start \"a\" | \"b\""));
    runs("no end", &lark("start: \"a\" start"));
    runs("ambiguity", &lark("start: start start | \"a\""));
    runs("ambiguity of nothing", &lark("start: start start start | \"a\" | \"\""));
    runs("a count", &lark("start: \"a\"{1,100000}"));
    gets_stuck("nested counts", &lark("start: ((\"a\"{1,1000}){1,1000}){1,1000}"));
}

#[test]
fn a_compilation_that_takes_too_long_is_given_up_and_the_next_one_waits_for_it() {
    let limits = GrammarLimits { compile_time: Duration::ZERO, num_compilations: 1 };
    let impatient = make_compiler(limits);
    for source in [schema(&json!({"enum": names(40_000)})), regex("a")] {
        let error = impatient.compile(&source).err();
        assert_eq!(error, Some(GrammarError::TooSlow { seconds: 0 }), "{source:?}");
    }
}
