//! A sample as it comes from a source, and the checks that make it a row or a bad sample.

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::picture::{self, Limits};
use crate::row::Row;

/// Kinds of reasons besides those of [`picture::PictureError::kind`].
pub mod reason {
    /// Neither a caption nor a question.
    pub const CAPTION_MISSING: &str = "caption_missing";
    /// A question without an answer, and no caption.
    pub const ANSWER_MISSING: &str = "answer_missing";
    /// A sample of a tar without a picture, or a picture's path without a file.
    pub const PICTURE_MISSING: &str = "picture_missing";
    /// A picture's file that can not be read.
    pub const PICTURE_UNREADABLE: &str = "picture_unreadable";
    /// Text that is not UTF-8.
    pub const NOT_UTF8: &str = "not_utf8";
    /// Text, metadata or a line above its size limit.
    pub const TEXT_TOO_LONG: &str = "text_too_long";
    /// Metadata that is no JSON object.
    pub const JSON_BROKEN: &str = "json_broken";
    /// A field that should be text and is not.
    pub const FIELD_NOT_TEXT: &str = "field_not_text";
    /// A key that an earlier row has.
    pub const DUPLICATE_KEY: &str = "duplicate_key";
    /// A second picture, caption or metadata of one sample.
    pub const DUPLICATE_ENTRY: &str = "duplicate_entry";
    /// A path that leaves its root.
    pub const PATH_TRAVERSAL: &str = "path_traversal";
    /// A link, device or the like inside a tar.
    pub const NOT_A_FILE: &str = "not_a_file";
    /// A tar header that is damaged; what it described is skipped.
    pub const TAR_HEADER: &str = "tar_header_damaged";
    /// A tar that ends inside an entry.
    pub const TAR_TRUNCATED: &str = "tar_truncated";
}

/// Where a sample or an entry is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Place {
    /// The source, as the user named it.
    #[serde(serialize_with = "as_text")]
    pub(crate) source: Arc<str>,
    /// Name of the tar entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) entry: Option<String>,
    /// Line, counted from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) line: Option<u64>,
    /// Byte in the source where it begins.
    pub(crate) offset: u64,
}

fn as_text<S: serde::Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

/// A sample that is left out: one line of `quarantine.jsonl`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Bad {
    /// Where it is.
    #[serde(flatten)]
    pub(crate) place: Place,
    /// Its key, if it got that far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<Box<str>>,
    /// The kind of reason.
    pub(crate) reason: &'static str,
    /// The reason in words.
    pub(crate) detail: Box<str>,
}

impl Bad {
    /// A bad sample or entry without a key.
    pub(crate) fn new(place: Place, reason: &'static str, detail: impl Into<Box<str>>) -> Self {
        Self {
            place,
            key: None,
            reason,
            detail: detail.into(),
        }
    }

    /// With its key.
    pub(crate) fn of(mut self, key: &str) -> Self {
        self.key = Some(key.into());
        self
    }
}

/// The part of a sample that is not yet read or parsed.
#[derive(Clone, Debug)]
pub(crate) enum Fields {
    /// The bytes of a `.json` entry, if there is one.
    Raw(Option<Bytes>),
    /// A parsed line.
    Parsed(Map<String, Value>),
}

/// A sample as it comes from a source.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) place: Place,
    pub(crate) key: String,
    /// The encoded picture.
    pub(crate) picture: Option<Bytes>,
    /// The bytes of the `.txt` entry.
    pub(crate) text: Option<Bytes>,
    pub(crate) fields: Fields,
    /// Whether a sample without a picture is bad.
    pub(crate) needs_picture: bool,
}

/// A reason with its words; the place is added by the caller.
type Refusal = (&'static str, String);

impl Sample {
    /// Checks everything, the picture by decoding it. Takes CPU time: for the blocking pool.
    pub(crate) fn into_row(self, limits: &Limits) -> Result<Row, Bad> {
        let (place, key) = (self.place.clone(), self.key.clone());
        let refuse = |(reason, detail)| Bad::new(place, reason, detail).of(&key);
        self.check(limits).map_err(refuse)
    }

    fn check(self, limits: &Limits) -> Result<Row, Refusal> {
        let mut metadata = match self.fields {
            Fields::Parsed(fields) => fields,
            Fields::Raw(None) => Map::new(),
            Fields::Raw(Some(json)) => parse_object(&json)?,
        };
        let mut caption = None;
        if let Some(text) = &self.text {
            let text = std::str::from_utf8(text)
                .map_err(|error| (reason::NOT_UTF8, format!("the caption: {error}")))?;
            caption = filled(text);
        }
        if caption.is_none() {
            caption = lift(&mut metadata, "caption")?;
        }
        let question = lift(&mut metadata, "question")?;
        let answer = lift(&mut metadata, "answer")?;
        check_texts(caption.as_ref(), question.as_ref(), answer.as_ref())?;
        match &self.picture {
            Some(picture) => picture::verify(picture, limits)
                .map(drop)
                .map_err(|error| (error.kind(), error.to_string()))?,
            None if self.needs_picture => {
                return Err((
                    reason::PICTURE_MISSING,
                    "no .png, .jpg, .jpeg or .webp entry".into(),
                ));
            }
            None => {}
        }
        let image = self.picture;
        Ok(Row {
            index: 0,
            key: self.key,
            image,
            caption,
            question,
            answer,
            metadata,
        })
    }
}

fn check_texts(
    caption: Option<&String>,
    question: Option<&String>,
    answer: Option<&String>,
) -> Result<(), Refusal> {
    match (caption, question, answer) {
        (Some(_), _, _) | (None, Some(_), Some(_)) => Ok(()),
        (None, Some(_), None) => Err((
            reason::ANSWER_MISSING,
            "a question has no answer, and there is no caption".into(),
        )),
        (None, None, _) => Err((
            reason::CAPTION_MISSING,
            "neither a caption nor a question with an answer".into(),
        )),
    }
}

/// The first 128 bits of a key's hash, to remember the keys of a corpus in 16 bytes each: no two
/// keys meet by chance below 10^15 rows.
#[must_use]
pub fn short_hash(key: &str) -> u128 {
    let mut short = [0; 16];
    short.copy_from_slice(&blake3::hash(key.as_bytes()).as_bytes()[..16]);
    u128::from_le_bytes(short)
}

/// A JSON object from bytes.
pub(crate) fn parse_object(bytes: &[u8]) -> Result<Map<String, Value>, Refusal> {
    let text = std::str::from_utf8(bytes)
        .map_err(|error| (reason::NOT_UTF8, format!("the JSON: {error}")))?;
    match serde_json::from_str(text.trim_start_matches('\u{feff}')) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err((reason::JSON_BROKEN, "the JSON is not an object".into())),
        Err(error) => Err((reason::JSON_BROKEN, error.to_string())),
    }
}

