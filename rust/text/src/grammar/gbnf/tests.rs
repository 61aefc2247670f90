//! What GBNF is read as, and what is wrong with what is refused.

use super::*;

fn text(text: &str) -> Expression {
    Expression::Text(text.to_owned())
}

fn class(ranges: &[(char, char)], is_negated: bool) -> Expression {
    Expression::Class(Class { ranges: ranges.to_vec(), is_negated })
}

/// What `root` is.
fn root(text: &str) -> Expression {
    let rules = to_rules(text).unwrap();
    rules.rules[rules.start].clone()
}

#[test]
fn literals_and_classes_take_escapes() {
    let literal = r#"root ::= "\n\r\t\"\\\x41\u00e9\U0001F98A[" # "comment"#;
    assert_eq!(root(literal), text("\n\r\t\"\\Aé🦊["));
    let ranges = [('a', 'f'), (']', ']'), ('\\', '\\'), ('é', '\u{ff}'), ('-', '-')];
    assert_eq!(root(r"root ::= [a-f\]\\\xe9-\u00FF-]"), class(&ranges, false));
    assert_eq!(root("root ::= [^\\n#\"]"), class(&[('\n', '\n'), ('#', '#'), ('"', '"')], true));
    assert_eq!(root("root ::= ."), class(&[], true));
    assert_eq!(root("root ::= [^]"), class(&[], true));
}

#[test]
fn repetitions_belong_to_the_element_before_them() {
    let a = || text("a");
    for (counts, min, max) in [
        ("*", 0, None),
        ("+", 1, None),
        ("?", 0, Some(1)),
        ("{3}", 3, Some(3)),
        ("{ 2 , }", 2, None),
        ("{,4}", 0, Some(4)),
        ("{0,0}", 0, Some(0)),
    ] {
        let expected = Expression::Sequence(vec![text("b"), a().repeated(min, max)]);
        assert_eq!(root(&format!("root ::= \"b\" \"a\" {counts}")), expected, "{counts}");
    }
    let twice = a().repeated(0, Some(1)).repeated(2, Some(5));
    assert_eq!(root("root ::= \"a\"?{2,5}"), twice);
    let pair = Expression::Either(vec![a(), text("b")]);
    assert_eq!(root("root ::= (\"a\" | \"b\")+"), pair.repeated(1, None));
}

#[test]
fn rules_go_on_behind_a_bar_and_inside_parentheses() {
    let grammar = "# a comment\r\n\nroot ::=\n  \"a\" | # one\n  \"b\"\n  | (\n\"c\"\n\"d\" )\n\n\
                   my-Rule_2 ::= | root \"x\"\n";
    let rules = to_rules(grammar).unwrap();
    let pair = Expression::Sequence(vec![text("c"), text("d")]);
    assert_eq!(rules.rules[rules.start], Expression::Either(vec![text("a"), text("b"), pair]));
    let recursive = Expression::Sequence(vec![Expression::Rule(rules.start), text("x")]);
    assert_eq!(rules.rules[1], Expression::Either(vec![text(""), recursive]));
}

#[test]
fn a_mistake_is_named_with_its_line() {
    for (grammar, message) in [
        ("a ::= \"b\"", "the grammar defines no rule root, which is where it starts"),
        ("", "the grammar defines no rule root, which is where it starts"),
        ("root ::= a\n", "line 1 of the grammar: rule a is defined nowhere"),
        ("root ::= (\n\"a\" b\n)", "line 2 of the grammar: rule b is defined nowhere"),
        (
            "root ::= \"a\"\n#\nroot ::= \"b\"",
            "line 3 of the grammar: rule root is defined in line 1 already",
        ),
        (
            "root ::= \"a\n\"",
            "line 1 of the grammar: expected '\"' that closes the literal, got the end of the line",
        ),
        (
            "root ::= [a",
            "line 1 of the grammar: expected ']' that closes the class, got the end of the grammar",
        ),
        ("root ::= []", "line 1 of the grammar: the class [] has no characters"),
        ("root ::= [z-a]", "line 1 of the grammar: the range 'z' to 'a' goes backwards"),
        (
            "root ::= (\"a\"\n\"b\"",
            "line 2 of the grammar: expected ')' for the parenthesis of line 1, got the end of the grammar",
        ),
        (
            "root ::= \"a\" )",
            "line 1 of the grammar: expected a part of the rule or the end of its line, got ')'",
        ),
        (
            "root ::= * \"a\"",
            "line 1 of the grammar: expected a part of the rule or the end of its line, got '*'",
        ),
        ("root := \"a\"", "line 1 of the grammar: expected '::=' after the name root, got '='"),
        ("root ::= \"a\"{3,2}", "line 1 of the grammar: {3,2} counts from more to less"),
        (
            "root ::= \"a\"{99999}",
            "line 1 of the grammar: a count must be at most 65536, got 99999",
        ),
        ("root ::= \"a\"{x}", "line 1 of the grammar: expected a number, got 'x'"),
        ("root ::= \"\\ud800\"", "line 1 of the grammar: \\ud800 is no character of Unicode"),
        (
            "root ::= \"\\x4\"",
            "line 1 of the grammar: expected 2 hexadecimal digits after \\x, got '\"'",
        ),
        (
            "root ::= <think> .",
            "line 1 of the grammar: expected text; tokens cannot be named, got '<'",
        ),
        (
            "root ::= \"a\" | b\nb ::= \"c\" b",
            "line 2 of the grammar: rule b has no end; add a choice that does not lead to itself",
        ),
        ("\n= ::= \"a\"", "line 2 of the grammar: expected the name of a rule, got '='"),
    ] {
        let error = to_rules(grammar).unwrap_err();
        assert_eq!(error.to_string(), message, "{grammar}");
    }
    let message = to_rules("root ::= \"\\q\"").unwrap_err().to_string();
    assert!(message.starts_with("line 1 of the grammar: \\q is no escape; there are \\n"));
}

#[test]
fn what_is_too_deep_or_too_much_is_refused() {
    let rules: Vec<String> = (0..5000).map(|i| format!("r{i} ::= \"a\"")).collect();
    for (grammar, what) in [
        (format!("root ::= {}\"a\"", "(".repeat(65)), "nesting of the grammar"),
        (format!("root ::= \"a\"{}", "*".repeat(5)), "operators of one element"),
        (format!("root ::= \"a\"{}", "{1}".repeat(5)), "operators of one element"),
        (format!("root ::= \"{}\"", "a".repeat(1 << 18)), "bytes of the grammar"),
        (rules.join("\n"), "rules"),
    ] {
        let message = to_rules(&grammar).unwrap_err().to_string();
        assert!(message.starts_with(what), "{message}");
    }
}
