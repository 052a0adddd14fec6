//! Rows of JSON, each with its place.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{Result, TaskError};
use crate::row::Row;

/// A file of data, for messages.
#[derive(Clone, Copy)]
pub(super) struct File<'a> {
    pub(super) name: &'a str,
}

impl File<'_> {
    /// The whole is wrong.
    pub(super) fn refuse(self, why: impl Into<String>) -> TaskError {
        TaskError::Data {
            file: self.name.to_owned(),
            why: why.into(),
        }
    }

    /// One row is.
    pub(super) fn refuse_row(self, at: impl Into<String>, why: impl Into<String>) -> TaskError {
        TaskError::Row {
            file: self.name.to_owned(),
            at: at.into(),
            why: why.into(),
        }
    }

    /// The file as JSON.
    pub(super) fn json(self, bytes: &[u8]) -> Result<Value> {
        serde_json::from_slice(bytes)
            .map_err(|error| self.refuse(format!("it is no JSON: {error}")))
    }

    /// The lists of the file's object, row by row; messages call a row of `images` `images, row 3`.
    pub(super) fn list<T: DeserializeOwned>(self, whole: &mut Value, key: &str) -> Result<Vec<T>> {
        let Some(Value::Array(rows)) = whole.get_mut(key).map(Value::take) else {
            return Err(self.refuse(format!("it has no list \"{key}\"")));
        };
        let typed = (1..).zip(rows).map(|(number, row)| {
            serde_json::from_value(row)
                .map_err(|error| self.refuse_row(format!("{key}, row {number}"), error.to_string()))
        });
        typed.collect()
    }

    /// Objects, one a line or in one list, each with its place.
    pub(super) fn objects(self, bytes: &[u8]) -> Result<Vec<(String, Map<String, Value>)>> {
        let text = std::str::from_utf8(bytes)
            .map_err(|error| self.refuse(format!("it is no text: {error}")))?;
        let values: Vec<(String, Value)> = if text.trim_start().starts_with('[') {
            let Value::Array(rows) = self.json(bytes)? else {
                return Err(self.refuse("it is no list"));
            };
            let named = (1..).zip(rows).map(|(n, row)| (format!("row {n}"), row));
            named.collect()
        } else {
            let lines = (1..).zip(text.lines());
            let lines = lines.filter(|(_, line)| !line.trim().is_empty());
            let parsed = lines.map(|(number, line)| {
                let at = format!("line {number}");
                let value = serde_json::from_str(line);
                let value = value.map_err(|error| self.refuse_row(&at, error.to_string()))?;
                Ok((at, value))
            });
            parsed.collect::<Result<_>>()?
        };
        let objects = values.into_iter().map(|(at, value)| match value {
            Value::Object(fields) => Ok((at, fields)),
            _ => Err(self.refuse_row(at, "it is no object")),
        });
        objects.collect()
    }
}

/// An object as a row: `question`, `answer` and `caption` are texts of their own, all else is metadata.
pub(super) fn row(index: u64, mut fields: Map<String, Value>) -> Row {
    let mut text = |name: &str| match fields.get(name) {
        Some(Value::String(_)) => fields
            .remove(name)
            .and_then(|text| text.as_str().map(str::to_owned)),
        _ => None,
    };
    let (question, answer, caption) = (text("question"), text("answer"), text("caption"));
    let key = match fields.get("id") {
        Some(Value::String(id)) => id.clone(),
        Some(Value::Number(id)) => id.to_string(),
        _ => (index + 1).to_string(),
    };
    Row {
        index,
        key,
        image: None,
        caption,
        question,
        answer,
        metadata: fields,
    }
}
