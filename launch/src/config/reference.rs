//! Every key of the job file as Markdown tables, from the schema: `docs/settings.md`.

use serde_json::{Map, Value};

const HEADING: &str = "\
# Settings

Every key of the job file. This page is what `mks2 config reference` prints; a test keeps them the
same. How values are merged is in [configuration.md](configuration.md).
";

/// The page.
pub(super) fn render(schema: &Value) -> String {
    let mut page = Page {
        schema,
        text: HEADING.to_owned(),
    };
    page.table("Top of the file", schema);
    page.text
}

struct Page<'a> {
    schema: &'a Value,
    text: String,
}

impl<'a> Page<'a> {
    /// The table of a schema, then those of the tables inside it.
    fn table(&mut self, title: &str, schema: &'a Value) {
        let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
            return;
        };
        let required = schema.get("required").and_then(Value::as_array);
        let required: Vec<&str> = required
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let tables = self.tables_in(title, properties);
        let plain = properties
            .iter()
            .filter(|(key, _)| !tables.iter().any(|t| t.key == *key));
        let rows: Vec<String> = plain
            .map(|(key, inner)| {
                let default = default_of(inner, required.contains(&key.as_str()));
                let (kind, meaning) = (self.kind(inner), describe(inner));
                format!("| `{key}` | {kind} | {default} | {meaning} |\n")
            })
            .collect();
        if !rows.is_empty() {
            self.text.push_str(&format!("\n## {title}\n\n"));
            self.text
                .push_str("| key | value | default | meaning |\n|---|---|---|---|\n");
            self.text.extend(rows);
        }
        for table in tables {
            self.table(&table.title, table.schema);
        }
    }

    fn tables_in(&self, title: &str, properties: &'a Map<String, Value>) -> Vec<Inner<'a>> {
        let prefix = title.trim_matches(['`', '[', ']']);
        let prefix = if prefix.contains(' ') {
            String::new()
        } else {
            format!("{prefix}.")
        };
        let inner = |(key, property): (&'a String, &'a Value)| {
            let (schema, title) = if let Some(items) = property.get("items") {
                (items, format!("`[[{prefix}{key}]]`"))
            } else if let Some(named) = property.get("additionalProperties") {
                (named, format!("`[{prefix}{key}.NAME]`"))
            } else {
                (property, format!("`[{prefix}{key}]`"))
            };
            let schema = self.resolve(schema);
            schema.get("properties")?;
            Some(Inner { key, title, schema })
        };
        properties.iter().filter_map(inner).collect()
    }

    /// Follows a reference, also one that may be absent.
    fn resolve(&self, schema: &'a Value) -> &'a Value {
        let members = schema
            .get("anyOf")
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        let target = std::iter::once(schema)
            .chain(members)
            .find_map(|part| part.get("$ref").and_then(Value::as_str));
        let pointer = target.and_then(|target| target.strip_prefix('#'));
        pointer
            .and_then(|pointer| self.schema.pointer(pointer))
            .unwrap_or(schema)
    }

    fn kind(&self, schema: &'a Value) -> String {
        let resolved = self.resolve(schema);
        let words = resolved
            .get("oneOf")
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        let words: Vec<String> = words
            .filter_map(|word| Some(format!("`{}`", word.get("const")?)))
            .collect();
        if !words.is_empty() {
            return words.join(", ");
        }
        let name = match resolved.get("type") {
            Some(Value::Array(names)) => names.first().and_then(Value::as_str),
            Some(name) => name.as_str(),
            None => None,
        };
        match name {
            Some("string") => "text".into(),
            Some("integer") => "whole number".into(),
            Some("number") => "number".into(),
            Some("boolean") => "true or false".into(),
            Some("array") => match resolved.get("items") {
                Some(items) => format!("list of: {}", self.kind(items)),
                None => "list".into(),
            },
            _ => "table".into(),
        }
    }
}

/// A table inside a table.
struct Inner<'a> {
    key: &'a String,
    title: String,
    schema: &'a Value,
}

fn default_of(schema: &Value, required: bool) -> String {
    match schema.get("default") {
        _ if required => "required".into(),
        None | Some(Value::Null) => "none".into(),
        Some(Value::Object(table)) if table.is_empty() => "empty".into(),
        Some(value) => format!("`{value}`"),
    }
}

/// The documentation as one line; a bar would end its cell.
fn describe(schema: &Value) -> String {
    let text = schema
        .get("description")
        .and_then(Value::as_str)
        .unwrap_or_default();
    text.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .replace('|', "\\|")
}
