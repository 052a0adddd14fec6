//! A few pictures to look at: their captions, written and generated, and what their text finds.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mks2_dataset::row::{Row, render};
use mks2_proto::failure::Failure;
use serde::Serialize;

use super::Evaluator;
use super::pairs::{Pairs, Reader};
use super::recall::nearest;
use super::tasks::captions::Caption;

/// Pictures listed for a text.
const NEAREST: i64 = 5;

/// One picture of a report.
#[derive(Clone, Debug, Serialize)]
pub struct Example {
    /// Key of the row.
    pub key: String,
    /// The picture as a data URL.
    pub picture: String,
    /// The caption of the corpus.
    pub caption: String,
    /// The caption that the model writes.
    pub generated: String,
    /// The text that was searched with.
    pub query: String,
    /// The pictures nearest to it, nearest first.
    pub nearest: Vec<Found>,
}

/// A picture that a text found.
#[derive(Clone, Debug, Serialize)]
pub struct Found {
    /// Key of the row.
    pub key: String,
    /// The picture as a data URL.
    pub picture: String,
    /// Cosine similarity.
    pub similarity: f64,
    /// Whether the text belongs to this picture.
    pub own: bool,
}

/// Examples spread evenly over the corpus.
pub(super) fn examples(
    evaluator: &Evaluator,
    stage: &str,
    pairs: &Pairs,
) -> Result<Vec<Example>, Failure> {
    let count = (evaluator.settings.examples as usize).min(pairs.rows.len());
    if count == 0 {
        return Ok(Vec::new());
    }
    let reader = Reader::new(evaluator, stage)?;
    let chosen: Vec<usize> = (0..count).map(|i| i * pairs.rows.len() / count).collect();
    let rows: Vec<&Row> = chosen.iter().map(|&at| &pairs.rows[at]).collect();
    let captions = generate(&reader, &rows)?;
    let query = evaluator
        .settings
        .retrieval_text
        .as_deref()
        .unwrap_or("{caption}");
    let example = |(&at, generated): (&usize, String)| {
        let row = &pairs.rows[at];
        let found = nearest(&pairs.texts_ns.get(at as i64), &pairs.images_ns, NEAREST);
        let found = found.into_iter().map(|(other, similarity)| Found {
            key: pairs.rows[other].key.clone(),
            picture: data_url(&pairs.rows[other]),
            similarity,
            own: other == at,
        });
        Ok(Example {
            key: row.key.clone(),
            picture: data_url(row),
            caption: reader.caption(row)?,
            generated,
            query: render(query, row)?,
            nearest: found.collect(),
        })
    };
    chosen.iter().zip(captions).map(example).collect()
}

/// Captions as long as those that the stage was trained on.
fn generate(reader: &Reader, rows: &[&Row]) -> Result<Vec<String>, Failure> {
    let speaker = &reader.speaker;
    let pictures = rows.iter().map(|row| row.image.clone().unwrap_or_default());
    let encoder = &speaker.encoder;
    let caption = Caption {
        prompt: "",
        max_tokens: u32::try_from(encoder.max_tokens() - encoder.opening().len()).ok(),
        batch: rows.len(),
    };
    let captions = caption.write(speaker, &pictures.collect::<Vec<_>>())?;
    let texts = captions.into_iter().zip(rows).map(|(caption, row)| {
        let tokens = caption.map_err(|failure| named(row, failure))?;
        speaker.encoder.decode(&tokens)
    });
    texts.collect()
}

fn named(row: &Row, mut failure: Failure) -> Failure {
    failure.what = format!("row {} ({}): {}", row.index, row.key, failure.what);
    failure
}

/// The encoded picture of a row as a `data:` URL; empty without picture.
fn data_url(row: &Row) -> String {
    let Some(bytes) = &row.image else {
        return String::new();
    };
    let kind = match bytes.get(..4) {
        Some(b"\x89PNG") => "png",
        Some(b"RIFF") => "webp",
        _ => "jpeg",
    };
    format!("data:image/{kind};base64,{}", STANDARD.encode(bytes))
}
