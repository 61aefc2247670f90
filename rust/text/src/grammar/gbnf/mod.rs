//! GBNF, the notation of llama.cpp's grammars; that of xgrammar is of the same family.

mod characters;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use super::expression::{Class, Expression, Rules};
use super::{GrammarError, check};

const MAX_BYTES: usize = 1 << 18;
const MAX_NESTING: usize = 64;
/// Repetitions of one element, which nest too.
const MAX_OPERATORS: usize = 4;
const MAX_RULES: usize = 4096;
/// The rule that the whole text follows.
const START: &str = "root";

/// Reads a grammar.
pub(super) fn to_rules(text: &str) -> Result<Rules, GrammarError> {
    check("bytes of the grammar", text.len(), MAX_BYTES)?;
    let mut parser = Parser {
        rest: text.chars().collect(),
        position: 0,
        line: 1,
        nesting: 0,
        names: Names::default(),
    };
    parser.skip_lines();
    while parser.peek().is_some() {
        parser.rule()?;
        parser.skip_lines();
    }
    parser.names.finish()
}

/// Rules by name.
#[derive(Default)]
struct Names {
    numbers: HashMap<String, usize>,
    rules: Vec<NamedRule>,
}

struct NamedRule {
    name: String,
    /// Where it was first seen.
    line: usize,
    /// Where it is defined, and as what.
    definition: Option<(usize, Expression)>,
}

impl Names {
    fn number(&mut self, name: String, line: usize) -> usize {
        if let Some(number) = self.numbers.get(&name) {
            return *number;
        }
        self.numbers.insert(name.clone(), self.rules.len());
        self.rules.push(NamedRule { name, line, definition: None });
        self.rules.len() - 1
    }

    fn finish(self) -> Result<Rules, GrammarError> {
        check("rules of the grammar", self.rules.len(), MAX_RULES)?;
        let is_defined = |name: &str| {
            self.numbers.get(name).filter(|number| self.rules[**number].definition.is_some())
        };
        let Some(&start) = is_defined(START) else {
            let message = "the grammar defines no rule root, which is where it starts";
            return Err(GrammarError::invalid(message));
        };
        let mut places = Vec::with_capacity(self.rules.len());
        let mut rules = Rules { rules: Vec::with_capacity(self.rules.len()), start };
        for NamedRule { name, line, definition } in self.rules {
            let Some((defined, expression)) = definition else {
                return invalid(line, &format!("rule {name} is defined nowhere"));
            };
            rules.rules.push(expression.flattened());
            places.push((defined, name));
        }
        if let Some(endless) = rules.endless() {
            let (line, name) = &places[endless];
            let problem =
                format!("rule {name} has no end; add a choice that does not lead to itself");
            return invalid(*line, &problem);
        }
        Ok(rules)
    }
}

struct Parser {
    rest: Vec<char>,
    position: usize,
    line: usize,
    /// Parentheses around the place.
    nesting: usize,
    names: Names,
}

impl Parser {
    /// Skips what may stand between the parts of a rule: inside of parentheses, lines may end.
    fn skip_between(&mut self) {
        if self.nesting > 0 { self.skip_lines() } else { self.skip_spaces() }
    }

    fn rule(&mut self) -> Result<(), GrammarError> {
        let line = self.line;
        let name = self.name()?;
        self.skip_spaces();
        for expected in "::=".chars() {
            if !self.take(expected) {
                return self.unexpected(&format!("'::=' after the name {name}"));
            }
        }
        self.skip_lines();
        let expression = self.choice()?;
        self.skip_spaces();
        if !matches!(self.peek(), None | Some('\n')) {
            return self.unexpected("a part of the rule or the end of its line");
        }
        let number = self.names.number(name, line);
        let NamedRule { name, definition, .. } = &mut self.names.rules[number];
        if let Some((first, _)) = definition {
            let problem = format!("rule {name} is defined in line {first} already");
            return invalid(line, &problem);
        }
        *definition = Some((line, expression));
        Ok(())
    }

    fn name(&mut self) -> Result<String, GrammarError> {
        let mut name = String::new();
        while let Some(next) = self.peek().filter(|next| is_of_name(*next)) {
            name.push(next);
            self.next();
        }
        if name.is_empty() { self.unexpected("the name of a rule") } else { Ok(name) }
    }

