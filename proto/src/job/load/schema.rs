//! Holding a tree against the JSON schema of the job: unknown keys, wrong types, missing keys.

use serde_json::{Map, Value};

use super::{
    Origin,
    tree::{Kind, Node},
};
use crate::failure::Failure;

/// The schema of the job file.
pub(super) struct Schema {
    root: Value,
}

/// What a schema allows at one place.
pub(super) enum Shape<'a> {
    /// A table with known keys.
    Table {
        properties: &'a Map<String, Value>,
        required: Vec<&'a str>,
    },
    /// A table whose keys the user chooses; all values alike.
    Named(&'a Value),
    /// A list; all items alike.
    List(&'a Value),
    /// One of a few words.
    Words(Vec<&'a str>),
    Text,
    Whole {
        largest: i64,
    },
    Number,
    Flag,
    /// Anything.
    Free,
}

/// Something that does not fit the schema.
#[derive(Clone, Debug)]
pub(super) struct Complaint {
    what: String,
    /// Reason, read after the place: "job.toml line 3: ...".
    why: String,
    cure: String,
    origin: Origin,
}

impl Complaint {
    pub(super) fn failure(self, file: &str) -> Failure {
        let why = format!("{}: {}", self.origin.describe(file), self.why);
        Failure::settings(self.what, why, self.cure)
    }
}

impl Schema {
    pub(super) fn of_job() -> Self {
        Self {
            root: super::json_schema(),
        }
    }

    pub(super) fn root(&self) -> &Value {
        &self.root
    }

    /// Everything in the tree that does not fit, in file order.
    pub(super) fn check(&self, tree: &Node) -> Vec<Complaint> {
        let mut complaints = Vec::new();
        self.visit(tree, &self.root, "", &mut complaints);
        complaints.sort_by_key(|complaint| match complaint.origin {
            Origin::File(line) => line,
            _ => 0,
        });
        complaints
    }

    /// Follows `$ref` and takes the part of a union that is not null.
    fn resolve<'a>(&'a self, mut schema: &'a Value) -> &'a Value {
        loop {
            let target = schema.get("$ref").and_then(Value::as_str);
            let pointed = target
                .and_then(|to| to.strip_prefix('#'))
                .and_then(|to| self.root.pointer(to));
            let member = schema
                .get("anyOf")
                .and_then(Value::as_array)
                .and_then(|parts| parts.iter().find(|part| !is_null(part)));
            match pointed.or(member) {
                Some(next) => schema = next,
                None => return schema,
            }
        }
    }

    pub(super) fn shape<'a>(&'a self, schema: &'a Value) -> Shape<'a> {
        let schema = self.resolve(schema);
        if let Some(words) = words(schema) {
            return Shape::Words(words);
        }
        match type_of(schema) {
            Some("object") => table_shape(schema),
            Some("array") => schema.get("items").map_or(Shape::Free, Shape::List),
            Some("string") => Shape::Text,
            Some("boolean") => Shape::Flag,
            Some("number") => Shape::Number,
            Some("integer") => match schema.get("format").and_then(Value::as_str) {
                Some("uint32") => Shape::Whole {
                    largest: u32::MAX.into(),
                },
                _ => Shape::Whole { largest: i64::MAX },
            },
            _ => Shape::Free,
        }
    }

    fn visit(&self, node: &Node, schema: &Value, key: &str, out: &mut Vec<Complaint>) {
        match (&node.kind, self.shape(schema)) {
            (
                Kind::Table(entries),
                Shape::Table {
                    properties,
                    required,
                },
            ) => {
                for (name, child) in entries {
                    match properties.get(name) {
                        Some(inner) => self.visit(child, inner, &join(key, name), out),
                        None => out.push(self.unknown(key, name, properties, &child.origin)),
                    }
                }
                let missing = required
                    .into_iter()
                    .filter(|name| !entries.contains_key(*name));
                out.extend(missing.map(|name| missing_key(key, name, properties, &node.origin)));
            }
            (Kind::Table(entries), Shape::Named(inner)) => {
                for (name, child) in entries {
                    self.visit(child, inner, &join(key, name), out);
                }
            }
            (Kind::Array(items), Shape::List(inner)) => {
                for (index, item) in items.iter().enumerate() {
                    self.visit(item, inner, &join(key, &item.label(index)), out);
                }
            }
            (_, shape) => {
                if !fits(node, &shape) {
                    out.push(wrong_type(key, node, &shape));
                }
            }
        }
    }

    /// A complaint about a key that means nothing, with the likeliest correction.
    pub(super) fn unknown(
        &self,
        table: &str,
        name: &str,
        properties: &Map<String, Value>,
        origin: &Origin,
    ) -> Complaint {
        let place = if table.is_empty() {
            "the job".to_owned()
        } else {
            table.to_owned()
        };
        let near = nearest(name, properties.keys().map(String::as_str));
        let cure = match (near, self.home_of(name)) {
            (Some(near), _) => format!("did you mean '{near}'?"),
            (None, Some(home)) => {
                let home = named_like(&home, table);
                let place = if home.is_empty() { "the top" } else { &home };
                format!("'{name}' belongs in {place}: write {}", join(&home, name))
            }
            (None, None) => format!("known there: {}", listed(properties.keys())),
        };
        Complaint {
            what: format!("unknown key '{name}' in {place}"),
            why: format!("{} means nothing to mks2", join(table, name)),
            cure,
            origin: origin.clone(),
        }
    }

    /// Where else in the schema a key of that name lives; the top is empty.
    fn home_of(&self, name: &str) -> Option<String> {
        let mut places = vec![(String::new(), &self.root)];
        let mut depth = 0;
        while depth < places.len() && depth < 200 {
            let (key, schema) = (places[depth].0.clone(), places[depth].1);
            depth += 1;
            match self.shape(schema) {
                Shape::Table { properties, .. } => {
                    if properties.contains_key(name) {
                        return Some(key);
                    }
                    places.extend(properties.iter().map(|(k, inner)| (join(&key, k), inner)));
                }
                Shape::Named(inner) => places.push((join(&key, "NAME"), inner)),
                Shape::List(inner) => places.push((join(&key, "NAME"), inner)),
                _ => {}
            }
        }
        None
    }
}

/// `stage.NAME.evaluate` with the names that the user wrote: `stage.ask.evaluate`.
fn named_like(home: &str, table: &str) -> String {
    let mut written = table.split('.');
    let parts = home.split('.').map(|part| match written.next() {
        Some(own) if part == "NAME" => own,
        _ => part,
    });
    parts.collect::<Vec<_>>().join(".")
}

fn is_null(schema: &Value) -> bool {
    schema.get("type").and_then(Value::as_str) == Some("null")
}

/// The type, also when written as `["string", "null"]`.
fn type_of(schema: &Value) -> Option<&str> {
    match schema.get("type")? {
        Value::String(name) => Some(name),
        Value::Array(names) => names
            .iter()
            .filter_map(Value::as_str)
            .find(|name| *name != "null"),
        _ => None,
    }
}

/// The words of an enumeration, documented (`oneOf` of constants) or not (`enum`).
fn words(schema: &Value) -> Option<Vec<&str>> {
    if let Some(listed) = schema.get("enum").and_then(Value::as_array) {
        return Some(listed.iter().filter_map(Value::as_str).collect());
    }
    let parts = schema.get("oneOf").and_then(Value::as_array)?;
    let mut words = Vec::new();
    for part in parts {
        match (part.get("const").and_then(Value::as_str), part.get("enum")) {
            (Some(word), _) => words.push(word),
            (None, Some(Value::Array(listed))) => {
                words.extend(listed.iter().filter_map(Value::as_str));
            }
            _ => return None,
        }
    }
    Some(words)
}

fn table_shape(schema: &Value) -> Shape<'_> {
    if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
        let required = schema.get("required").and_then(Value::as_array);
        let required = required
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        return Shape::Table {
            properties,
            required,
        };
    }
    match schema.get("additionalProperties") {
        Some(inner @ Value::Object(_)) => Shape::Named(inner),
        _ => Shape::Free,
    }
}

