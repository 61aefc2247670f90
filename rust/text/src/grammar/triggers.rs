//! Text of no form, and the tags that a trigger in it calls for.

use super::expression::{Expression, FreeText};
use super::fields::invalid;
use super::part::{After, Part};
use super::{GrammarError, check};

/// Bytes of all that free texts look for, each counted once for every text that looks for it: so it is compiled.
const MAX_SEARCH_BYTES: usize = 1 << 20;
/// Free texts in a row: what is compiled grows with the square of their number.
const MAX_REPEATED: usize = 256;

/// Tags in free text.
#[derive(Debug)]
pub(super) struct Dispatch {
    /// Where it stands.
    pub(super) place: String,
    pub(super) triggers: Vec<String>,
    pub(super) tags: Vec<Tag>,
    /// What free text may not contain.
    pub(super) excludes: Vec<String>,
    /// Whether a tag comes first.
    pub(super) at_least_one: bool,
    /// Whether nothing follows a tag.
    pub(super) stop_after_first: bool,
}

/// A tag and what follows its begin: the content and the end.
#[derive(Debug)]
pub(super) struct Tag {
    pub(super) place: String,
    pub(super) begin: String,
    pub(super) content: Expression,
}

impl Tag {
    pub(super) fn whole(self) -> Expression {
        Expression::Sequence(vec![Expression::Text(self.begin), self.content])
    }

    /// What follows a text that the tag begins with; its content is small, or named nowhere else.
    fn rest(&self, opening: &str) -> Expression {
        let rest = self.begin[opening.len()..].to_owned();
        Expression::Sequence(vec![Expression::Text(rest), self.content.clone()])
    }
}

/// What the free texts of a structural tag look for.
#[derive(Debug, Default)]
pub(super) struct Searches {
    num_bytes: usize,
    /// Free texts, each as often as it is repeated.
    num_texts: usize,
}

impl Searches {
    pub(super) fn num_texts(&self) -> usize {
        self.num_texts
    }

    /// Counts free texts that look for `texts`.
    fn add<'a>(
        &mut self,
        num_texts: usize,
        texts: impl IntoIterator<Item = &'a String>,
    ) -> Result<(), GrammarError> {
        self.num_texts += num_texts;
        self.count(num_texts, texts)
    }

    /// Counts what was added since there were `before` free texts as often as it is repeated.
    pub(super) fn repeat(
        &mut self,
        place: &str,
        before: usize,
        times: u32,
    ) -> Result<(), GrammarError> {
        let num_inside = self.num_texts - before;
        let num_repeated = num_inside * (times as usize).max(1);
        if num_repeated > num_inside && num_repeated > MAX_REPEATED {
            let problem =
                format!("repeats free text {num_repeated} times; {MAX_REPEATED} are the most");
            return invalid(place, &problem);
        }
        self.num_texts = before + num_repeated;
        Ok(())
    }

    /// Counts `texts` for each of `num_searches`.
    pub(super) fn count<'a>(
        &mut self,
        num_searches: usize,
        texts: impl IntoIterator<Item = &'a String>,
    ) -> Result<(), GrammarError> {
        self.num_bytes += num_searches * texts.into_iter().map(String::len).sum::<usize>();
        check(
            "number of ends and triggers of free text times their bytes",
            self.num_bytes,
            MAX_SEARCH_BYTES,
        )
    }
}

/// Free text up to what follows. `triggers` may not be in it.
pub(super) fn free_part(
    place: &str,
    triggers: &[String],
    excludes: &[String],
    after: After<'_>,
    searches: &mut Searches,
) -> Result<Part, GrammarError> {
    if after == After::Other {
        return invalid(
            place,
            "cannot tell where to stop; put it last, or before a const_string, \
             or into a tag with an end",
        );
    }
    let ends = after.texts();
    searches.add(ends.len().max(1), triggers.iter().chain(ends).chain(excludes))?;
    for end in ends {
        if let Some(inside) = triggers.iter().chain(excludes).find(|text| end.contains(*text)) {
            let problem = format!("never comes to its end {end:?}, which contains {inside:?}");
            return invalid(place, &problem);
        }
    }
    let free = |ending: Option<&String>| {
        let stops = triggers.iter().chain(ends).cloned().collect();
        let (excludes, ending) = (excludes.to_vec(), ending.cloned());
        Expression::Free(FreeText { stops, excludes, ending })
    };
    if ends.is_empty() {
        return Ok(Part::closed(free(None)));
    }
    let expression = Expression::Either(ends.iter().map(|end| free(Some(end))).collect());
    Ok(Part { expression, has_ending: true })
}

