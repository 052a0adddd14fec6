//! What chat templates take from Python and from transformers, beyond Jinja.

use std::fmt::Write as _;

use chrono::{DateTime, Local};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

use super::json;

/// What a template says of a dialogue that it does not take.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Raised(pub(super) String);

/// What a template has said, if it was that.
pub(super) fn raised(error: &Error) -> Option<&Raised> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(raised) = error.downcast_ref() {
            return Some(raised);
        }
        next = error.source();
    }
    None
}

/// Gives an environment what templates may use.
pub(super) fn prepare(environment: &mut Environment<'static>, now: fn() -> DateTime<Local>) {
    environment.set_unknown_method_callback(method);
    environment.add_filter("trim", trim);
    environment.add_filter("tojson", json::filter);
    environment.add_function("raise_exception", raise);
    environment.add_function("strftime_now", move |format: &str| {
        let mut text = String::new();
        // It fails for what is no format.
        match write!(text, "{}", now().format(format)) {
            Ok(()) => Ok(text),
            Err(_) => Err(refused(format!("'{format}' is no format of a time"))),
        }
    });
}

fn raise(words: &Value) -> Result<Value, Error> {
    let raised = Raised(words.to_string());
    Err(Error::new(ErrorKind::InvalidOperation, "raised by the template").with_source(raised))
}

pub(super) fn refused(why: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, why)
}

/// The text without the tags of transformers that mark what a model is trained on: `{% generation %}` and
/// `{% endgeneration %}`. Names that are set between them stay there, as in a block of `with`.
pub(super) fn without_marks(template: &str) -> String {
    let mut text = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        text += before;
        let sign = tag.strip_prefix(['-', '+']).unwrap_or(tag);
        let word = sign.trim_start();
        text += &tag[..tag.len() - word.len()];
        let (name, put) = match word.strip_prefix("end") {
            Some(word) => (word, "endwith"),
            None => (word, "with"),
        };
        let behind = name.strip_prefix("generation").filter(|behind| {
            let end = behind.trim_start();
            let end = end.strip_prefix(['-', '+']).unwrap_or(end);
            end.starts_with("%}")
        });
        rest = match behind {
            Some(behind) => {
                text += put;
                behind
            }
            None => word,
        };
    }
    text + rest
}

/// White space as Python has it.
fn is_space(letter: char) -> bool {
    letter.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&letter)
}

/// The filter `trim`.
fn trim(text: &Value, letters: Option<&str>) -> String {
    let text = text.to_string();
    match letters {
        Some(letters) => text.trim_matches(|letter| letters.contains(letter)),
        None => text.trim_matches(is_space),
    }
    .to_owned()
}

/// Methods of Python's values.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let (Some(text), []) = (value.as_str(), args) {
        match name {
            "strip" => return Ok(text.trim_matches(is_space).into()),
            "lstrip" => return Ok(text.trim_start_matches(is_space).into()),
            "rstrip" => return Ok(text.trim_end_matches(is_space).into()),
            "split" => {
                let parts = text.split(is_space).filter(|part| !part.is_empty());
                return Ok(parts.map(Value::from).collect());
            }
            _ => {}
        }
    }
    pycompat::unknown_method_callback(state, value, name, args)
}