fn fits(node: &Node, shape: &Shape<'_>) -> bool {
    let Kind::Leaf(value) = &node.kind else {
        return matches!(shape, Shape::Free);
    };
    match (shape, value) {
        (Shape::Free, _)
        | (Shape::Text, toml::Value::String(_))
        | (Shape::Flag, toml::Value::Boolean(_))
        | (Shape::Number, toml::Value::Integer(_)) => true,
        (Shape::Words(words), toml::Value::String(word)) => words.contains(&word.as_str()),
        (Shape::Number, toml::Value::Float(number)) => number.is_finite(),
        (Shape::Whole { largest }, toml::Value::Integer(number)) => (0..=*largest).contains(number),
        _ => false,
    }
}

fn wrong_type(key: &str, node: &Node, shape: &Shape<'_>) -> Complaint {
    let found = shortened(&node.to_toml().to_string());
    let (expected, cure) = expectation(shape, &found);
    let found_kind = match &node.kind {
        Kind::Table(_) => "a table",
        Kind::Array(_) => "a list",
        Kind::Leaf(toml::Value::String(_)) => "text",
        Kind::Leaf(toml::Value::Integer(_)) => "a whole number",
        Kind::Leaf(toml::Value::Float(_)) => "a number",
        Kind::Leaf(toml::Value::Boolean(_)) => "true or false",
        Kind::Leaf(_) => "a date",
    };
    Complaint {
        what: format!("{key} must be {expected}"),
        why: format!("it is {found_kind}, {found}"),
        cure,
        origin: node.origin.clone(),
    }
}