/// Takes a text out of the metadata; null and blank texts count as missing.
pub(crate) fn lift(
    metadata: &mut Map<String, Value>,
    name: &str,
) -> Result<Option<String>, Refusal> {
    match metadata.remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(filled(&text)),
        Some(other) => {
            let kind = match other {
                Value::Array(_) => "a list",
                Value::Object(_) => "an object",
                Value::Bool(_) => "a truth value",
                _ => "a number",
            };
            Err((
                reason::FIELD_NOT_TEXT,
                format!("{name} is {kind}, not text"),
            ))
        }
    }
}

/// Text without blanks around it, unless nothing is left.
fn filled(text: &str) -> Option<String> {
    let text = text.trim_start_matches('\u{feff}').trim();
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(text: Option<&str>, json: Option<&str>) -> Sample {
        Sample {
            place: Place {
                source: "s.tar".into(),
                entry: None,
                line: None,
                offset: 512,
            },
            key: "k".into(),
            picture: None,
            text: text.map(|text| Bytes::from(text.to_owned())),
            fields: Fields::Raw(json.map(|json| Bytes::from(json.to_owned()))),
            needs_picture: false,
        }
    }

    fn row(text: Option<&str>, json: Option<&str>) -> Result<Row, &'static str> {
        sample(text, json)
            .into_row(&Limits::default())
            .map_err(|bad| bad.reason)
    }

    #[test]
    fn the_caption_comes_from_the_text_or_else_from_the_metadata() {
        let got = row(Some(" a cat\n"), Some(r#"{"caption": "other", "n": 1}"#)).unwrap();
        assert_eq!(got.caption.as_deref(), Some("a cat"));
        assert_eq!(got.metadata["caption"], "other");
        let got = row(Some("  "), Some(r#"{"caption": "from json"}"#)).unwrap();
        assert_eq!(got.caption.as_deref(), Some("from json"));
        assert!(got.metadata.is_empty());
    }

    #[test]
    fn a_question_with_an_answer_needs_no_caption() {
        let got = row(
            None,
            Some(r#"{"question": "q?", "answer": "a", "caption": null}"#),
        )
        .unwrap();
        assert_eq!(
            (got.question.as_deref(), got.answer.as_deref()),
            (Some("q?"), Some("a"))
        );
        assert_eq!(got.caption, None);
    }

    #[test]
    fn what_is_missing_or_wrong_has_its_own_reason() {
        let cases = [
            (None, None, reason::CAPTION_MISSING),
            (Some("\n"), Some("{}"), reason::CAPTION_MISSING),
            (None, Some(r#"{"answer": "a"}"#), reason::CAPTION_MISSING),
            (None, Some(r#"{"question": "q?"}"#), reason::ANSWER_MISSING),
            (Some("ok"), Some("{broken"), reason::JSON_BROKEN),
            (Some("ok"), Some("[1]"), reason::JSON_BROKEN),
            (None, Some(r#"{"caption": 3}"#), reason::FIELD_NOT_TEXT),
        ];
        for (text, json, expected) in cases {
            assert_eq!(row(text, json).unwrap_err(), expected, "{text:?} {json:?}");
        }
        let mut latin = sample(None, None);
        latin.text = Some(Bytes::from_static(b"caf\xe9"));
        let bad = latin.into_row(&Limits::default()).unwrap_err();
        assert_eq!(
            (bad.reason, bad.key.as_deref()),
            (reason::NOT_UTF8, Some("k"))
        );
        let mut empty = sample(Some("ok"), None);
        empty.needs_picture = true;
        let bad = empty.into_row(&Limits::default()).unwrap_err();
        assert_eq!(bad.reason, reason::PICTURE_MISSING);
    }

    #[test]
    fn a_quarantine_line_has_place_reason_and_detail() {
        let bad = row_line(&sample(None, None).into_row(&Limits::default()).unwrap_err());
        assert_eq!(bad["source"], "s.tar");
        assert_eq!(bad["offset"], 512);
        assert_eq!(bad["key"], "k");
        assert_eq!(bad["reason"], "caption_missing");
        assert!(bad["detail"].is_string());
    }

    fn row_line(bad: &Bad) -> Value {
        serde_json::to_value(bad).unwrap()
    }
}
