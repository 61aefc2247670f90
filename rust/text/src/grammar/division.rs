//! Lexemes are replaced by their parts.

use super::automaton::Fuel;
use super::expression::{Expression, Rules};
use super::free_states::FreeStates;
use super::layout::{Layout, Node};
use super::pattern;

impl Layout {
    /// Whether it has parts that may be lexemes.
    pub(super) fn is_divisible(&self, lexeme: usize) -> bool {
        match self.lexemes.get(lexeme) {
            Some(Expression::Text(text)) => text.chars().nth(1).is_some(),
            Some(
                Expression::Sequence(_)
                | Expression::Either(_)
                | Expression::Repeat { .. }
                | Expression::Free(_)
                | Expression::Pattern(_)
                | Expression::Rule(_),
            ) => true,
            Some(Expression::Class(_) | Expression::Json(_)) | None => false,
        }
    }

    /// Replaces lexemes by their parts.
    pub(super) fn divide(&mut self, lexemes: &[usize], rules: &Rules) {
        let mut parts: Vec<Option<Node>> = vec![None; self.lexemes.len()];
        for lexeme in lexemes {
            parts[*lexeme] = Some(self.parts(self.lexemes[*lexeme].clone(), rules));
        }
        for rule in self.rules.iter_mut().flatten() {
            rule.replace_lexemes(&mut |lexeme| parts.get_mut(lexeme).and_then(Option::take));
        }
        self.renumber();
    }

    fn parts(&mut self, expression: Expression, rules: &Rules) -> Node {
        let mut all = |elements: Vec<Expression>| -> Vec<Node> {
            elements.into_iter().map(|element| self.lexeme(element)).collect()
        };
        match expression {
            Expression::Text(text) => {
                let characters = text.chars().map(|character| Expression::Text(character.into()));
                Node::Sequence(all(characters.collect()))
            }
            Expression::Sequence(elements) => Node::Sequence(all(elements)),
            Expression::Either(elements) => Node::Either(all(elements)),
            Expression::Repeat { what, min, max } => {
                Node::Repeat { what: Box::new(self.lexeme(*what)), min, max }
            }
            Expression::Rule(rule) => {
                if self.rules[rule].is_none() {
                    self.rules[rule] = Some(self.lexeme(rules.rules[rule].clone()));
                }
                Node::Rule(rule)
            }
            Expression::Free(free) => match free.states(&mut Fuel(usize::MAX)) {
                Some(states) => self.free_text(&states),
                None => self.lexeme(Expression::Free(free)),
            },
            Expression::Pattern(pattern) => match pattern::to_expression(&pattern) {
                Some(expression) => self.parts(expression, rules),
                None => self.lexeme(Expression::Pattern(pattern)),
            },
            other => self.lexeme(other),
        }
    }

    /// Free text character by character: of each state, the texts that lead to it. They are longer at their end, as
    /// a parser of Earley's kind keeps few of such rules in mind.
    fn free_text(&mut self, states: &FreeStates) -> Node {
        let first = self.rules.len();
        let mut leading = vec![Vec::new(); states.next.len()];
        leading[0].push(self.lexeme(Expression::Text(String::new())));
        for (state, next) in states.next.iter().enumerate() {
            for (class, target) in next {
                let character = self.lexeme(Expression::Class(class.clone()));
                leading[*target].push(Node::Sequence(vec![Node::Rule(first + state), character]));
            }
        }
        self.rules.extend(leading.into_iter().map(|any| Some(Node::Either(any))));
        let ends = (0..states.is_end.len()).filter(|state| states.is_end[*state]);
        Node::Either(ends.map(|state| Node::Rule(first + state)).collect())
    }

    /// Leaves out the lexemes that were divided.
    fn renumber(&mut self) {
        let old = std::mem::take(&mut self.lexemes);
        let mut new = Vec::with_capacity(old.len());
        for rule in self.rules.iter_mut().flatten() {
            rule.replace_lexemes(&mut |lexeme| {
                new.push(old[lexeme].clone());
                Some(Node::Lexeme(new.len() - 1))
            });
        }
        self.lexemes = new;
    }
}

impl Node {
    /// Puts what `replacement` returns, if it does, into the places of lexemes.
    fn replace_lexemes(&mut self, replacement: &mut impl FnMut(usize) -> Option<Self>) {
        match self {
            Self::Lexeme(lexeme) => {
                if let Some(node) = replacement(*lexeme) {
                    *self = node;
                }
            }
            Self::Sequence(nodes) | Self::Either(nodes) => {
                for node in nodes {
                    node.replace_lexemes(replacement);
                }
            }
            Self::Repeat { what, .. } => what.replace_lexemes(replacement),
            Self::Rule(_) | Self::Json(_) => {}
        }
    }
}
