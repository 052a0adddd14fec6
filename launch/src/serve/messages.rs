//! Messages: what is said in a dialogue, and the forms in which a model takes it.
//!
//! What is trained here answers single questions: there is no form in which a dialogue was trained. What is
//! more than that, or belongs to none, is refused, instead of being put together somehow. A published
//! model comes with a form for dialogues, its chat template, or cannot be asked so.

use std::sync::Arc;
use std::time::Duration;

use mks2_dataset::pretrained::Folder;
use mks2_proto::failure::{ExitCode, Failure};
use mks2_proto::generate::What;
use serde::Deserialize;
use tokio::sync::Semaphore;

use super::refusal::Refusal;
use crate::dialogue::{self, Template};

/// Who may say something in a dialogue. What templates make of others cannot be said in messages of text.
const ROLES: [&str; 3] = ["system", "user", "assistant"];

/// Dialogues that become text at the same time.
static RENDERING: Semaphore = Semaphore::const_new(AT_ONCE);
const AT_ONCE: usize = 16;
/// How long one waits for its turn.
const PATIENCE: Duration = Duration::from_secs(10);

/// How a model takes messages.
#[derive(Clone, Debug)]
pub(super) enum Form {
    /// One question, as it was trained here.
    Question,
    /// A dialogue, by the chat template that it came with.
    Dialogue(Arc<Template>),
    /// Not at all, and why.
    Missing(String),
}

impl Form {
    /// The form for the model in `folder`, or for one that was trained here.
    ///
    /// # Errors
    /// When storage does not answer.
    pub(super) async fn of(folder: Option<&Folder>) -> Result<Self, Failure> {
        let Some(folder) = folder else {
            return Ok(Self::Question);
        };
        let missing =
            |failure: &Failure| Self::Missing(format!("{}: {}", failure.what, failure.why));
        match Template::of(folder).await {
            Ok(Some(template)) => Ok(Self::Dialogue(template.into())),
            Ok(None) => Ok(missing(&Template::missing(folder))),
            // Texts can be gone on from all the same.
            Err(failure) if failure.exit == ExitCode::Checkpoint => Ok(missing(&failure)),
            Err(failure) => Err(failure),
        }
    }

    /// The prompt that messages are, and its picture.
    ///
    /// # Errors
    /// Messages that have no such form.
    pub(super) async fn prompt(
        &self,
        messages: Vec<Message>,
    ) -> Result<(What, Option<String>), Refusal> {
        match self {
            Self::Question => {
                let (text, picture) = question(messages)?;
                Ok((What::Text(text), picture))
            }
            Self::Dialogue(template) => {
                let (messages, picture) = dialogue(messages)?;
                let template = Arc::clone(template);
                // Each takes a thread and its memory: a flood of dialogues waits.
                let turn = tokio::time::timeout(PATIENCE, RENDERING.acquire()).await;
                let Ok(Ok(permit)) = turn else {
                    return Err(Refusal::busy(1, AT_ONCE));
                };
                // Meanwhile others are answered.
                let text = tokio::task::spawn_blocking(move || {
                    let _permit = permit;
                    template.render(&messages)
                });
                let text = text.await;
                let text = text.map_err(|error| {
                    Failure::internal("the dialogue has no text", error.to_string())
                })?;
                Ok((What::Bare(text?), picture))
            }
            Self::Missing(why) => Err(Refusal::field(
                "messages",
                format!("{why}; put the whole text together and give it to /v1/completions"),
            )),
        }
    }
}

#[derive(Deserialize)]
pub(super) struct Message {
    role: String,
    content: Content,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<ContentPart>),
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum ContentPart {
    Text { text: String },
    ImageUrl { image_url: ImageUrl },
}

#[derive(Deserialize)]
struct ImageUrl {
    url: String,
}

/// The text and the picture of the only message.
fn question(messages: Vec<Message>) -> Result<(String, Option<String>), Refusal> {
    let single = <[Message; 1]>::try_from(messages);
    let [message] = single.map_err(|messages| {
        let message = format!(
            "there must be one message, of the user, and there are {}: the model answers single \
             questions",
            messages.len()
        );
        Refusal::field("messages", message)
    })?;
    if message.role != "user" {
        let message = format!("the message must be of the user, not of '{}'", message.role);
        return Err(Refusal::field("messages", message));
    }
    message.content.read()
}