    fn choice(&mut self) -> Result<Expression, GrammarError> {
        let mut elements = vec![self.sequence()?];
        while self.continues_with('|') {
            self.skip_lines();
            elements.push(self.sequence()?);
        }
        Ok(Expression::Either(elements))
    }

    /// Takes a bar, which may also stand at the beginning of a later line.
    fn continues_with(&mut self, bar: char) -> bool {
        let place = (self.position, self.line);
        self.skip_lines();
        let is_next = self.take(bar);
        if !is_next {
            (self.position, self.line) = place;
        }
        is_next
    }

    fn sequence(&mut self) -> Result<Expression, GrammarError> {
        let mut elements = Vec::new();
        loop {
            self.skip_between();
            let Some(next) = self.peek() else { break };
            let element = match next {
                '"' => self.literal()?,
                '[' => self.class()?,
                '(' => self.group()?,
                '.' => {
                    self.next();
                    Expression::Class(Class { ranges: Vec::new(), is_negated: true })
                }
                '<' | '!' => return self.unexpected("text; tokens cannot be named"),
                _ if is_of_name(next) => {
                    let (line, name) = (self.line, self.name()?);
                    Expression::Rule(self.names.number(name, line))
                }
                _ => break,
            };
            elements.push(self.repeated(element)?);
        }
        Ok(Expression::Sequence(elements))
    }

    fn group(&mut self) -> Result<Expression, GrammarError> {
        let line = self.line;
        self.next();
        self.nesting += 1;
        check("nesting of the grammar", self.nesting, MAX_NESTING)?;
        self.skip_lines();
        let choice = self.choice()?;
        self.skip_lines();
        if !self.take(')') {
            return self.unexpected(&format!("')' for the parenthesis of line {line}"));
        }
        self.nesting -= 1;
        Ok(choice)
    }

    /// The element with what says how often it may stand there.
    fn repeated(&mut self, mut element: Expression) -> Result<Expression, GrammarError> {
        for num_operators in 0.. {
            check("operators of one element", num_operators, MAX_OPERATORS)?;
            self.skip_between();
            let (min, max) = match self.peek() {
                Some('*') => (0, None),
                Some('+') => (1, None),
                Some('?') => (0, Some(1)),
                Some('{') => self.counts()?,
                _ => break,
            };
            // Counts end before their brace, which is taken like the other operators.
            self.next();
            element = element.repeated(min, max);
        }
        Ok(element)
    }

    /// Counts in braces, up to the closing one.
    fn counts(&mut self) -> Result<(u32, Option<u32>), GrammarError> {
        self.next();
        self.skip_between();
        let min = if self.peek() == Some(',') { 0 } else { self.number()? };
        self.skip_between();
        let mut max = Some(min);
        if self.take(',') {
            self.skip_between();
            max = if self.peek() == Some('}') { None } else { Some(self.number()?) };
            self.skip_between();
        }
        if self.peek() != Some('}') {
            return self.unexpected("'}' after the counts");
        }
        if let Some(max) = max.filter(|max| *max < min) {
            return invalid(self.line, &format!("{{{min},{max}}} counts from more to less"));
        }
        Ok((min, max))
    }

    fn literal(&mut self) -> Result<Expression, GrammarError> {
        self.next();
        let mut text = String::new();
        loop {
            match self.character('"', "the literal")? {
                None => return Ok(Expression::Text(text)),
                Some(character) => text.push(character),
            }
        }
    }

    fn class(&mut self) -> Result<Expression, GrammarError> {
        self.next();
        let is_negated = self.take('^');
        let mut ranges = Vec::new();
        while let Some(first) = self.character(']', "the class")? {
            let is_range =
                self.peek() == Some('-') && self.rest.get(self.position + 1) != Some(&']');
            if !is_range {
                ranges.push((first, first));
                continue;
            }
            self.next();
            let Some(last) = self.character(']', "the class")? else {
                return self.unexpected("the end of the range");
            };
            if last < first {
                let problem = format!("the range {first:?} to {last:?} goes backwards");
                return invalid(self.line, &problem);
            }
            ranges.push((first, last));
        }
        if ranges.is_empty() && !is_negated {
            return invalid(self.line, "the class [] has no characters");
        }
        Ok(Expression::Class(Class { ranges, is_negated }))
    }
}

fn is_of_name(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '-' || character == '_'
}

fn invalid<T>(line: usize, problem: &str) -> Result<T, GrammarError> {
    Err(GrammarError::Invalid(format!("line {line} of the grammar: {problem}")))
}
