//! What a task file says.

use serde::{Deserialize, Serialize};

use super::{Result, TaskError};
use crate::row;

/// The kinds that there are.
const KINDS: &str = "multiple-choice, captions, retrieval and vqa";
/// Bytes of a name, so that a file can be called `samples_NAME.jsonl`.
const MOST_NAME: usize = 200;

/// A task file.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Settings {
    /// The likeliest of several continuations.
    MultipleChoice(MultipleChoice),
    /// Captions of pictures.
    Captions(Captions),
    /// Pictures to texts, and texts to pictures.
    Retrieval(Retrieval),
    /// Answers about pictures.
    Vqa(Vqa),
}

/// Questions with choices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MultipleChoice {
    /// What results are called; else the file's name.
    name: Option<String>,
    #[serde(default = "first_version")]
    version: String,
    /// JSON lines, or a JSON list.
    data: String,
    /// What is asked, as a template with fields of the row.
    #[serde(default = "question")]
    pub prompt: String,
    /// The field with the list of choices.
    #[serde(default = "choices")]
    pub choices: String,
    /// The field with the right one: its text, or its place from 0.
    #[serde(default = "answer")]
    pub answer: String,
    /// Stands between prompt and choice.
    #[serde(default = "space")]
    pub separator: String,
    /// Take prompts as they are, without the template of an experts stage.
    #[serde(default)]
    pub raw: bool,
}

/// Pictures with captions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Captions {
    /// What results are called; else the file's name.
    name: Option<String>,
    #[serde(default = "first_version")]
    version: String,
    /// COCO's or Flickr's caption file.
    data: String,
    /// The folder of the pictures.
    images: String,
    /// Of a file with several splits, this one.
    pub split: Option<String>,
    /// What a caption begins with; it does not belong to it.
    #[serde(default)]
    pub prompt: String,
    /// Tokens of a caption at most; else as many as the model has positions for.
    pub max_tokens: Option<u32>,
}

/// Pictures and texts that belong together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retrieval {
    /// What results are called; else the file's name.
    name: Option<String>,
    #[serde(default = "first_version")]
    version: String,
    /// COCO's or Flickr's caption file.
    data: String,
    /// The folder of the pictures.
    images: String,
    /// Of a file with several splits, this one.
    pub split: Option<String>,
    /// What is searched with, as a template with `{caption}`.
    #[serde(default = "caption")]
    pub text: String,
}

/// Questions about pictures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vqa {
    /// What results are called; else the file's name.
    name: Option<String>,
    #[serde(default = "first_version")]
    version: String,
    /// VQAv2's file of questions.
    data: String,
    /// Its file of annotations.
    annotations: String,
    /// The folder of the pictures.
    images: String,
    /// The name of a picture's file: `{image_id}`, or `{image_id:012}` with zeros to so many digits.
    #[serde(default = "picture")]
    pub file: String,
    /// What is asked, as a template with `{question}`.
    #[serde(default = "question")]
    pub prompt: String,
    /// Tokens of an answer at most.
    #[serde(default = "ten")]
    pub max_tokens: u32,
    /// Take prompts as they are, without the template of an experts stage.
    #[serde(default)]
    pub raw: bool,
}

impl Settings {
    /// Reads a task file, which messages call `file`.
    ///
    /// # Errors
    /// An unknown kind or key, or a template that is none.
    pub(super) fn parse(text: &[u8], file: &str) -> Result<Self> {
        let refuse = |why: String| TaskError::Settings {
            file: file.to_owned(),
            why,
        };
        let text = std::str::from_utf8(text).map_err(|error| refuse(error.to_string()))?;
        let mut keys: toml::Table =
            toml::from_str(text).map_err(|error| refuse(error.message().to_owned()))?;
        let kind = keys.remove("kind");
        let settings = match kind.as_ref().and_then(toml::Value::as_str) {
            Some("multiple-choice") => keys.try_into().map(Self::MultipleChoice),
            Some("captions") => keys.try_into().map(Self::Captions),
            Some("retrieval") => keys.try_into().map(Self::Retrieval),
            Some("vqa") => keys.try_into().map(Self::Vqa),
            other => {
                let found = other.map_or("it has no kind".into(), |kind| {
                    format!("kind is \"{kind}\"")
                });
                return Err(refuse(format!("{found}; there are {KINDS}")));
            }
        };
        let settings = settings.map_err(|error: toml::de::Error| {
            // A second line says which key.
            refuse(error.to_string().trim().replace('\n', ", "))
        })?;
        for template in settings.templates() {
            row::fields(template).map_err(|error| refuse(error.to_string()))?;
        }
        let most = match &settings {
            Self::Captions(settings) => settings.max_tokens,
            Self::Vqa(settings) => Some(settings.max_tokens),
            _ => None,
        };
        if most == Some(0) {
            return Err(refuse("max_tokens is 0".into()));
        }
        let name = settings.name(file);
        if name.contains(['/', '\0']) || name.len() > MOST_NAME {
            return Err(refuse(format!(
                "name has a '/' in it or more than {MOST_NAME} bytes: a file of samples is called after it"
            )));
        }
        Ok(settings)
    }

    /// The name of the task in the file at `location`.
    pub(super) fn name(&self, location: &str) -> String {
        let own = match self {
            Self::MultipleChoice(settings) => &settings.name,
            Self::Captions(settings) => &settings.name,
            Self::Retrieval(settings) => &settings.name,
            Self::Vqa(settings) => &settings.name,
        };
        let last = location.rsplit('/').next().unwrap_or(location);
        let stem = last.strip_suffix(".toml").unwrap_or(last);
        own.clone().unwrap_or_else(|| stem.to_owned())
    }

    /// The version of the task.
    #[must_use]
    pub fn version(&self) -> &str {
        match self {
            Self::MultipleChoice(settings) => &settings.version,
            Self::Captions(settings) => &settings.version,
            Self::Retrieval(settings) => &settings.version,
            Self::Vqa(settings) => &settings.version,
        }
    }

    /// Its word in a task file.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::MultipleChoice(_) => "multiple-choice",
            Self::Captions(_) => "captions",
            Self::Retrieval(_) => "retrieval",
            Self::Vqa(_) => "vqa",
        }
    }

    /// The files of data.
    pub(super) fn data(&self) -> Vec<&str> {
        match self {
            Self::MultipleChoice(settings) => vec![&settings.data],
            Self::Captions(settings) => vec![&settings.data],
            Self::Retrieval(settings) => vec![&settings.data],
            Self::Vqa(settings) => vec![&settings.data, &settings.annotations],
        }
    }

    /// The folder of pictures.
    pub(super) fn images(&self) -> Option<&str> {
        match self {
            Self::MultipleChoice(_) => None,
            Self::Captions(settings) => Some(&settings.images),
            Self::Retrieval(settings) => Some(&settings.images),
            Self::Vqa(settings) => Some(&settings.images),
        }
    }

    fn templates(&self) -> Vec<&str> {
        match self {
            Self::MultipleChoice(settings) => vec![&settings.prompt],
            Self::Captions(_) => Vec::new(),
            Self::Retrieval(settings) => vec![&settings.text],
            Self::Vqa(settings) => vec![&settings.prompt],
        }
    }
}

fn first_version() -> String {
    "1".into()
}
fn question() -> String {
    "{question}".into()
}
fn choices() -> String {
    "choices".into()
}
fn answer() -> String {
    "answer".into()
}
fn space() -> String {
    " ".into()
}
fn caption() -> String {
    "{caption}".into()
}
fn picture() -> String {
    "{image_id}.jpg".into()
}
fn ten() -> u32 {
    10
}
