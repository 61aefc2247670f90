//! Structural tags: text of any form between parts that have one, as JSON describes them.
//!
//! Two descriptions are read: structures and their triggers, and the formats of `format`, which may be nested.

use llguidance::api::TopLevelGrammar;
use serde_json::Value;

use super::expression::{Expression, Rules};
use super::fields::{Fields, invalid, list, object, shown, text};
use super::part::{After, Part};
use super::source::{JsonOptions, checked_pattern};
use super::triggers::{self, Dispatch, Searches, Tag};
use super::{GrammarError, check, gbnf, schema, writer};

/// Formats in formats.
const MAX_NESTING: usize = 24;
/// Objects and lists in one another, as far as the parser of JSON reads them.
const MAX_JSON_NESTING: usize = 127;
const MAX_REPEATS: u32 = 1 << 16;

/// The types of formats and the fields of each beside `type`.
const TYPES: [(&str, &[&str]); 13] = [
    ("any_text", &["excludes"]),
    ("const_string", &["value"]),
    ("grammar", &["grammar"]),
    ("json_schema", &["json_schema", "style"]),
    ("optional", &["content"]),
    ("or", &["elements"]),
    ("plus", &["content"]),
    ("regex", &["pattern"]),
    ("repeat", &["content", "min", "max"]),
    ("sequence", &["elements"]),
    ("star", &["content"]),
    ("tag", &["begin", "content", "end"]),
    ("tags_with_separator", &["tags", "separator", "at_least_one", "stop_after_first"]),
];
const TRIGGERED_FIELDS: [&str; 6] =
    ["type", "triggers", "tags", "at_least_one", "stop_after_first", "excludes"];

pub(super) fn to_grammar(
    text: &str,
    options: &JsonOptions,
) -> Result<TopLevelGrammar, GrammarError> {
    writer::to_grammar(&to_rules(text, options)?)
}

fn to_rules(text: &str, options: &JsonOptions) -> Result<Rules, GrammarError> {
    check("bytes of the structural tag", text.len(), schema::MAX_BYTES)?;
    let value = schema::parsed("structural tag", text, MAX_JSON_NESTING)?;
    let is_format = object("", &value)?.contains_key("format");
    let known: &[&str] =
        if is_format { &["type", "format"] } else { &["type", "structures", "triggers"] };
    let fields = Fields::new("", &value, known)?;
    if let Some(kind) = fields.get("type").filter(|kind| *kind != "structural_tag") {
        return invalid("type", &format!("must be \"structural_tag\", got {}", shown(kind)));
    }
    let rules = vec![Expression::Sequence(vec![])];
    let mut translator = Translator { rules, options, searches: Searches::default() };
    let part = if is_format {
        translator.format("format", fields.value("format")?, After::End, 0)?
    } else {
        translator.structures(fields)?
    };
    translator.rules[0] = part.expression.flattened();
    Ok(Rules { rules: translator.rules, start: 0 })
}

pub(super) struct Translator<'a> {
    rules: Vec<Expression>,
    options: &'a JsonOptions,
    searches: Searches,
}

