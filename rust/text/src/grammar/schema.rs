//! JSON schemas: limits and the options that requests set beside them.

use std::collections::HashSet;

use llguidance::JsonCompileOptions;
use llguidance::api::TopLevelGrammar;
use serde_json::{Map, Value};

use super::source::JsonOptions;
use super::{GrammarError, check};

pub(super) const MAX_BYTES: usize = 1 << 20;
pub(super) const MAX_NESTING: usize = 64;
/// Definitions are compiled inside one another, so that their number times the nesting bounds the stack.
const MAX_NESTED_REFERENCES: usize = 8192;
/// What the schema itself may not set: it would change how the schema is read.
const OPTIONS_KEY: &str = "x-guidance";

/// White space that may stand between two tokens of JSON: bounded, because models that run out of ideas go on
/// with white space for as long as they may.
const WHITESPACE: &str = r"[ \t]{1,32}|\r?\n[ \t]{0,64}";

/// Keys whose values are data, not schemas.
const DATA_KEYS: [&str; 5] = ["const", "default", "enum", "example", "examples"];
/// Keys whose values are maps from names to schemas.
const NAMED_SCHEMAS: [&str; 5] =
    ["$defs", "definitions", "dependentSchemas", "patternProperties", "properties"];

pub(super) fn to_grammar(
    text: &str,
    options: &JsonOptions,
) -> Result<TopLevelGrammar, GrammarError> {
    check("bytes of the schema", text.len(), MAX_BYTES)?;
    let schema = parsed("schema", text, MAX_NESTING)?;
    Ok(TopLevelGrammar::from_json_schema(prepared(schema, options)?))
}

/// The JSON of a text. What is nested too deep for the parser, or for the stack, is refused.
pub(super) fn parsed(what: &str, text: &str, max_nesting: usize) -> Result<Value, GrammarError> {
    serde_json::from_str(text).map_err(|error| {
        GrammarError::Invalid(if error.to_string().starts_with("recursion limit") {
            format!("the {what} is nested more than {max_nesting} deep")
        } else {
            format!("the {what} is not JSON: {error}")
        })
    })
}

/// A schema as llguidance reads it, with the options in it.
pub(super) fn prepared(mut schema: Value, options: &JsonOptions) -> Result<Value, GrammarError> {
    let mut references = HashSet::new();
    let nesting = measure(&schema, &mut references);
    check("nesting of the schema", nesting, MAX_NESTING)?;
    let nested_references = (references.len() + 1) * nesting;
    check("references of the schema times its nesting", nested_references, MAX_NESTED_REFERENCES)?;
    if schema == Value::Bool(true) {
        schema = Value::Object(Map::new());
    }
    let Some(object) = schema.as_object_mut() else {
        let message = format!("a schema must be an object, got {}", kind(&schema));
        return Err(GrammarError::Invalid(message));
    };
    object.remove(OPTIONS_KEY);
    if !options.additional_properties {
        close_objects(&mut schema);
    }
    let default_whitespace = || options.any_whitespace.then(|| WHITESPACE.to_owned());
    let compile_options = JsonCompileOptions {
        whitespace_flexible: options.any_whitespace,
        whitespace_pattern: options.whitespace_pattern.clone().or_else(default_whitespace),
        ..JsonCompileOptions::default()
    };
    compile_options.apply_to(&mut schema);
    Ok(schema)
}

/// How deep objects and arrays are nested; collects what is referred to. The parser has bounded the depth.
fn measure<'a>(value: &'a Value, references: &mut HashSet<&'a str>) -> usize {
    match value {
        Value::Array(items) => {
            1 + items.iter().map(|item| measure(item, references)).max().unwrap_or(0)
        }
        Value::Object(entries) => {
            if let Some(reference) = entries.get("$ref").and_then(Value::as_str) {
                references.insert(reference);
            }
            1 + entries.values().map(|entry| measure(entry, references)).max().unwrap_or(0)
        }
        _ => 0,
    }
}

/// Writes `additionalProperties: false` into every object schema that does not say otherwise.
fn close_objects(schema: &mut Value) {
    match schema {
        Value::Array(schemas) => schemas.iter_mut().for_each(close_objects),
        Value::Object(entries) => {
            for (key, value) in entries.iter_mut() {
                if NAMED_SCHEMAS.contains(&key.as_str()) {
                    value.as_object_mut().into_iter().flatten().for_each(|(_, s)| close_objects(s));
                } else if !DATA_KEYS.contains(&key.as_str()) {
                    close_objects(value);
                }
            }
            let is_object = entries.get("type").is_some_and(|name| name == "object");
            if is_object || entries.contains_key("properties") {
                entries.entry("additionalProperties").or_insert(Value::Bool(false));
            }
        }
        _ => {}
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "false, which nothing satisfies",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn closing_objects_leaves_data_and_properties_called_type_alone() {
        let mut schema = json!({
            "type": "object",
            "properties": {"type": {"const": {"type": "object"}}, "a": {"properties": {}}},
            "items": [{"type": "object", "additionalProperties": true}]
        });
        close_objects(&mut schema);
        let expected = json!({
            "type": "object",
            "properties": {
                "type": {"const": {"type": "object"}},
                "a": {"properties": {}, "additionalProperties": false}
            },
            "items": [{"type": "object", "additionalProperties": true}],
            "additionalProperties": false
        });
        assert_eq!(schema, expected);
    }

    #[test]
    fn nesting_and_references_are_counted() {
        let schema = json!({"a": [{"$ref": "#/x"}, {"$ref": "#/x"}], "b": {"$ref": "#/y"}});
        let mut references = HashSet::new();
        assert_eq!(measure(&schema, &mut references), 3);
        assert_eq!(references.len(), 2);
    }
}
