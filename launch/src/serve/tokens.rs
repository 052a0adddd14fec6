//! The tokenizer, as evaluation harnesses ask for it.

use axum::Json;
use axum::extract::State;
use mks2_proto::generate::{Ask, Event};
use serde_json::{Value, json};

use super::Shared;
use super::refusal::Refusal;
use super::request::Fields;

pub(super) async fn tokenize(
    State(server): Shared,
    mut fields: Fields,
) -> Result<Json<Value>, Refusal> {
    let text = fields.need("prompt", "a text")?;
    let special = fields.take("add_special_tokens", "true or false")?;
    let special = special.unwrap_or(true);
    let ask = |id| Ask::Tokenize { id, text, special };
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
    mut fields: Fields,
) -> Result<Json<Value>, Refusal> {
    let tokens = fields.need("tokens", "a list of tokens")?;
    let ask = |id| Ask::Detokenize { id, tokens };
    let Event::Plain { text, .. } = server.hub.ask_once(ask).await? else {
        return Err(Refusal::closed());
    };
    Ok(Json(json!({ "prompt": text })))
}

pub(super) async fn info(State(server): Shared) -> Json<Value> {
    let mut info = json!({
        "eos_token": server.model.end,
        "bos_token": server.model.begin,
        "pad_token": server.model.end,
        "chat_template": null,
        "model_max_length": server.model.positions,
    });
    // Of a published model, its authors say it.
    if let Some(words) = &server.words {
        for name in ["bos_token", "eos_token", "pad_token"] {
            info[name] = json!(words.tokens.get(name));
        }
        info["chat_template"] = json!(words.template);
        if info["eos_token"].is_null() {
            // By its number, in the model's configuration.
            info["eos_token"] = json!(server.model.end);
        }
    }
    Json(info)
}