impl Translator<'_> {
    /// The older description: tags around schemas.
    fn structures(&mut self, fields: Fields<'_>) -> Result<Part, GrammarError> {
        let mut tags = Vec::new();
        for (i, structure) in fields.list("structures")?.iter().enumerate() {
            let place = format!("structures[{i}]");
            let structure = Fields::new(&place, structure, &["begin", "schema", "end"])?;
            let content = self.schema(&structure.place_of("schema"), structure.value("schema")?)?;
            let begin = structure.text("begin")?.to_owned();
            let end = structure.text("end")?.to_owned();
            let content = Expression::Sequence(vec![content, Expression::Text(end)]);
            tags.push(Tag { place, begin, content });
        }
        let triggers = fields.texts("triggers")?;
        let dispatch = Dispatch {
            place: String::new(),
            triggers,
            tags,
            excludes: Vec::new(),
            at_least_one: false,
            stop_after_first: false,
        };
        triggers::to_part(&dispatch, After::End, &mut self.searches)
    }

    fn schema(&self, place: &str, schema: &Value) -> Result<Expression, GrammarError> {
        let schema = match schema {
            Value::String(text) => schema::parsed("schema", text, schema::MAX_NESTING)
                .map_err(|error| at(place, &error))?,
            other => other.clone(),
        };
        let schema = schema::prepared(schema, self.options).map_err(|error| at(place, &error))?;
        Ok(Expression::Json(schema.to_string()))
    }

    /// Any format; `depth` is the number of formats around it.
    fn format(
        &mut self,
        place: &str,
        value: &Value,
        after: After<'_>,
        depth: usize,
    ) -> Result<Part, GrammarError> {
        if depth >= MAX_NESTING {
            return invalid(place, &format!("is nested more than {MAX_NESTING} formats deep"));
        }
        let fields = object(place, value)?;
        let kind = match fields.get("type") {
            Some(kind) => text(&format!("{place}.type"), kind)?,
            None => return invalid(&format!("{place}.type"), "is missing"),
        };
        if kind == "triggered_tags" {
            return self.triggered_tags(place, value, after, depth);
        }
        let Some((_, known)) = TYPES.iter().find(|(name, _)| *name == kind) else {
            let names: Vec<&str> =
                TYPES.iter().map(|(name, _)| *name).chain(["triggered_tags"]).collect();
            let problem = format!("{kind:?} is not supported; use one of {}", list(&names));
            return invalid(&format!("{place}.type"), &problem);
        };
        let known: Vec<&str> = known.iter().copied().chain(["type"]).collect();
        let fields = Fields::new(place, value, &known)?;
        let closed = match kind {
            "any_text" => {
                let excludes = fields.optional_texts("excludes")?;
                return triggers::free_part(place, &[], &excludes, after, &mut self.searches);
            }
            "sequence" => return self.sequence(fields, after, depth),
            "or" => return self.choice(fields, after, depth),
            "tag" => return self.tag(fields, after, depth),
            "const_string" => Expression::Text(fields.text("value")?.to_owned()),
            "json_schema" => self.json_schema(fields)?,
            "regex" => regex(fields)?,
            "grammar" => self.grammar(fields)?,
            "tags_with_separator" => self.separated_tags(fields, depth)?,
            _ => {
                let (min, max) = repeats(kind, fields)?;
                let content = fields.place_of("content");
                let num_texts = self.searches.num_texts();
                let part =
                    self.format(&content, fields.value("content")?, After::Other, depth + 1)?;
                self.searches.repeat(place, num_texts, max.unwrap_or(min))?;
                part.expression.repeated(min, max)
            }
        };
        Ok(Part::closed(closed))
    }

    fn json_schema(&self, fields: Fields<'_>) -> Result<Expression, GrammarError> {
        if let Some(style) = fields.get("style").filter(|style| *style != "json") {
            let problem = format!("must be \"json\", got {}", shown(style));
            return invalid(&fields.place_of("style"), &problem);
        }
        self.schema(&fields.place_of("json_schema"), fields.value("json_schema")?)
    }

    /// The rules of a grammar join those of the others.
    fn grammar(&mut self, fields: Fields<'_>) -> Result<Expression, GrammarError> {
        let rules = gbnf::to_rules(fields.text("grammar")?)
            .map_err(|error| at(&fields.place_of("grammar"), &error))?;
        let first = self.rules.len();
        self.rules.extend(rules.rules.into_iter().map(|rule| rule.shifted(first)));
        Ok(Expression::Rule(first + rules.start))
    }

    fn sequence(
        &mut self,
        fields: Fields<'_>,
        after: After<'_>,
        depth: usize,
    ) -> Result<Part, GrammarError> {
        let elements = fields.list("elements")?;
        let mut parts = Vec::with_capacity(elements.len());
        let mut has_ending = false;
        for (i, element) in elements.iter().enumerate() {
            let next = elements.get(i + 1);
            let opening = next.and_then(opening);
            let after = match (next, &opening) {
                (None, _) => after,
                (Some(_), Some(text)) => After::Texts(std::slice::from_ref(text)),
                (Some(_), None) => After::Other,
            };
            let place = format!("{}[{i}]", fields.place_of("elements"));
            let opened;
            let element = if has_ending {
                opened = without_opening(element);
                &opened
            } else {
                element
            };
            let part = self.format(&place, element, after, depth + 1)?;
            has_ending = part.has_ending;
            parts.push(part.expression);
        }
        Ok(Part { expression: Expression::Sequence(parts), has_ending })
    }

    fn choice(
        &mut self,
        fields: Fields<'_>,
        after: After<'_>,
        depth: usize,
    ) -> Result<Part, GrammarError> {
        let mut parts = Vec::new();
        for (i, element) in fields.list("elements")?.iter().enumerate() {
            let place = format!("{}[{i}]", fields.place_of("elements"));
            parts.push(self.format(&place, element, after, depth + 1)?);
        }
        let has_ending = parts.iter().any(|part| part.has_ending);
        if has_ending {
            self.searches.count(parts.len(), after.texts())?;
            parts = parts.into_iter().map(|part| part.ended(after)).collect();
        }
        let elements = parts.into_iter().map(|part| part.expression).collect();
        Ok(Part { expression: Expression::Either(elements), has_ending })
    }

    fn tag(
        &mut self,
        fields: Fields<'_>,
        after: After<'_>,
        depth: usize,
    ) -> Result<Part, GrammarError> {
        let begin = fields.text("begin")?.to_owned();
        let ends = match fields.value("end")? {
            Value::Array(_) => fields.texts("end")?,
            _ => vec![fields.text("end")?.to_owned()],
        };
        let is_ended = ends.iter().all(|end| !end.is_empty());
        let inner = if is_ended { After::Texts(&ends) } else { after };
        let content = fields.place_of("content");
        let part = self.format(&content, fields.value("content")?, inner, depth + 1)?;
        let part = if is_ended { part.ended(inner) } else { part };
        let expression = Expression::Sequence(vec![Expression::Text(begin), part.expression]);
        Ok(Part { expression, has_ending: part.has_ending && !is_ended })
    }

    /// The tags of a list, each with its begin apart. `type` may be left out. Their contents are rules: they may be
    /// named twice, at each of many levels.
    fn tags(&mut self, fields: Fields<'_>, depth: usize) -> Result<Vec<Tag>, GrammarError> {
        let mut tags = Vec::new();
        for (i, value) in fields.list("tags")?.iter().enumerate() {
            let place = format!("{}[{i}]", fields.place_of("tags"));
            let tag = Fields::new(&place, value, &["type", "begin", "content", "end"])?;
            if let Some(kind) = tag.get("type").filter(|kind| *kind != "tag") {
                let problem = format!("must be \"tag\", got {}", shown(kind));
                return invalid(&tag.place_of("type"), &problem);
            }
            let begin = tag.text("begin")?.to_owned();
            let value = without_begin(value);
            let tag = Fields::new(&place, &value, &["type", "begin", "content", "end"])?;
            let content = self.tag(tag, After::Other, depth + 1)?.expression;
            self.rules.push(content.flattened());
            tags.push(Tag { place, begin, content: Expression::Rule(self.rules.len() - 1) });
        }
        Ok(tags)
    }

    fn triggered_tags(
        &mut self,
        place: &str,
        value: &Value,
        after: After<'_>,
        depth: usize,
    ) -> Result<Part, GrammarError> {
        let fields = Fields::new(place, value, &TRIGGERED_FIELDS)?;
        let dispatch = Dispatch {
            place: place.to_owned(),
            triggers: fields.texts("triggers")?,
            tags: self.tags(fields, depth)?,
            excludes: fields.optional_texts("excludes")?,
            at_least_one: fields.flag("at_least_one")?,
            stop_after_first: fields.flag("stop_after_first")?,
        };
        triggers::to_part(&dispatch, after, &mut self.searches)
    }

    fn separated_tags(
        &mut self,
        fields: Fields<'_>,
        depth: usize,
    ) -> Result<Expression, GrammarError> {
        let separator = Expression::Text(fields.text("separator")?.to_owned());
        let tags = self.tags(fields, depth)?;
        let any = Expression::Either(tags.into_iter().map(Tag::whole).collect());
        let mut parts = vec![any.clone()];
        if !fields.flag("stop_after_first")? {
            parts.push(Expression::Sequence(vec![separator, any]).repeated(0, None));
        }
        let min = u32::from(fields.flag("at_least_one")?);
        Ok(Expression::Sequence(parts).repeated(min, Some(1)))
    }
}

