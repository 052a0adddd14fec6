//! The tokenizer of a language model: `tokenizer.json`, what `tokenizer_config.json` says against it, and
//! which tokens end a text.

use bytes::Bytes;
use serde::Deserialize;

use super::{Folder, PretrainedError, Result, config};

/// The tokenizer as the library of the same name writes it.
pub const FILE_NAME: &str = "tokenizer.json";
/// What the tokenizer's special tokens are called.
pub(super) const SETTINGS: &str = "tokenizer_config.json";
/// How the model's authors generate with it.
const GENERATION: &str = "generation_config.json";

/// The tokenizer of a folder.
#[derive(Clone, Debug)]
pub struct TokenizerFiles {
    /// `tokenizer.json`.
    pub json: Bytes,
    /// The token that is called the one which begins a text, whether texts are presented with it or not.
    pub begin: Option<String>,
    /// The token that ends a text.
    pub end: EndToken,
    /// All tokens that end an answer beside it: of a dialogue, what ends a turn.
    pub other_ends: Vec<u32>,
    /// What is otherwise than `tokenizer.json` says.
    pub overrides: Overrides,
}

/// The token that ends a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndToken {
    /// By its text.
    Named(String),
    /// By its id.
    Numbered(u32),
}

/// What `tokenizer_config.json` says against `tokenizer.json`. Transformers (5.23) believes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Transformers builds tokenizers of its class `LlamaTokenizer` anew around the vocabulary, unless they
    /// are byte-level: spaces become part of pieces, and a text gets one before it.
    pub space_before: Option<SpaceBefore>,
    /// What stands around every text, where `add_bos_token` or `add_eos_token` say it.
    pub around: Option<Around>,
}

/// Where a tokenizer of pieces puts a space that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpaceBefore {
    /// Before a text.
    Text,
    /// Also behind each special token in it.
    EachPart,
    /// Nowhere.
    Nothing,
}

/// Tokens around a text, by their texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Around {
    /// Before it.
    pub begin: Option<String>,
    /// Behind it.
    pub end: Option<String>,
}

#[derive(Default, Deserialize)]
struct Settings {
    tokenizer_class: Option<String>,
    bos_token: Option<Token>,
    eos_token: Option<Token>,
    add_bos_token: Option<bool>,
    add_eos_token: Option<bool>,
    add_prefix_space: Option<bool>,
    legacy: Option<bool>,
}

/// A token as these files name it.
#[derive(Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum Token {
    Text(String),
    Object { content: String },
}

impl Token {
    pub(super) fn text(self) -> String {
        match self {
            Self::Text(text) | Self::Object { content: text } => text,
        }
    }
}

#[derive(Deserialize)]
struct Model {
    model_type: Option<String>,
    eos_token_id: Option<Ids>,
}

#[derive(Deserialize)]
struct Generation {
    eos_token_id: Option<Ids>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Ids {
    One(u32),
    /// The first one ends a text, the others a turn of a dialogue.
    Several(Vec<u32>),
}

impl Ids {
    fn all(self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![id],
            Self::Several(ids) => ids,
        }
    }
}

/// Reads the tokenizer of a folder. The end token is the one that `tokenizer_config.json` names, or
/// else that of `config.json`; `generation_config.json` may have more.
///
/// # Errors
/// When there is no `tokenizer.json`, or nothing says which token ends a text.
pub async fn read(folder: &Folder) -> Result<TokenizerFiles> {
    let Some(json) = folder.text(FILE_NAME).await? else {
        return Err(PretrainedError::NoTokenizer {
            folder: folder.location().to_owned(),
        });
    };
    let settings: Option<Settings> = optional(folder, SETTINGS).await?;
    let settings = settings.unwrap_or_default();
    let model: Model = parse(folder, config::FILE_NAME, &folder.config().await?)?;
    let generation: Option<Generation> = optional(folder, GENERATION).await?;
    let ids = generation.and_then(|generation| generation.eos_token_id);
    let overrides = overrides(&settings, model.model_type.as_deref());
    let begin = settings.bos_token.map(Token::text);
    let end = match settings.eos_token {
        Some(token) => Some(EndToken::Named(token.text())),
        None => {
            let ids = model.eos_token_id.map(Ids::all).unwrap_or_default();
            ids.first().copied().map(EndToken::Numbered)
        }
    };
    let end = end.ok_or_else(|| {
        folder.refuse(
            SETTINGS,
            "neither its eos_token nor eos_token_id in config.json says which token ends a text",
        )
    })?;
    Ok(TokenizerFiles {
        json,
        begin,
        end,
        other_ends: ids.map(Ids::all).unwrap_or_default(),
        overrides,
    })
}

fn overrides(settings: &Settings, model_type: Option<&str>) -> Overrides {
    // Of the other families, transformers takes the tokenizer as it is, whatever class is named.
    let is_llama = model_type == Some("llama")
        && matches!(
            settings.tokenizer_class.as_deref(),
            Some("LlamaTokenizer" | "LlamaTokenizerFast")
        );
    let space_before = match (settings.add_prefix_space, settings.legacy) {
        _ if !is_llama => None,
        (Some(false), _) => Some(SpaceBefore::Nothing),
        (_, Some(true)) => Some(SpaceBefore::EachPart),
        _ => Some(SpaceBefore::Text),
    };
    let is_said = settings.add_bos_token.is_some() || settings.add_eos_token.is_some();
    let chosen = |wanted: Option<bool>, token: &Option<Token>| {
        let wanted = wanted.unwrap_or(false);
        token.clone().filter(|_| wanted).map(Token::text)
    };
    Overrides {
        space_before,
        around: is_said.then(|| Around {
            begin: chosen(settings.add_bos_token, &settings.bos_token),
            end: chosen(settings.add_eos_token, &settings.eos_token),
        }),
    }
}

/// A file of JSON that need not be there.
pub(super) async fn optional<T>(folder: &Folder, file: &str) -> Result<Option<T>>
where
    T: for<'de> Deserialize<'de>,
{
    match folder.text(file).await? {
        Some(json) => parse(folder, file, &json).map(Some),
        None => Ok(None),
    }
}

fn parse<T: for<'de> Deserialize<'de>>(folder: &Folder, file: &str, json: &[u8]) -> Result<T> {
    serde_json::from_slice(json).map_err(|error| folder.refuse(file, error.to_string()))
}
