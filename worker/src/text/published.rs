//! Tokenizers of published models, as transformers presents texts with them.

use mks2_dataset::pretrained::tokens::{Around, EndToken, SpaceBefore, TokenizerFiles};
use mks2_proto::failure::Failure;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokenizers::{
    DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, Tokenizer,
};

use super::TextEncoder;

impl TextEncoder {
    /// The tokenizer of a pretrained model whose embedding has `vocab_size` rows. What its
    /// post-processor puts before a text opens every text here, too; where that is nothing, the end
    /// token does.
    ///
    /// # Errors
    /// When the file is damaged, has no such end token, or more tokens than the embedding has rows.
    pub fn pretrained(
        files: &TokenizerFiles,
        vocab_size: u32,
        max_tokens: usize,
    ) -> Result<Self, Failure> {
        let mut tokenizer = Tokenizer::from_bytes(&files.json).map_err(unusable)?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(unusable)?;
        if let Some(space_before) = files.overrides.space_before {
            in_pieces(&mut tokenizer, space_before)?;
        }
        if let Some(around) = &files.overrides.around {
            surround(&mut tokenizer, around)?;
        }
        let end = match &files.end {
            EndToken::Numbered(id) => *id,
            EndToken::Named(text) => known(&tokenizer, text, "end token")?,
        };
        let largest = tokenizer.get_vocab(true).into_values().max();
        let largest = largest.unwrap_or_default().max(end);
        if largest >= vocab_size {
            return Err(unusable(format!(
                "it has a token {largest}, and the model's embedding {vocab_size} rows"
            )));
        }
        let end = i64::from(end);
        let opened = tokenizer.encode("", true).map_err(unusable)?;
        let opened = opened.get_ids().iter().map(|&id| i64::from(id));
        // Some close a text, too: that is done here.
        let mut opening: Vec<i64> = opened.take_while(|id| *id != end).collect();
        if opening.is_empty() {
            // A text begins where another one has ended. Something must predict its first token.
            opening.push(end);
        }
        if opening.len() + 2 > max_tokens {
            return Err(unusable(format!(
                "it opens a text with {} tokens, and max_text_tokens is {max_tokens}",
                opening.len()
            )));
        }
        let begin = files.begin.as_ref();
        let begin = begin.and_then(|text| tokenizer.token_to_id(text));
        Ok(Self {
            opening,
            prefix: begin.map_or(end, i64::from),
            tokenizer,
            max_tokens,
            vocab_size,
            end,
            other_ends: files.other_ends.iter().copied().map(i64::from).collect(),
            pad: end,
        })
    }
}

/// Spaces become a part of pieces, and one is put where `space_before` says.
fn in_pieces(tokenizer: &mut Tokenizer, space_before: SpaceBefore) -> Result<(), Failure> {
    let is_byte_level =
        |part: serde_json::Result<String>| part.is_ok_and(|part| part.contains(r#""ByteLevel""#));
    if is_byte_level(serde_json::to_string(&tokenizer.get_pre_tokenizer()))
        || is_byte_level(serde_json::to_string(&tokenizer.get_decoder()))
    {
        return Ok(());
    }
    let scheme = match space_before {
        SpaceBefore::Text => "first",
        SpaceBefore::EachPart => "always",
        SpaceBefore::Nothing => "never",
    };
    let mut back = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if space_before != SpaceBefore::Nothing {
        back.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let pieces: PreTokenizerWrapper = part(
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false}),
    )?;
    let back: DecoderWrapper = part(json!({"type": "Sequence", "decoders": back}))?;
    let unchanged: Option<NormalizerWrapper> = None;
    tokenizer.with_normalizer(unchanged).map_err(unusable)?;
    tokenizer.with_pre_tokenizer(Some(pieces));
    tokenizer.with_decoder(Some(back));
    Ok(())
}

/// Puts these tokens, and no others, around every text.
fn surround(tokenizer: &mut Tokenizer, around: &Around) -> Result<(), Failure> {
    let mut special = serde_json::Map::new();
    for token in [&around.begin, &around.end].into_iter().flatten() {
        let id = known(tokenizer, token, "token")?;
        let entry = json!({"id": token, "ids": [id], "tokens": [token]});
        special.insert(token.clone(), entry);
    }
    let template = |ids: &[&str]| -> Value {
        let mut parts = Vec::new();
        for (number, id) in ids.iter().enumerate() {
            let marked = |token: &String| json!({"SpecialToken": {"id": token, "type_id": number}});
            parts.extend(around.begin.as_ref().map(marked));
            parts.push(json!({"Sequence": {"id": id, "type_id": number}}));
            parts.extend(around.end.as_ref().map(marked));
        }
        parts.into()
    };
    let around: PostProcessorWrapper = part(json!({
        "type": "TemplateProcessing",
        "single": template(&["A"]),
        "pair": template(&["A", "B"]),
        "special_tokens": special,
    }))?;
    tokenizer.with_post_processor(Some(around));
    Ok(())
}

/// A part of a tokenizer, in the words of `tokenizer.json`.
fn part<T: DeserializeOwned>(words: Value) -> Result<T, Failure> {
    serde_json::from_value(words).map_err(unusable)
}

fn known(tokenizer: &Tokenizer, token: &str, role: &str) -> Result<u32, Failure> {
    let id = tokenizer.token_to_id(token);
    id.ok_or_else(|| unusable(format!("it has no {role} '{token}'")))
}

fn unusable(why: impl std::fmt::Display) -> Failure {
    Failure::checkpoint(
        "the pretrained model's tokenizer.json cannot be used",
        why.to_string(),
        "name the folder of a model with the tokenizer that it was trained with",
    )
}
