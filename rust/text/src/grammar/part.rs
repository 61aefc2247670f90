//! What a format of a structural tag becomes, which depends on what follows it.

use super::expression::Expression;

/// What follows a format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After<'a> {
    /// Nothing.
    End,
    /// One of these texts, at whose first occurrence text of no form ends.
    Texts(&'a [String]),
    /// Something else, of which text of no form cannot be told.
    Other,
}

impl<'a> After<'a> {
    /// The texts, if they are known.
    pub(super) fn texts(self) -> &'a [String] {
        match self {
            Self::Texts(texts) => texts,
            Self::End | Self::Other => &[],
        }
    }
}

/// What a format became.
pub(super) struct Part {
    pub(super) expression: Expression,
    /// Whether the texts of [`After::Texts`] are at its end already.
    pub(super) has_ending: bool,
}

impl Part {
    pub(super) fn closed(expression: Expression) -> Self {
        Self { expression, has_ending: false }
    }

    /// Ends in `after`, if that is a list of texts.
    pub(super) fn ended(self, after: After<'_>) -> Self {
        match after {
            After::Texts(texts) if !self.has_ending => {
                let ending = Expression::either_text(texts);
                let expression = Expression::Sequence(vec![self.expression, ending]);
                Self { expression, has_ending: true }
            }
            _ => self,
        }
    }
}
