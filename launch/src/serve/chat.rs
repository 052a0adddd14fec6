//! `/v1/chat/completions`: one question, with a picture or without.
//!
//! What is trained here answers single questions: there is no form in which a dialogue was trained.
//! Dialogues are refused, and so is what belongs to none, instead of being put together somehow.

use std::sync::atomic::{AtomicBool, Ordering};

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::response::{IntoResponse, Response};
use mks2_proto::generate::{Prompt, What};
use serde::Deserialize;
use serde_json::{Value, json};

use super::completions::Drawing;
use super::refusal::Refusal;
use super::reply::{self, Part, Stop, StreamOptions, Usage};
use super::{Model, Shared};

/// What is asked.
#[derive(Deserialize)]
pub(super) struct Request {
    model: Option<String>,
    messages: Vec<Message>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    #[serde(flatten)]
    drawing: Drawing,
    stop: Option<Stop>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    logprobs: Option<bool>,
    tools: Option<Vec<Value>>,
    functions: Option<Vec<Value>>,
    response_format: Option<ResponseFormat>,
}

#[derive(Deserialize)]
struct ResponseFormat {
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct Message {
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

impl Request {
    fn prompt(self) -> Result<Prompt, Refusal> {
        if self.logprobs.unwrap_or(false) {
            let message = "logprobs are given by /v1/completions alone";
            return Err(Refusal::field("logprobs", message));
        }
        for (name, list) in [("tools", self.tools), ("functions", self.functions)] {
            if list.is_some_and(|list| !list.is_empty()) {
                return Err(Refusal::field(name, format!("{name} are not supported")));
            }
        }
        if self
            .response_format
            .is_some_and(|format| format.kind != "text")
        {
            let message = "response_format other than text is not supported";
            return Err(Refusal::field("response_format", message));
        }
        let sampling = self.drawing.sampling(0)?;
        let (text, picture) = question(self.messages)?;
        Ok(Prompt {
            what: What::Text(text),
            picture,
            max_tokens: self.max_completion_tokens.or(self.max_tokens),
            sampling,
            stop: Stop::texts(self.stop)?,
            ..Prompt::default()
        })
    }
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
    let parts = match message.content {
        Content::Text(text) => return Ok((text, None)),
        Content::Parts(parts) => parts,
    };
    let (mut texts, mut picture) = (Vec::new(), None);
    for part in parts {
        match part {
            ContentPart::Text { text } => texts.push(text),
            ContentPart::ImageUrl { image_url } => {
                if picture.replace(in_base64(image_url.url)?).is_some() {
                    let message = "there is more than one picture";
                    return Err(Refusal::field("messages", message));
                }
            }
        }
    }
    Ok((texts.join("\n"), picture))
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

/// Whether the model has a form for this.
fn can_be_asked(model: &Model, prompt: &Prompt) -> Result<(), Refusal> {
    if !model.answers {
        let message = "chat templates of published models are not supported: put the whole text \
                       together and give it to /v1/completions";
        return Err(Refusal::field("messages", message));
    }
    if prompt.picture.is_some() && !model.sees {
        let message =
            "this model cannot be shown pictures: nothing connects a visual encoder to it";
        return Err(Refusal::field("messages", message));
    }
    Ok(())
}

pub(super) async fn complete(
    State(server): Shared,
    request: Result<Json<Request>, JsonRejection>,
) -> Result<Response, Refusal> {
    let Json(request) = request?;
    server.is_called(request.model.as_deref())?;
    let is_stream = request.stream.unwrap_or(false);
    let options = request.stream_options.unwrap_or_default();
    let prompt = request.prompt()?;
    can_be_asked(&server.model, &prompt)?;
    let mut answers = server.hub.ask_all(vec![prompt]).await?;
    let label = answers[0].label();
    let (name, created) = (server.model.name.clone(), server.model.created);
    let object = move |kind: &str, choices: Value| {
        json!({
            "id": format!("chatcmpl-{label}"),
            "object": kind,
            "created": created,
            "model": name,
            "choices": choices,
        })
    };
    if is_stream {
        let of_usage = object.clone();
        let is_begun = AtomicBool::new(false);
        let shape = move |_, part| {
            let (mut delta, reason) = match part {
                Part::Text(text) => (json!({"content": text}), None),
                Part::End(end) => (json!({}), Some(reply::reason(end))),
            };
            if !is_begun.swap(true, Ordering::Relaxed) {
                delta["role"] = json!("assistant");
            }
            let choice = json!([{"index": 0, "delta": delta, "finish_reason": reason}]);
            object("chat.completion.chunk", choice)
        };
        let usage = move |usage: Usage| {
            let mut object = of_usage("chat.completion.chunk", json!([]));
            object["usage"] = usage.json();
            object
        };
        return Ok(reply::stream(answers, options, shape, usage));
    }
    let Some(answer) = answers.pop() else {
        return Err(Refusal::closed());
    };
    let complete = reply::complete(answer).await?;
    let choice = json!([{
        "index": 0,
        "message": {"role": "assistant", "content": complete.text},
        "finish_reason": reply::reason(complete.end),
    }]);
    let mut object = object("chat.completion", choice);
    object["usage"] = complete.usage.json();
    Ok(Json(object).into_response())
}

#[cfg(test)]
mod tests {
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
