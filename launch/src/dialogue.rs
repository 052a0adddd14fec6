//! Dialogues as one text, by the chat template of a published model: Jinja as transformers (5.23) renders
//! it for `apply_chat_template`.
//!
//! | module | what |
//! |---|---|
//! | [`python`] | what templates take from Python and from transformers |
//! | [`json`] | the filter `tojson` |
//!
//! A template comes with a model that somebody else has published. It sees the dialogue and the names of
//! special tokens, can neither read nor reach anything else, and has [`FUEL`] to come to an end.

mod json;
mod python;

use std::thread::Builder;

use chrono::{DateTime, Local};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value, context};
use mks2_dataset::pretrained::Folder;
use mks2_dataset::pretrained::chat::{self, ChatTemplate};
use mks2_proto::failure::{ExitCode, Failure};

use python::Raised;

/// What a template may do for one dialogue: instructions, and pieces of 64 bytes of all that it makes on its
/// way. A dialogue of a mebibyte takes about a fifth.
const FUEL: u64 = 1_000_000;
/// How deep macros may go: far from what the stack of a thread has room for.
const DEPTH: usize = 100;
/// Bytes of the stack on which a template works: lists within lists are let go one within the other, and there
/// is fuel for some hundred thousand of them. Only what is used is taken.
const STACK: usize = 512 << 20;
/// The name of the only template.
const NAME: &str = "chat";

/// A message of a dialogue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    /// `system`, `user` or `assistant`; the template decides which it takes.
    pub(crate) role: String,
    pub(crate) content: String,
}

impl Message {
    /// What a person says.
    pub(crate) fn of_user(content: impl Into<String>) -> Self {
        Self {
            role: "user".into(),
            content: content.into(),
        }
    }
}

/// A chat template that can be applied.
#[derive(Debug)]
pub(crate) struct Template {
    environment: Environment<'static>,
    /// The special tokens by their names, and what else is the same for all dialogues.
    given: Value,
}

impl Template {
    /// The template of a folder; none where it has none.
    ///
    /// # Errors
    /// Storage (exit 5); a template that is damaged or no Jinja (8).
    pub(crate) async fn of(folder: &Folder) -> Result<Option<Self>, Failure> {
        let found = chat::read(folder).await?;
        found.map(|found| Self::new(found, Local::now)).transpose()
    }

    /// There is none.
    pub(crate) fn missing(folder: &Folder) -> Failure {
        Failure::checkpoint(
            "the model has no chat template",
            format!(
                "there is neither chat_template.jinja nor a chat_template in tokenizer_config.json in {}",
                folder.location()
            ),
            "name a model that was trained on dialogues, or give the whole text yourself",
        )
    }

    /// A template that is told the time by `now`.
    fn new(found: ChatTemplate, now: fn() -> DateTime<Local>) -> Result<Self, Failure> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        environment.set_syntax(
            syntax.map_err(|error| {
                Failure::internal("templates have no syntax", error.to_string())
            })?,
        );
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(DEPTH);
        python::prepare(&mut environment, now);
        let text = python::without_marks(&found.text);
        let added = environment.add_template_owned(NAME, text);
        added.map_err(|error| {
            Failure::checkpoint(
                "the model's chat template cannot be used",
                format!("{}: {}", found.file, words(&error)),
                "download the folder again, or correct the template",
            )
        })?;
        Ok(Self {
            environment,
            given: Value::from(found.tokens),
        })
    }

    /// The dialogue as one text, which ends where the model's answer begins. All special tokens stand in it.
    ///
    /// # Errors
    /// What the template says of a dialogue that it does not take, or that it does not come to an end (4).
    pub(crate) fn render(&self, dialogue: &[Message]) -> Result<String, Failure> {
        let messages = dialogue.iter().map(|message| {
            context! { role => message.role.as_str(), content => message.content.as_str() }
        });
        let messages: Vec<Value> = messages.collect();
        let given = context! {
            messages,
            tools => (),
            documents => (),
            add_generation_prompt => true,
            ..self.given.clone()
        };
        let work = || {
            let template = self.environment.get_template(NAME);
            let text = template.and_then(|template| template.render(given));
            text.map_err(|error| refused(&error))
        };
        std::thread::scope(|scope| {
            let thread = Builder::new().stack_size(STACK).spawn_scoped(scope, work);
            let thread = thread.map_err(|error| Failure::io("no thread for a dialogue", error))?;
            thread.join().unwrap_or_else(|_| {
                let why = "it has come upon a fault of the renderer";
                Err(Failure::internal("the dialogue has no text", why))
            })
        })
    }
}

/// A dialogue that has no text.
fn refused(error: &Error) -> Failure {
    let (why, cure) = if let Some(Raised(words)) = python::raised(error) {
        (words.clone(), "change the messages")
    } else if error.kind() == ErrorKind::OutOfFuel {
        let why = format!("it takes more than {FUEL} instructions or pieces of 64 bytes");
        (
            why,
            "shorten the dialogue, or look for a loop without end in the template",
        )
    } else {
        (words(error), "change the messages, or correct the template")
    };
    let what = "the model's chat template does not take this dialogue";
    Failure::new(ExitCode::Data, what, why, cure)
}

/// What is wrong with a template, and in which line.
fn words(error: &Error) -> String {
    let mut words = error.to_string();
    let mut below = std::error::Error::source(error);
    while let Some(error) = below {
        words = format!("{words}: {error}");
        below = error.source();
    }
    words
}

#[cfg(test)]
mod tests;