fn expectation(shape: &Shape<'_>, found: &str) -> (String, String) {
    match shape {
        Shape::Words(words) => {
            let near = nearest(found.trim_matches('"'), words.iter().copied());
            let listed = words.join(", ");
            let cure = near.map_or_else(
                || format!("write one of them, in quotes: {listed}"),
                |near| format!("did you mean \"{near}\"?"),
            );
            (format!("one of {listed}"), cure)
        }
        Shape::Whole { largest } => (
            match *largest {
                i64::MAX => "a whole number and not negative".into(),
                largest => format!("a whole number, not negative and at most {largest}"),
            },
            "write a number without quotes and without a point, for example 8".into(),
        ),
        Shape::Number => (
            "a number".into(),
            "write a finite number without quotes, for example 0.1".into(),
        ),
        Shape::Flag => (
            "true or false".into(),
            "write true or false, without quotes".into(),
        ),
        Shape::Text => ("text".into(), "write it in quotes".into()),
        Shape::List(_) => (
            "a list".into(),
            "write it in brackets, for example [\"a\", \"b\"]".into(),
        ),
        _ => (
            "a table".into(),
            "write it as a [table] with keys of its own".into(),
        ),
    }
}

fn missing_key(table: &str, name: &str, properties: &Map<String, Value>, at: &Origin) -> Complaint {
    let meaning = properties
        .get(name)
        .and_then(|schema| schema.get("description"));
    let meaning = meaning
        .and_then(Value::as_str)
        .unwrap_or("it has no default");
    let first = meaning
        .lines()
        .next()
        .unwrap_or_default()
        .trim_end_matches('.');
    Complaint {
        what: format!("{} is missing", join(table, name)),
        why: format!("it has no default ({first})"),
        cure: format!("add `{name} = ...` there; `mks2 config schema` says what it may be"),
        origin: at.clone(),
    }
}

/// The candidate that a typing error probably meant.
pub(super) fn nearest<'a>(
    name: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    let score = |candidate: &str| strsim::normalized_damerau_levenshtein(name, candidate);
    candidates
        .map(|candidate| (score(candidate), candidate))
        .filter(|(score, _)| *score >= 0.6)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

pub(super) fn listed<'a>(names: impl Iterator<Item = &'a String>) -> String {
    names.map(String::as_str).collect::<Vec<_>>().join(", ")
}

pub(super) fn join(table: &str, name: &str) -> String {
    if table.is_empty() {
        name.to_owned()
    } else {
        format!("{table}.{name}")
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((cut, _)) => format!("{} ...", &text[..cut]),
        None => text.to_owned(),
    }
}
