//! A row of a corpus, its fields by name, and text templates filled from them.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// One sample.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    /// Index in the corpus.
    pub index: u64,
    /// Name, unique in the corpus.
    pub key: String,
    /// The encoded picture, as it came (PNG, JPEG or WebP).
    pub image: Option<Bytes>,
    /// A description of the picture, or the text of a text-only row.
    pub caption: Option<String>,
    /// A question.
    pub question: Option<String>,
    /// The answer to the question.
    pub answer: Option<String>,
    /// Everything else that the source said.
    pub metadata: Map<String, Value>,
}

impl Row {
    /// A field by its name in templates: `key`, `caption`, `question`, `answer`, `id` (the
    /// metadata's, or else the key) or a name from the metadata. Numbers and truth values
    /// become text, lists of them are joined by commas; null and nested objects are no text.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<Cow<'_, str>> {
        let own = match name {
            "key" => Some(&self.key),
            "caption" => self.caption.as_ref(),
            "question" => self.question.as_ref(),
            "answer" => self.answer.as_ref(),
            _ => None,
        };
        own.map(|text| Cow::Borrowed(text.as_str()))
            .or_else(|| self.metadata.get(name).and_then(text_of))
            .or_else(|| (name == "id").then_some(Cow::Borrowed(self.key.as_str())))
    }

    /// blake3 of what the row holds, in hexadecimal: key, picture as it came, texts and metadata,
    /// each with its length, an absent field apart from an empty one, objects of the metadata in
    /// the order of their names. Its index plays no part: the same row in another corpus has the
    /// same digest.
    #[must_use]
    pub fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new_derive_key("mks2 row 1: digest");
        let mut add = |field: Option<&[u8]>| {
            hasher.update(&[u8::from(field.is_some())]);
            let bytes = field.unwrap_or_default();
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        add(Some(self.key.as_bytes()));
        add(self.image.as_deref());
        for text in [&self.caption, &self.question, &self.answer] {
            add(text.as_ref().map(String::as_bytes));
        }
        let sorted: BTreeMap<_, _> = self.metadata.iter().collect();
        for (name, value) in sorted {
            add(Some(name.as_bytes()));
            add(Some(canonical(value).as_bytes()));
        }
        hasher.finalize().to_hex().to_string()
    }

    /// Names that [`Row::field`] answers to.
    #[must_use]
    pub fn field_names(&self) -> Vec<String> {
        ["key", "caption", "question", "answer"]
            .into_iter()
            .map(str::to_owned)
            .chain(self.metadata.keys().cloned())
            .filter(|name| self.field(name).is_some())
            .collect()
    }
}

/// A value as compact JSON with the members of objects in the order of their names.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(members) => {
            let sorted: BTreeMap<_, _> = members.iter().collect();
            let member = |(name, value): (&String, &Value)| {
                format!("{}:{}", Value::String(name.clone()), canonical(value))
            };
            let members: Vec<String> = sorted.into_iter().map(member).collect();
            format!("{{{}}}", members.join(","))
        }
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(canonical).collect();
            format!("[{}]", items.join(","))
        }
        plain => plain.to_string(),
    }
}

/// A value as text, if it has a plain one.
fn text_of(value: &Value) -> Option<Cow<'_, str>> {
    match value {
        Value::String(text) => Some(Cow::Borrowed(text)),
        Value::Number(number) => Some(Cow::Owned(number.to_string())),
        Value::Bool(truth) => Some(Cow::Owned(truth.to_string())),
        Value::Array(items) => {
            let texts: Option<Vec<_>> = items.iter().map(text_of).collect();
            texts.map(|texts| Cow::Owned(texts.join(", ")))
        }
        Value::Null | Value::Object(_) => None,
    }
}

/// Fills a template such as `"a picture of the {name}"` from a row. `{{` and `}}` stand for
/// braces.
///
/// # Errors
/// [`Error::Template`] names the field and the row, or the brace that has no partner.
pub fn render(template: &str, row: &Row) -> Result<String> {
    let mut text = String::with_capacity(template.len() + 32);
    for piece in pieces(template)? {
        match piece {
            Piece::Text(part) => text.push_str(part),
            Piece::Field(name) => text.push_str(&row.field(name).ok_or_else(|| {
                let reason = format!("row {} ({}) has no field {name:?}", row.index, row.key);
                Error::Template {
                    template: template.to_owned(),
                    reason,
                }
            })?),
        }
    }
    Ok(text)
}

/// Names of the fields that a template needs, in order, with repetitions.
///
/// # Errors
/// [`Error::Template`] if a brace has no partner or a name is empty.
pub fn fields(template: &str) -> Result<Vec<String>> {
    let names = pieces(template)?
        .into_iter()
        .filter_map(|piece| match piece {
            Piece::Field(name) => Some(name.to_owned()),
            Piece::Text(_) => None,
        });
    Ok(names.collect())
}

