//! Writes a grammar as Lark. Every part has a definition of its own, so that nothing nests.

use std::collections::HashMap;
use std::fmt::Write;

use llguidance::api::TopLevelGrammar;
use llguidance::regex_to_lark;

use super::automaton::Fuel;
use super::expression::{Class, Expression, FreeText, Rules};
use super::layout::{Layout, Node};
use super::{GrammarError, check, distinct, exact};

/// Definitions are compiled inside one another, so that their number bounds the stack.
const MAX_DEFINITIONS: usize = 4096;
/// Characters of alternatives that are compared.
const MAX_SPELLED: usize = 1 << 20;

pub(super) fn to_grammar(rules: &Rules) -> Result<TopLevelGrammar, GrammarError> {
    Ok(TopLevelGrammar::from_lark(to_lark(rules)?))
}

fn to_lark(rules: &Rules) -> Result<String, GrammarError> {
    let mut layout = Layout::new(rules);
    exact::divide(&mut layout, rules);
    let mut writer = Writer {
        rules,
        lark: format!("start: r{}\n", rules.start),
        num_definitions: 0,
        names: HashMap::new(),
        fuel: Fuel(MAX_SPELLED),
    };
    for (i, is_regular) in rules.regular().into_iter().enumerate() {
        if is_regular {
            let body = writer.lexeme(&rules.rules[i])?;
            writer.define(&format!("R{i}"), &body)?;
        }
    }
    for (i, lexeme) in layout.lexemes.iter().enumerate() {
        let body = writer.lexeme(lexeme)?;
        writer.define(&format!("L{i}"), &body)?;
    }
    for (i, node) in layout.rules.iter().enumerate() {
        if let Some(node) = node {
            let body = writer.node(node)?;
            writer.define(&format!("r{i}"), &body)?;
        }
    }
    Ok(writer.lark)
}

struct Writer<'a> {
    rules: &'a Rules,
    lark: String,
    num_definitions: usize,
    /// Names of the parts that have no other, by what they are.
    names: HashMap<String, String>,
    /// What is left for telling alternatives apart.
    fuel: Fuel,
}

impl Writer<'_> {
    fn define(&mut self, name: &str, body: &str) -> Result<(), GrammarError> {
        self.num_definitions += 1;
        check("rules and groups of the grammar", self.num_definitions, MAX_DEFINITIONS)?;
        writeln!(self.lark, "{name}: {body}").expect("strings can be written to");
        Ok(())
    }

    /// The name of a part; `kind` is "T" in a lexeme and "p" in a rule.
    fn named(&mut self, kind: &str, body: String) -> Result<String, GrammarError> {
        if let Some(name) = self.names.get(&body) {
            return Ok(name.clone());
        }
        let name = format!("{kind}{}", self.names.len());
        self.define(&name, &body)?;
        self.names.insert(body, name.clone());
        Ok(name)
    }

    /// The body of a lexeme's definition.
    fn lexeme(&mut self, expression: &Expression) -> Result<String, GrammarError> {
        match expression {
            Expression::Text(text) => Ok(quoted(text)),
            Expression::Class(class) => Ok(class_regex(class)),
            Expression::Pattern(pattern) => Ok(format!("/{}/", regex_to_lark(pattern, ""))),
            Expression::Free(free) => Ok(free_text(free)),
            Expression::Rule(rule) => Ok(format!("R{rule}")),
            Expression::Sequence(elements) => Ok(self.lexeme_parts(elements)?.join(" ")),
            Expression::Either(elements) => {
                let alternatives = distinct::alternatives(elements, self.rules, &mut self.fuel);
                Ok(self.lexeme_parts(alternatives.as_ref().unwrap_or(elements))?.join(" | "))
            }
            Expression::Repeat { what, min, max } => {
                Ok(repeated(self.lexeme_part(what)?, *min, *max))
            }
            Expression::Json(_) => unreachable!("a schema is no lexeme"),
        }
    }

    fn lexeme_parts(&mut self, elements: &[Expression]) -> Result<Vec<String>, GrammarError> {
        elements.iter().map(|element| self.lexeme_part(element)).collect()
    }

    fn lexeme_part(&mut self, expression: &Expression) -> Result<String, GrammarError> {
        let body = self.lexeme(expression)?;
        match expression {
            Expression::Sequence(_)
            | Expression::Either(_)
            | Expression::Repeat { .. }
            | Expression::Free(_) => self.named("T", body),
            _ => Ok(body),
        }
    }

    /// The body of a rule's definition.
    fn node(&mut self, node: &Node) -> Result<String, GrammarError> {
        match node {
            Node::Lexeme(lexeme) => Ok(format!("L{lexeme}")),
            Node::Rule(rule) => Ok(format!("r{rule}")),
            Node::Json(schema) => Ok(format!("%json {schema}")),
            Node::Sequence(nodes) => Ok(self.node_parts(nodes)?.join(" ")),
            Node::Either(nodes) => Ok(self.node_parts(nodes)?.join(" | ")),
            Node::Repeat { what, min, max } => Ok(repeated(self.node_part(what)?, *min, *max)),
        }
    }

    fn node_parts(&mut self, nodes: &[Node]) -> Result<Vec<String>, GrammarError> {
        nodes.iter().map(|node| self.node_part(node)).collect()
    }

    fn node_part(&mut self, node: &Node) -> Result<String, GrammarError> {
        let body = self.node(node)?;
        match node {
            Node::Lexeme(_) | Node::Rule(_) => Ok(body),
            _ => self.named("p", body),
        }
    }
}

