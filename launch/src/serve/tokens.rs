//! The tokenizer, as evaluation harnesses ask for it.

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use mks2_proto::generate::{Ask, Event};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Shared;
use super::refusal::Refusal;

#[derive(Deserialize)]
pub(super) struct Tokenize {
    prompt: String,
    #[serde(default = "yes")]
    add_special_tokens: bool,
}

fn yes() -> bool {
    true
}

#[derive(Deserialize)]
pub(super) struct Detokenize {
    tokens: Vec<u32>,
}

pub(super) async fn tokenize(
    State(server): Shared,
    request: Result<Json<Tokenize>, JsonRejection>,
) -> Result<Json<Value>, Refusal> {
    let Json(request) = request?;
    let ask = |id| Ask::Tokenize {
        id,
        text: request.prompt,
        special: request.add_special_tokens,
    };
    let Event::Tokens { tokens, .. } = server.hub.ask_once(ask).await? else {
        return Err(Refusal::closed());
    };
    Ok(Json(json!({
        "count": tokens.len(),
        "max_model_len": server.model.positions,
        "tokens": tokens,
    })))
}

pub(super) async fn detokenize(
    State(server): Shared,
    request: Result<Json<Detokenize>, JsonRejection>,
) -> Result<Json<Value>, Refusal> {
    let Json(request) = request?;
    let ask = |id| Ask::Detokenize {
        id,
        tokens: request.tokens,
    };
    let Event::Plain { text, .. } = server.hub.ask_once(ask).await? else {
        return Err(Refusal::closed());
    };
    Ok(Json(json!({ "prompt": text })))
}

pub(super) async fn info(State(server): Shared) -> Json<Value> {
    Json(json!({
        "eos_token": server.model.end,
        "bos_token": server.model.begin,
        "pad_token": server.model.end,
        "model_max_length": server.model.positions,
    }))
}
