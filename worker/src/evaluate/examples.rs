//! A few pictures to look at: their captions, written and generated, and what their text finds.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mks2_dataset::row::{Row, render};
use mks2_proto::failure::Failure;
use serde::Serialize;
use tch::Tensor;

use super::Evaluator;
use super::pairs::{Pairs, Reader};
use super::recall::nearest;
use crate::model::{Cache, SecondHalves, Wanted};
use crate::pixels::to_pixels;

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
    let captions = generate(evaluator, &reader, &rows)?;
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

/// Greedy captions: always the likeliest token, until the end token or the longest length.
fn generate(evaluator: &Evaluator, reader: &Reader, rows: &[&Row]) -> Result<Vec<String>, Failure> {
    let pictures = rows
        .iter()
        .map(|row| evaluator.picture(row))
        .collect::<Result<Vec<_>, _>>()?;
    let pictures: Vec<&[u8]> = pictures.iter().map(Vec::as_slice).collect();
    let side = evaluator.job.model.vision.image_size as usize;
    let seen = reader
        .vision
        .forward(&to_pixels(&pictures, side, evaluator.device))?;
    let soft_bpd = reader.bridge.forward(&seen.patches_bpv)?;
    let opening = reader.encoder.opening();
    let opening_t = Tensor::from_slice(opening).to_device(evaluator.device);
    let opening_bt = opening_t.repeat([rows.len() as i64, 1]);
    let h_btd = Tensor::cat(&[&soft_bpd, &reader.decoder.embed(&opening_bt)?], 1);
    let lengths = vec![h_btd.size()[1]; rows.len()];
    let memory = SecondHalves::Memory(&reader.memory);
    let mut cache = Cache::default();
    let decoder = &reader.decoder;
    let mut states_b1d = decoder.read(&h_btd, &lengths, (memory, Wanted::Last), &mut cache)?;
    let mut written = vec![Vec::new(); rows.len()];
    for _ in opening.len()..reader.encoder.max_tokens() {
        let next_b1 = decoder.logits(&states_b1d).argmax(-1, false);
        let next = Vec::<i64>::try_from(next_b1.flatten(0, -1)).map_err(|e| {
            Failure::internal("a caption could not be read from libtorch", e.to_string())
        })?;
        for (row, id) in written.iter_mut().zip(next) {
            row.push(id);
        }
        states_b1d = decoder.advance(&decoder.embed(&next_b1)?, memory, &mut cache)?;
    }
    let captions = written.iter().map(|ids| {
        let end = ids.iter().position(|id| *id == reader.encoder.end());
        reader.encoder.decode(&ids[..end.unwrap_or(ids.len())])
    });
    captions.collect()
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
