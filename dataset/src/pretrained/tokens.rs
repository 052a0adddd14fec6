//! The tokenizer of a language model: `tokenizer.json`, and which token ends a text.

use bytes::Bytes;
use serde::Deserialize;

use super::{Folder, PretrainedError, Result, config};

/// The tokenizer as the library of the same name writes it.
pub const FILE_NAME: &str = "tokenizer.json";
/// What the tokenizer's special tokens are called.
const SETTINGS: &str = "tokenizer_config.json";

/// The tokenizer of a folder.
#[derive(Clone, Debug)]
pub struct TokenizerFiles {
    /// `tokenizer.json`.
    pub json: Bytes,
    /// The token that ends a text.
    pub end: EndToken,
}

/// The token that ends a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndToken {
    /// By its text.
    Named(String),
    /// By its id.
    Numbered(u32),
}

#[derive(Deserialize)]
struct Settings {
    eos_token: Option<Token>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Token {
    Text(String),
    Object { content: String },
}

#[derive(Deserialize)]
struct Ends {
    eos_token_id: Option<Ids>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Ids {
    One(u32),
    /// The first one ends a text, the others a turn of a dialogue.
    Several(Vec<u32>),
}

/// Reads the tokenizer of a folder. The end token is the one that `tokenizer_config.json` names, or
/// else that of `config.json`.
///
/// # Errors
/// When there is no `tokenizer.json`, or nothing says which token ends a text.
pub async fn read(folder: &Folder) -> Result<TokenizerFiles> {
    let Some(json) = folder.text(FILE_NAME).await? else {
        return Err(PretrainedError::NoTokenizer {
            folder: folder.location().to_owned(),
        });
    };
    if let Some(settings) = folder.text(SETTINGS).await? {
        let settings: Settings = parse(folder, SETTINGS, &settings)?;
        let end = settings.eos_token.map(|token| match token {
            Token::Text(text) | Token::Object { content: text } => EndToken::Named(text),
        });
        if let Some(end) = end {
            return Ok(TokenizerFiles { json, end });
        }
    }
    let ends: Ends = parse(folder, config::FILE_NAME, &folder.config().await?)?;
    let end = ends.eos_token_id.and_then(|ids| match ids {
        Ids::One(id) => Some(id),
        Ids::Several(ids) => ids.first().copied(),
    });
    match end {
        Some(id) => Ok(TokenizerFiles {
            json,
            end: EndToken::Numbered(id),
        }),
        None => Err(folder.refuse(
            SETTINGS,
            "neither its eos_token nor eos_token_id in config.json says which token ends a text",
        )),
    }
}

fn parse<T: for<'de> Deserialize<'de>>(folder: &Folder, file: &str, json: &[u8]) -> Result<T> {
    serde_json::from_slice(json).map_err(|error| folder.refuse(file, error.to_string()))
}