/// A part of a template.
enum Piece<'a> {
    Text(&'a str),
    Field(&'a str),
}

fn pieces(template: &str) -> Result<Vec<Piece<'_>>> {
    let refuse = |reason: String| Error::Template {
        template: template.to_owned(),
        reason,
    };
    let mut pieces = Vec::new();
    let mut rest = template;
    while let Some(at) = rest.find(['{', '}']) {
        let (before, from) = rest.split_at(at);
        pieces.push(Piece::Text(before));
        if from.starts_with("{{") || from.starts_with("}}") {
            pieces.push(Piece::Text(&from[..1]));
            rest = &from[2..];
        } else if let Some(inside) = from.strip_prefix('{') {
            let end = inside
                .find('}')
                .ok_or_else(|| refuse("a `{` is never closed".into()))?;
            let name = inside[..end].trim();
            if name.is_empty() || name.contains('{') {
                return Err(refuse(format!("`{{{}}}` is no field name", &inside[..end])));
            }
            pieces.push(Piece::Field(name));
            rest = &inside[end + 1..];
        } else {
            return Err(refuse(
                "a `}` was never opened; write `}}` for a brace".into(),
            ));
        }
    }
    pieces.push(Piece::Text(rest));
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        let metadata = serde_json::json!({
            "name": "woman’s boot", "keywords": ["boot", "shoe"], "share": 0.901,
            "nothing": null, "nested": {"a": 1}, "flag": true,
        });
        Row {
            index: 7,
            key: "1f462".into(),
            caption: Some("a boot".into()),
            metadata: metadata.as_object().unwrap().clone(),
            ..Row::default()
        }
    }

    #[test]
    fn fields_come_from_columns_and_metadata() {
        let row = row();
        assert_eq!(row.field("key").unwrap(), "1f462");
        assert_eq!(row.field("id").unwrap(), "1f462");
        assert_eq!(row.field("caption").unwrap(), "a boot");
        assert_eq!(row.field("keywords").unwrap(), "boot, shoe");
        assert_eq!(row.field("share").unwrap(), "0.901");
        assert_eq!(row.field("flag").unwrap(), "true");
        for missing in ["question", "nothing", "nested", "surprise"] {
            assert_eq!(row.field(missing), None, "{missing}");
        }
        assert!(row.field_names().contains(&"name".to_owned()));
    }

    #[test]
    fn a_digest_tells_contents_apart_and_nothing_else() {
        let original = row().digest();
        assert_eq!(original.len(), 64);
        let moved = Row { index: 8, ..row() };
        assert_eq!(moved.digest(), original, "the place plays no part");
        let nested = |text: &str| Row {
            metadata: serde_json::from_str(text).unwrap(),
            ..row()
        };
        assert_eq!(
            nested(r#"{"b": {"y": [1, {"q": 2, "p": 3}], "x": 1}, "a": 2}"#).digest(),
            nested(r#"{"a": 2, "b": {"x": 1, "y": [1, {"p": 3, "q": 2}]}}"#).digest(),
            "the order of names plays no part"
        );
        let changes: [fn(&mut Row); 7] = [
            |row| row.key.push('x'),
            |row| row.image = Some(Bytes::new()),
            |row| row.caption = None,
            |row| row.caption = Some(String::new()),
            |row| row.question = row.caption.take(),
            |row| row.answer = Some("a boot".into()),
            |row| drop(row.metadata.insert("nothing".into(), Value::Bool(false))),
        ];
        let mut digests: Vec<String> = changes
            .iter()
            .map(|change| {
                let mut changed = row();
                change(&mut changed);
                changed.digest()
            })
            .chain([original])
            .collect();
        digests.sort_unstable();
        digests.dedup();
        assert_eq!(digests.len(), 8);
    }

    #[test]
    fn templates_are_filled() {
        let text = render("a picture of the {name} ({ keywords })", &row()).unwrap();
        assert_eq!(text, "a picture of the woman’s boot (boot, shoe)");
        assert_eq!(render("{{{key}}}", &row()).unwrap(), "{1f462}");
        assert_eq!(render("", &row()).unwrap(), "");
        assert_eq!(fields("{a} {{b}} {c}").unwrap(), ["a", "c"]);
    }

    #[test]
    fn a_template_that_does_not_fit_names_field_and_row() {
        let error = render("{colour}", &row()).unwrap_err().to_string();
        assert!(
            error.contains("colour") && error.contains("row 7 (1f462)"),
            "{error}"
        );
        for bad in ["{", "}", "{}", "{a", "a}", "{a{b}}"] {
            assert!(render(bad, &row()).is_err(), "{bad}");
        }
    }
}
