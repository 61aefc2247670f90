//! Grammars as expressions: what structural tags and GBNF are translated to before they are written as Lark.

/// A set of texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Expression {
    /// This text.
    Text(String),
    /// One character.
    Class(Class),
    /// What a regular expression matches as a whole.
    Pattern(String),
    /// Text of no form.
    Free(FreeText),
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
    /// A rule of the same [`Rules`].
    Rule(usize),
    /// JSON that satisfies a schema, which llguidance reads.
    Json(String),
}

/// Characters: those of some ranges, or all but those.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Class {
    /// First and last character of each range.
    pub(super) ranges: Vec<(char, char)>,
    pub(super) is_negated: bool,
}

/// Text up to the first place where one of some texts is complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FreeText {
    /// What may not be complete before the end.
    pub(super) stops: Vec<String>,
    /// What may stand nowhere in it.
    pub(super) excludes: Vec<String>,
    /// What it ends with, one of `stops`; without, none of them is in it.
    pub(super) ending: Option<String>,
}

/// Rules that may refer to each other, and the one that the text follows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Rules {
    pub(super) rules: Vec<Expression>,
    pub(super) start: usize,
}

impl Expression {
    /// One of some texts.
    pub(super) fn either_text(texts: &[String]) -> Self {
        Self::Either(texts.iter().cloned().map(Self::Text).collect())
    }

    /// The expression any number of times between two.
    pub(super) fn repeated(self, min: u32, max: Option<u32>) -> Self {
        Self::Repeat { what: Box::new(self), min, max }
    }

    /// Without sequences in sequences, choices in choices, either of one element, and empty texts in sequences.
    pub(super) fn flattened(self) -> Self {
        match self {
            Self::Sequence(elements) => {
                let mut flat = Vec::with_capacity(elements.len());
                for element in elements {
                    match element.flattened() {
                        Self::Sequence(inner) => flat.extend(inner),
                        Self::Text(text) if text.is_empty() => {}
                        other => flat.push(other),
                    }
                }
                match flat.len() {
                    0 => Self::Text(String::new()),
                    1 => flat.remove(0),
                    _ => Self::Sequence(flat),
                }
            }
            Self::Either(elements) => {
                let mut flat = Vec::with_capacity(elements.len());
                for element in elements {
                    match element.flattened() {
                        Self::Either(inner) => flat.extend(inner),
                        other => flat.push(other),
                    }
                }
                if flat.len() == 1 { flat.remove(0) } else { Self::Either(flat) }
            }
            Self::Repeat { what, min, max } => what.flattened().repeated(min, max),
            other => other,
        }
    }

    /// The same where the rules have moved by `by`.
    pub(super) fn shifted(self, by: usize) -> Self {
        match self {
            Self::Sequence(elements) => {
                Self::Sequence(elements.into_iter().map(|element| element.shifted(by)).collect())
            }
            Self::Either(elements) => {
                Self::Either(elements.into_iter().map(|element| element.shifted(by)).collect())
            }
            Self::Repeat { what, min, max } => what.shifted(by).repeated(min, max),
            Self::Rule(rule) => Self::Rule(rule + by),
            other => other,
        }
    }

    /// Calls `visit` for each rule and each schema in it.
    pub(super) fn visit_leaves(&self, visit: &mut impl FnMut(Leaf)) {
        match self {
            Self::Sequence(elements) | Self::Either(elements) => {
                for element in elements {
                    element.visit_leaves(visit);
                }
            }
            Self::Repeat { what, .. } => what.visit_leaves(visit),
            Self::Rule(rule) => visit(Leaf::Rule(*rule)),
            Self::Json(_) => visit(Leaf::Json),
            Self::Text(_) | Self::Class(_) | Self::Pattern(_) | Self::Free(_) => {}
        }
    }
}

/// What may keep an expression from being regular.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leaf {
    /// A reference to a rule.
    Rule(usize),
    /// A schema.
    Json,
}

impl Rules {
    /// A rule that every choice leads back to itself, so that no text satisfies it.
    pub(super) fn endless(&self) -> Option<usize> {
        let mut ends = Ends::new(self.rules.len());
        for (rule, expression) in self.rules.iter().enumerate() {
            ends.add(expression, rule);
        }
        ends.settle();
        (0..self.rules.len()).find(|rule| ends.num_missing[*rule] > 0)
    }

