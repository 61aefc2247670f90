//! The fields of a structural tag's JSON, by name, with the place of each in every message.

use serde_json::{Map, Value};

use super::GrammarError;

/// An object of the JSON and where it stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fields<'a> {
    /// Such as `format.elements[1]`.
    pub(super) place: &'a str,
    fields: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// Takes an object without fields other than `known`.
    pub(super) fn new(
        place: &'a str,
        value: &'a Value,
        known: &[&str],
    ) -> Result<Self, GrammarError> {
        let fields = object(place, value)?;
        if let Some(name) = fields.keys().find(|name| !known.contains(&name.as_str())) {
            let place = inside(place, name);
            return invalid(
                &place,
                &format!("is unknown; leave it out or use one of {}", list(known)),
            );
        }
        Ok(Self { place, fields })
    }

    /// Where a field stands.
    pub(super) fn place_of(&self, name: &str) -> String {
        inside(self.place, name)
    }

    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        self.fields.get(name)
    }

    pub(super) fn value(&self, name: &str) -> Result<&'a Value, GrammarError> {
        match self.fields.get(name) {
            Some(value) => Ok(value),
            None => invalid(&self.place_of(name), "is missing"),
        }
    }

    pub(super) fn text(&self, name: &str) -> Result<&'a str, GrammarError> {
        text(&self.place_of(name), self.value(name)?)
    }

    /// A list of at least one element.
    pub(super) fn list(&self, name: &str) -> Result<&'a [Value], GrammarError> {
        let value = self.value(name)?;
        match value.as_array() {
            Some(elements) if elements.is_empty() => {
                invalid(&self.place_of(name), "is empty; give at least one element")
            }
            Some(elements) => Ok(elements),
            None => invalid(&self.place_of(name), &format!("must be a list, got {}", shown(value))),
        }
    }

    /// A list of at least one text, none of them empty.
    pub(super) fn texts(&self, name: &str) -> Result<Vec<String>, GrammarError> {
        let place = self.place_of(name);
        let elements = self.list(name)?.iter().enumerate();
        elements.map(|(i, value)| filled_text(&format!("{place}[{i}]"), value)).collect()
    }

    /// The same, or nothing where the field is missing or empty.
    pub(super) fn optional_texts(&self, name: &str) -> Result<Vec<String>, GrammarError> {
        match self.fields.get(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(elements)) if elements.is_empty() => Ok(Vec::new()),
            Some(_) => self.texts(name),
        }
    }

    /// False where it is missing.
    pub(super) fn flag(&self, name: &str) -> Result<bool, GrammarError> {
        match self.fields.get(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(value) => invalid(
                &self.place_of(name),
                &format!("must be true or false, got {}", shown(value)),
            ),
        }
    }

    /// A number from 0 to `max`; `otherwise` too, if it is given.
    pub(super) fn count(
        &self,
        name: &str,
        max: u32,
        otherwise: Option<i64>,
    ) -> Result<Option<u32>, GrammarError> {
        let value = self.value(name)?;
        match value.as_i64() {
            Some(count) if Some(count) == otherwise => Ok(None),
            Some(count) if (0..=i64::from(max)).contains(&count) => Ok(Some(count as u32)),
            _ => {
                let or = otherwise.map_or(String::new(), |other| format!(" or {other}"));
                let got = shown(value);
                invalid(&self.place_of(name), &format!("must be 0 to {max}{or}, got {got}"))
            }
        }
    }
}

pub(super) fn object<'a>(
    place: &str,
    value: &'a Value,
) -> Result<&'a Map<String, Value>, GrammarError> {
    match value.as_object() {
        Some(fields) => Ok(fields),
        None => invalid(place, &format!("must be an object, got {}", shown(value))),
    }
}

pub(super) fn text<'a>(place: &str, value: &'a Value) -> Result<&'a str, GrammarError> {
    match value.as_str() {
        Some(text) => Ok(text),
        None => invalid(place, &format!("must be a text, got {}", shown(value))),
    }
}

fn filled_text(place: &str, value: &Value) -> Result<String, GrammarError> {
    match text(place, value)? {
        "" => invalid(place, "is empty; it needs a character"),
        text => Ok(text.to_owned()),
    }
}

/// An error that names a place.
pub(super) fn invalid<T>(place: &str, problem: &str) -> Result<T, GrammarError> {
    let place = if place.is_empty() { "the structural tag" } else { place };
    Err(GrammarError::Invalid(format!("{place} {problem}")))
}

pub(super) fn list(names: &[&str]) -> String {
    names.join(", ")
}

fn inside(place: &str, name: &str) -> String {
    let name = shortened(name);
    if place.is_empty() { name } else { format!("{place}.{name}") }
}

/// A value, or the beginning of a long one.
pub(super) fn shown(value: &Value) -> String {
    shortened(&value.to_string())
}

fn shortened(text: &str) -> String {
    const MAX_CHARS: usize = 60;
    if text.chars().count() <= MAX_CHARS {
        return text.to_owned();
    }
    text.chars().take(MAX_CHARS).chain("...".chars()).collect()
}