fn repeated(part: String, min: u32, max: Option<u32>) -> String {
    match (min, max) {
        (_, Some(0)) => quoted(""),
        (1, Some(1)) => part,
        (0, Some(1)) => format!("{part}?"),
        (0, None) => format!("{part}*"),
        (1, None) => format!("{part}+"),
        (_, None) => format!("{part}{{{min},}}"),
        (_, Some(max)) => format!("{part}{{{min},{max}}}"),
    }
}

/// A string of Lark.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

fn class_regex(class: &Class) -> String {
    if class.ranges.is_empty() && class.is_negated {
        return "/(?s:.)/".to_owned();
    }
    let mut regex = String::from(if class.is_negated { "/[^" } else { "/[" });
    for (first, last) in &class.ranges {
        write!(regex, "\\u{{{:x}}}-\\u{{{:x}}}", u32::from(*first), u32::from(*last))
            .expect("strings can be written to");
    }
    regex + "]/"
}

/// The texts whose first complete stop is at the end, if they are to end in one, and in which nothing excluded is.
fn free_text(free: &FreeText) -> String {
    let FreeText { stops, excludes, ending } = free;
    let mut parts = Vec::new();
    let (start, after) = match ending {
        Some(ending) => (format!("/(?s:.)*{}/", escaped(ending)), "+"),
        None => ("/(?s:.)*/".to_owned(), "*"),
    };
    parts.push(start);
    for (texts, after) in [(stops, after), (excludes, "*")] {
        if !texts.is_empty() {
            let any: Vec<String> = texts.iter().map(|text| escaped(text)).collect();
            parts.push(format!("~/(?s:.)*({})(?s:.){after}/", any.join("|")));
        }
    }
    parts.join(" & ")
}

/// The regular expression, between slashes, that matches a text and nothing else.
fn escaped(text: &str) -> String {
    let mut regex = String::with_capacity(text.len() * 6);
    for character in text.chars() {
        write!(regex, "\\u{{{:x}}}", u32::from(character)).expect("strings can be written to");
    }
    regex
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Expression {
        Expression::Text(text.to_owned())
    }

    fn lark(rules: Vec<Expression>) -> String {
        to_lark(&Rules { rules, start: 0 }).unwrap()
    }

    #[test]
    fn parts_have_names_and_equal_parts_the_same() {
        let pair = Expression::Either(vec![text("a"), text("b")]);
        let twice = Expression::Sequence(vec![pair.clone().repeated(2, Some(5)), pair]);
        let expected = "start: r0\nT0: \"a\" | \"b\"\nT1: T0{2,5}\nR0: T1 T0\nL0: T1 T0\nr0: L0\n";
        assert_eq!(lark(vec![twice]), expected);
    }

    #[test]
    fn a_rule_that_leads_to_itself_is_a_rule_of_lark() {
        let inner = Expression::Sequence(vec![text("("), Expression::Rule(0), text(")")]);
        let lark = lark(vec![Expression::Either(vec![inner, text("x")])]);
        assert!(
            lark.ends_with("L0: \"(\"\nL1: \")\"\nL2: \"x\"\np0: L0 r0 L1\nr0: p0 | L2\n"),
            "{lark}"
        );
    }

    #[test]
    fn characters_with_a_meaning_are_escaped() {
        assert_eq!(quoted("\"\\/\n\u{1}\u{7f}é"), r#""\"\\/\n\u0001\u007fé""#);
        let class = |is_negated| Class { ranges: vec![('/', ']'), ('é', 'é')], is_negated };
        assert_eq!(class_regex(&class(false)), r"/[\u{2f}-\u{5d}\u{e9}-\u{e9}]/");
        assert_eq!(class_regex(&class(true)), r"/[^\u{2f}-\u{5d}\u{e9}-\u{e9}]/");
    }

    #[test]
    fn alternatives_that_are_spelled_alike_are_written_once() {
        let row = Expression::Sequence(vec![text("a"), text("b")]);
        let any = Expression::Either(vec![text("ab"), row, text("c")]);
        assert_eq!(lark(vec![any]), "start: r0\nR0: \"ab\" | \"c\"\nL0: \"ab\" | \"c\"\nr0: L0\n");
    }

    #[test]
    fn more_definitions_than_the_stack_has_room_for_are_refused() {
        let nested = (0..5000).map(|i| text(&i.to_string()).repeated(2, None)).collect();
        let error = to_lark(&Rules { rules: vec![Expression::Sequence(nested)], start: 0 });
        let Err(GrammarError::TooLarge { got, .. }) = error else { panic!("{error:?}") };
        assert_eq!(got, MAX_DEFINITIONS + 1);
    }
}