/// Free text and tags in turn, or what the flags of `dispatch` make of that.
pub(super) fn to_part(
    dispatch: &Dispatch,
    after: After<'_>,
    searches: &mut Searches,
) -> Result<Part, GrammarError> {
    let Dispatch { place, triggers, tags, excludes, .. } = dispatch;
    let ends = after.texts();
    searches.add(triggers.len(), triggers.iter().chain(ends).chain(excludes))?;
    verify(dispatch)?;
    let first = || Expression::Either(tags.iter().map(|tag| tag.rest("")).collect());
    if dispatch.at_least_one && dispatch.stop_after_first {
        return Ok(Part::closed(first()));
    }
    let Part { expression: tail, has_ending } =
        free_part(place, triggers, excludes, after, searches)?;
    let ending = match after {
        After::Texts(ends) => Expression::either_text(ends),
        After::End | After::Other => Expression::Sequence(vec![]),
    };
    let stops: Vec<String> = triggers.iter().chain(ends).cloned().collect();
    let called: Vec<Expression> = triggers
        .iter()
        .map(|trigger| {
            let free = FreeText {
                stops: stops.clone(),
                excludes: excludes.clone(),
                ending: Some(trigger.clone()),
            };
            let fitting = tags.iter().filter(|tag| tag.begin.starts_with(trigger));
            let rests = fitting.map(|tag| tag.rest(trigger)).collect();
            Expression::Sequence(vec![Expression::Free(free), Expression::Either(rests)])
        })
        .collect();
    let called = Expression::Either(called);
    let expression = if dispatch.stop_after_first {
        Expression::Either(vec![Expression::Sequence(vec![called, ending]), tail])
    } else {
        let mut parts = vec![called.repeated(0, None), tail];
        if dispatch.at_least_one {
            parts.insert(0, first());
        }
        Expression::Sequence(parts)
    };
    Ok(Part { expression, has_ending })
}

/// Every tag begins with one trigger, every trigger begins a tag, and none hides another.
fn verify(dispatch: &Dispatch) -> Result<(), GrammarError> {
    let triggers = if dispatch.place.is_empty() {
        "triggers".to_owned()
    } else {
        format!("{}.triggers", dispatch.place)
    };
    for (i, trigger) in dispatch.triggers.iter().enumerate() {
        let place = format!("{triggers}[{i}]");
        if !dispatch.tags.iter().any(|tag| tag.begin.starts_with(trigger)) {
            return invalid(&place, &format!("{trigger:?} begins no tag; leave it out"));
        }
        let mut others = dispatch.triggers.iter().enumerate().filter(|(j, _)| *j != i);
        if let Some((_, other)) = others.find(|(_, other)| trigger.contains(*other)) {
            let problem = format!("{trigger:?} contains trigger {other:?}; keep one of them");
            return invalid(&place, &problem);
        }
        if let Some(excluded) = dispatch.excludes.iter().find(|text| trigger.contains(*text)) {
            let problem = format!("{trigger:?} contains {excluded:?}, which is excluded");
            return invalid(&place, &problem);
        }
    }
    for tag in &dispatch.tags {
        if !dispatch.triggers.iter().any(|trigger| tag.begin.starts_with(trigger)) {
            let begin = &tag.begin;
            let problem = format!("{begin:?} begins with none of {triggers}; add its trigger");
            return invalid(&format!("{}.begin", tag.place), &problem);
        }
    }
    Ok(())
}