/// The messages of a dialogue, and a picture in them.
fn dialogue(messages: Vec<Message>) -> Result<(Vec<dialogue::Message>, Option<String>), Refusal> {
    if messages.is_empty() {
        return Err(Refusal::field("messages", "there is no message"));
    }
    let (mut said, mut pictures) = (Vec::new(), Vec::new());
    for message in messages {
        if !ROLES.contains(&message.role.as_str()) {
            let why = format!(
                "messages are of {}, not of '{}'",
                ROLES.join(", "),
                message.role
            );
            return Err(Refusal::field("messages", why));
        }
        let (content, more) = message.content.read()?;
        pictures.extend(more);
        said.push(dialogue::Message {
            role: message.role,
            content,
        });
    }
    Ok((said, single(pictures)?))
}

impl Content {
    /// Its text and its pictures.
    fn read(self) -> Result<(String, Option<String>), Refusal> {
        let parts = match self {
            Self::Text(text) => return Ok((text, None)),
            Self::Parts(parts) => parts,
        };
        let (mut texts, mut pictures) = (Vec::new(), Vec::new());
        for part in parts {
            match part {
                ContentPart::Text { text } => texts.push(text),
                ContentPart::ImageUrl { image_url } => pictures.push(in_base64(image_url.url)?),
            }
        }
        Ok((texts.join("\n"), single(pictures)?))
    }
}

/// There may be one picture.
fn single(mut pictures: Vec<String>) -> Result<Option<String>, Refusal> {
    match pictures.len() {
        0 | 1 => Ok(pictures.pop()),
        _ => Err(Refusal::field("messages", "there is more than one picture")),
    }
}

/// The bytes of a `data:` URL.
fn in_base64(url: String) -> Result<String, Refusal> {
    let data = url
        .strip_prefix("data:")
        .and_then(|rest| rest.split_once(";base64,"));
    match data {
        Some((_, data)) => Ok(data.to_owned()),
        None => Err(Refusal::field(
            "messages",
            "a picture must come as a data: URL in base64; nothing is downloaded here",
        )),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn asked(messages: Value) -> Result<(String, Option<String>), String> {
        let messages = serde_json::from_value(messages).map_err(|error| error.to_string())?;
        question(messages).map_err(|refusal| refusal.body()["error"]["message"].to_string())
    }

    #[test]
    fn a_question_is_a_text_or_parts_with_a_picture() {
        let text = json!([{"role": "user", "content": "a fox?"}]);
        assert_eq!(asked(text), Ok(("a fox?".into(), None)));
        let picture =
            json!({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}});
        let parts = json!([{"role": "user", "content": [
            {"type": "text", "text": "what"}, picture.clone(), {"type": "text", "text": "is it?"},
        ]}]);
        assert_eq!(
            asked(parts),
            Ok(("what\nis it?".into(), Some("AAAA".into())))
        );
        let alone = json!([{"role": "user", "content": [picture.clone()]}]);
        assert_eq!(asked(alone), Ok((String::new(), Some("AAAA".into()))));
    }

    #[test]
    fn what_is_no_single_question_is_refused() {
        let user = json!({"role": "user", "content": "a"});
        let url = |url: &str| {
            json!([{"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": url}},
            ]}])
        };
        let two = json!([{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "data:;base64,AA"}},
            {"type": "image_url", "image_url": {"url": "data:;base64,AA"}},
        ]}]);
        for (messages, words) in [
            (json!([]), "there are 0"),
            (json!([user, user]), "there are 2"),
            (
                json!([{"role": "system", "content": "a"}]),
                "not of 'system'",
            ),
            (url("https://example.org/a.png"), "nothing is downloaded"),
            (url("data:image/png,AA"), "base64"),
            (two, "more than one picture"),
        ] {
            let refused = asked(messages).expect_err("refused");
            assert!(refused.contains(words), "{refused}");
        }
    }
}
