//! `/v1/chat/completions`: a question to a model that was trained here, a dialogue with a published one.

use std::sync::atomic::{AtomicBool, Ordering};

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use mks2_proto::generate::Prompt;
use serde::Deserialize;
use serde_json::{Value, json};

use super::completions::Drawing;
use super::messages::Message;
use super::refusal::Refusal;
use super::reply::{self, Part, Stop, Streaming, Usage};
use super::request::Fields;
use super::{Model, Server, Shared};

/// What is asked.
struct Request {
    messages: Vec<Message>,
    max_tokens: Option<u32>,
    drawing: Drawing,
    stop: Vec<String>,
}

#[derive(Deserialize)]
struct ResponseFormat {
    #[serde(rename = "type")]
    kind: String,
}

impl Request {
    fn of(fields: &mut Fields) -> Result<Self, Refusal> {
        if fields.is("logprobs")? {
            let message = "logprobs are given by /v1/completions alone";
            return Err(Refusal::field("logprobs", message));
        }
        for name in ["tools", "functions"] {
            let list: Option<Vec<Value>> = fields.take(name, "a list")?;
            if list.is_some_and(|list| !list.is_empty()) {
                return Err(Refusal::field(name, format!("{name} are not supported")));
            }
        }
        let right = "an object with a type";
        let format: Option<ResponseFormat> = fields.take("response_format", right)?;
        if format.is_some_and(|format| format.kind != "text") {
            let message = "response_format other than text is not supported";
            return Err(Refusal::field("response_format", message));
        }
        let right = "a list of objects with a role and content, which is a text, or a list of \
                     {\"type\": \"text\", \"text\": ...} and {\"type\": \"image_url\", \
                     \"image_url\": {\"url\": ...}}";
        let most = fields.count("max_tokens")?;
        Ok(Self {
            messages: fields.need("messages", right)?,
            max_tokens: fields.count("max_completion_tokens")?.or(most),
            drawing: Drawing::of(fields)?,
            stop: Stop::of(fields)?,
        })
    }

    async fn prompt(self, server: &Server) -> Result<Prompt, Refusal> {
        let sampling = self.drawing.sampling(0)?;
        let (what, picture) = server.form.prompt(self.messages).await?;
        can_be_asked(&server.model, picture.as_ref())?;
        Ok(Prompt {
            what,
            picture,
            max_tokens: self.max_tokens,
            sampling,
            stop: self.stop,
            ..Prompt::default()
        })
    }
}

/// Whether the model has eyes for this.
fn can_be_asked(model: &Model, picture: Option<&String>) -> Result<(), Refusal> {
    if picture.is_some() && !model.sees {
        let message =
            "this model cannot be shown pictures: nothing connects a visual encoder to it";
        return Err(Refusal::field("messages", message));
    }
    Ok(())
}

pub(super) async fn complete(
    State(server): Shared,
    mut fields: Fields,
) -> Result<Response, Refusal> {
    server.is_called(&mut fields)?;
    let streaming = Streaming::of(&mut fields)?;
    let prompt = Request::of(&mut fields)?.prompt(&server).await?;
    let mut answers = server.hub.ask_all(vec![prompt], "messages").await?;
    let (label, created) = (reply::label(), super::now());
    let name = server.model.name.clone();
    let object = move |kind: &str, choices: Value| {
        json!({
            "id": format!("chatcmpl-{label}"),
            "object": kind,
            "created": created,
            "model": name,
            "choices": choices,
        })
    };
    if let Some(streaming) = streaming {
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
        return reply::stream(answers, streaming, shape, usage).await;
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