    /// Which rules are regular: those that lead neither to themselves nor to a schema.
    pub(super) fn regular(&self) -> Vec<bool> {
        let mut is_regular = vec![false; self.rules.len()];
        let mut num_unknown = vec![0_usize; self.rules.len()];
        let mut users: Vec<Vec<usize>> = vec![Vec::new(); self.rules.len()];
        for (user, rule) in self.rules.iter().enumerate() {
            rule.visit_leaves(&mut |leaf| {
                num_unknown[user] += 1;
                if let Leaf::Rule(used) = leaf {
                    users[used].push(user);
                }
            });
        }
        let mut ready: Vec<usize> =
            (0..self.rules.len()).filter(|rule| num_unknown[*rule] == 0).collect();
        while let Some(rule) = ready.pop() {
            is_regular[rule] = true;
            for user in &users[rule] {
                num_unknown[*user] -= 1;
                if num_unknown[*user] == 0 {
                    ready.push(*user);
                }
            }
        }
        is_regular
    }
}

/// Which parts of rules some text satisfies. The first parts are the rules themselves.
struct Ends {
    /// Of each part, how many of those in it have to be satisfied yet.
    num_missing: Vec<usize>,
    /// What each part is in.
    parents: Vec<usize>,
    /// In which parts each rule is named.
    users: Vec<Vec<usize>>,
    /// A part for each of those in it that is satisfied.
    settled: Vec<usize>,
}

impl Ends {
    fn new(num_rules: usize) -> Self {
        Self {
            num_missing: vec![1; num_rules],
            parents: (0..num_rules).collect(),
            users: vec![Vec::new(); num_rules],
            settled: Vec::new(),
        }
    }

    /// Adds what is in the part `parent`.
    fn add(&mut self, expression: &Expression, parent: usize) {
        match expression {
            Expression::Sequence(elements) if !elements.is_empty() => {
                self.add_part(elements, elements.len(), parent);
            }
            Expression::Either(elements) => self.add_part(elements, 1, parent),
            Expression::Repeat { what, min: 1.., .. } => self.add(what, parent),
            Expression::Rule(rule) => self.users[*rule].push(parent),
            _ => self.settled.push(parent),
        }
    }

    fn add_part(&mut self, elements: &[Expression], num_missing: usize, parent: usize) {
        let part = self.num_missing.len();
        self.num_missing.push(num_missing);
        self.parents.push(parent);
        for element in elements {
            self.add(element, part);
        }
    }

    /// Follows what is satisfied upwards, each part once.
    fn settle(&mut self) {
        while let Some(part) = self.settled.pop() {
            if self.num_missing[part] == 0 {
                continue;
            }
            self.num_missing[part] -= 1;
            if self.num_missing[part] > 0 {
                continue;
            }
            match self.users.get_mut(part) {
                Some(users) => self.settled.append(users),
                None => self.settled.push(self.parents[part]),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Expression {
        Expression::Text(text.to_owned())
    }

    #[test]
    fn flattening_keeps_the_texts_and_loses_the_nesting() {
        let nested = Expression::Sequence(vec![
            Expression::Sequence(vec![text("a"), text("")]),
            Expression::Either(vec![Expression::Either(vec![text("b"), text("c")]), text("")]),
        ]);
        let flat = Expression::Sequence(vec![
            text("a"),
            Expression::Either(vec![text("b"), text("c"), text("")]),
        ]);
        assert_eq!(nested.flattened(), flat);
        assert_eq!(Expression::Sequence(vec![]).flattened(), text(""));
    }

    #[test]
    fn a_rule_that_leads_to_itself_or_to_a_schema_is_not_regular() {
        let rules = vec![
            Expression::Sequence(vec![Expression::Rule(1), Expression::Rule(2)]),
            text("a"),
            Expression::Rule(3),
            Expression::Rule(2).repeated(0, None),
            Expression::Json("{}".to_owned()),
            Expression::Either(vec![Expression::Rule(1), Expression::Rule(1)]),
        ];
        let regular = Rules { rules, start: 0 }.regular();
        assert_eq!(regular, [false, true, false, false, false, true]);
    }

    #[test]
    fn a_rule_without_an_end_is_found() {
        let itself = |rule| Expression::Sequence(vec![text("a"), Expression::Rule(rule)]);
        let endless = |rules| Rules { rules, start: 0 }.endless();
        assert_eq!(endless(vec![text("a"), itself(2), itself(1)]), Some(1));
        assert_eq!(endless(vec![Expression::Either(vec![itself(0), text("")])]), None);
        assert_eq!(endless(vec![itself(0).repeated(0, None)]), None);
        assert_eq!(endless(vec![itself(0).repeated(1, None)]), Some(0));
        let row = Expression::Sequence(vec![Expression::Rule(1), Expression::Rule(1), text("")]);
        assert_eq!(endless(vec![row.clone(), text("a")]), None);
        assert_eq!(endless(vec![row, itself(1)]), Some(0));
        let many = |rule: usize| if rule == 2000 { text("a") } else { itself(rule + 1) };
        assert_eq!(endless((0..=2000).map(many).collect()), None);
    }
}