fn regex(fields: Fields<'_>) -> Result<Expression, GrammarError> {
    let pattern = fields.text("pattern")?;
    let pattern =
        checked_pattern(pattern).map_err(|error| at(&fields.place_of("pattern"), &error))?;
    Ok(Expression::Pattern(pattern.to_owned()))
}

fn at(place: &str, error: &GrammarError) -> GrammarError {
    GrammarError::Invalid(format!("{place}: {error}"))
}

fn repeats(kind: &str, fields: Fields<'_>) -> Result<(u32, Option<u32>), GrammarError> {
    match kind {
        "optional" => Ok((0, Some(1))),
        "plus" => Ok((1, None)),
        "star" => Ok((0, None)),
        _ => {
            let min = fields.count("min", MAX_REPEATS, None)?.unwrap_or(0);
            let max = fields.count("max", MAX_REPEATS, Some(-1))?;
            if max.is_some_and(|max| max < min) {
                let problem = format!("must be at least min ({min}), got {}", max.unwrap_or(0));
                return invalid(&fields.place_of("max"), &problem);
            }
            Ok((min, max))
        }
    }
}

/// The text with which a format begins, if it is one that can end what stands before it.
fn opening(format: &Value) -> Option<String> {
    let name = opening_field(format)?;
    let text = format.get(name)?.as_str()?;
    (!text.is_empty()).then(|| text.to_owned())
}

fn opening_field(format: &Value) -> Option<&'static str> {
    match format.get("type")?.as_str()? {
        "const_string" => Some("value"),
        "tag" => Some("begin"),
        _ => None,
    }
}

/// The same format where its opening has been written already.
fn without_opening(format: &Value) -> Value {
    let mut format = format.clone();
    if let Some(name) = opening_field(&format) {
        format[name] = Value::from("");
    }
    format
}

fn without_begin(tag: &Value) -> Value {
    let mut tag = tag.clone();
    tag["begin"] = Value::from("");
    tag
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_that_is_named_twice_at_each_of_many_levels_is_written_once() {
        let leaf = serde_json::json!({"type": "const_string", "value": "leaf"});
        let nested = (0..10).fold(leaf, |inner, _| {
            let tag = serde_json::json!({"begin": "<", "content": inner, "end": ">"});
            serde_json::json!({"type": "tags_with_separator", "tags": [tag], "separator": ","})
        });
        let options = JsonOptions {
            any_whitespace: true,
            whitespace_pattern: None,
            additional_properties: true,
        };
        let rules = to_rules(&format!("{{\"format\": {nested}}}"), &options).unwrap();
        assert_eq!(format!("{rules:?}").matches("leaf").count(), 1);
    }
}
