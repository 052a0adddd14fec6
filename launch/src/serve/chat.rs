//! `/v1/chat/completions`: a question to a model that was trained here, a dialogue with a published one.

use std::sync::atomic::{AtomicBool, Ordering};

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::response::{IntoResponse, Response};
use mks2_proto::generate::Prompt;
use serde::Deserialize;
use serde_json::{Value, json};

use super::completions::Drawing;
use super::messages::Message;
use super::refusal::Refusal;
use super::reply::{self, Part, Stop, StreamOptions, Usage};
use super::{Model, Server, Shared};

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

impl Request {
    async fn prompt(self, server: &Server) -> Result<Prompt, Refusal> {
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
        let (what, picture) = server.form.prompt(self.messages).await?;
        can_be_asked(&server.model, picture.as_ref())?;
        Ok(Prompt {
            what,
            picture,
            max_tokens: self.max_completion_tokens.or(self.max_tokens),
            sampling,
            stop: Stop::texts(self.stop)?,
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
    request: Result<Json<Request>, JsonRejection>,
) -> Result<Response, Refusal> {
    let Json(request) = request?;
    server.is_called(request.model.as_deref())?;
    let is_stream = request.stream.unwrap_or(false);
    let options = request.stream_options.unwrap_or_default();
    let prompt = request.prompt(&server).await?;
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
