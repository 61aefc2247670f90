//! Which parts of a grammar become lexemes, which llguidance matches by automata, and which become rules.
//!
//! A lexeme takes as many characters as it can, and never gives one back. Larger lexemes are faster, and inside of
//! one nothing is lost; so whatever is regular is put together, and then divided where that loses a text.

use super::expression::{Expression, Rules};

/// A grammar over lexemes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Regular expressions; the rules they name are regular too.
    pub(super) lexemes: Vec<Expression>,
    /// What each rule is over lexemes; none for one that only lexemes name.
    pub(super) rules: Vec<Option<Node>>,
}

/// A part of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Node {
    /// One of [`Layout::lexemes`].
    Lexeme(usize),
    /// A rule that is not regular.
    Rule(usize),
    /// JSON of a schema.
    Json(String),
    /// One after the other.
    Sequence(Vec<Self>),
    /// One of them.
    Either(Vec<Self>),
    /// The same several times.
    Repeat {
        /// What is repeated.
        what: Box<Self>,
        /// How often at least.
        min: u32,
        /// How often at most.
        max: Option<u32>,
    },
}

impl Layout {
    /// Puts together what is regular. The start rule is one of the layout in any case.
    pub(super) fn new(rules: &Rules) -> Self {
        let is_regular = rules.regular();
        let mut layout = Self { lexemes: Vec::new(), rules: vec![None; rules.rules.len()] };
        for (i, rule) in rules.rules.iter().enumerate() {
            if !is_regular[i] || i == rules.start {
                layout.rules[i] = Some(layout.node(rule, &is_regular));
            }
        }
        layout
    }

    fn node(&mut self, expression: &Expression, is_regular: &[bool]) -> Node {
        if is_lexeme(expression, is_regular) {
            return self.lexeme(expression.clone());
        }
        match expression {
            Expression::Rule(rule) => Node::Rule(*rule),
            Expression::Json(schema) => Node::Json(schema.clone()),
            Expression::Repeat { what, min, max } => {
                let what = Box::new(self.node(what, is_regular));
                Node::Repeat { what, min: *min, max: *max }
            }
            Expression::Either(elements) => {
                let (regular, others): (Vec<_>, Vec<_>) =
                    elements.iter().partition(|element| is_lexeme(element, is_regular));
                let mut nodes: Vec<Node> =
                    others.into_iter().map(|other| self.node(other, is_regular)).collect();
                if !regular.is_empty() {
                    let regular = regular.into_iter().cloned().collect();
                    nodes.push(self.lexeme(Expression::Either(regular)));
                }
                Node::Either(nodes)
            }
            Expression::Sequence(elements) => {
                let mut nodes = Vec::new();
                for run in
                    elements.chunk_by(|a, b| is_lexeme(a, is_regular) && is_lexeme(b, is_regular))
                {
                    if is_lexeme(&run[0], is_regular) {
                        nodes.push(self.lexeme(Expression::Sequence(run.to_vec())));
                    } else {
                        nodes.extend(run.iter().map(|element| self.node(element, is_regular)));
                    }
                }
                Node::Sequence(nodes)
            }
            Expression::Text(_)
            | Expression::Class(_)
            | Expression::Pattern(_)
            | Expression::Free(_) => unreachable!("these are lexemes"),
        }
    }

    /// A lexeme of its own.
    pub(super) fn lexeme(&mut self, expression: Expression) -> Node {
        self.lexemes.push(expression.flattened());
        Node::Lexeme(self.lexemes.len() - 1)
    }
}

fn is_lexeme(expression: &Expression, is_regular: &[bool]) -> bool {
    let mut is_lexeme = true;
    expression.visit_leaves(&mut |leaf| {
        is_lexeme &= matches!(leaf, super::expression::Leaf::Rule(rule) if is_regular[rule]);
    });
    is_lexeme
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Expression {
        Expression::Text(text.to_owned())
    }

    #[test]
    fn neighbours_and_choices_that_are_regular_become_one_lexeme() {
        let inner = Expression::Sequence(vec![
            text("("),
            Expression::Rule(1),
            Expression::Rule(0),
            text(")"),
            text(";"),
        ]);
        let rule = Expression::Either(vec![text("a"), inner, text("b")]);
        let layout = Layout::new(&Rules { rules: vec![rule, text("-")], start: 0 });
        let lexemes = vec![
            Expression::Sequence(vec![text("("), Expression::Rule(1)]),
            Expression::Sequence(vec![text(")"), text(";")]),
            Expression::Either(vec![text("a"), text("b")]),
        ];
        assert_eq!(layout.lexemes, lexemes);
        let sequence = vec![Node::Lexeme(0), Node::Rule(0), Node::Lexeme(1)];
        let node = Node::Either(vec![Node::Sequence(sequence), Node::Lexeme(2)]);
        assert_eq!(layout.rules, [Some(node), None]);
    }

    #[test]
    fn a_regular_grammar_is_one_lexeme() {
        let rules = vec![Expression::Rule(1).repeated(1, None), text("-")];
        let layout = Layout::new(&Rules { rules, start: 0 });
        assert_eq!(layout.rules, [Some(Node::Lexeme(0)), None]);
    }
}
