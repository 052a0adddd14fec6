//! `captions`: what the model says of pictures, always the likeliest token, beside what people said.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use mks2_dataset::task::{Captions, Pictured};
use mks2_proto::evaluate::Metric;
use mks2_proto::failure::Failure;
use mks2_proto::generate::{Prompt, What};
use serde_json::{Value, json};

use super::{Found, Measurement, decode, encode, mean_of, metric};
use crate::evaluate::blocks::Blocks;
use crate::evaluate::metrics::Captioned;
use crate::evaluate::metrics::bleu::Statistics;
use crate::evaluate::metrics::bootstrap::{deviation, spread};
use crate::evaluate::metrics::cider::cider_d;
use crate::evaluate::metrics::rouge::rouge_l;
use crate::evaluate::metrics::words::words;
use crate::generate::{Speaker, answers};
use crate::team::Setback;

/// The metrics, in the order in which COCO's evaluation has them.
const NAMES: [&str; 6] = ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider"];

/// How captions are written.
pub(in crate::evaluate) struct Caption<'a> {
    /// What stands between the picture and the caption.
    pub(in crate::evaluate) prompt: &'a str,
    /// Tokens at most; none: as many as the model has positions for.
    pub(in crate::evaluate) max_tokens: Option<u32>,
    /// Pictures side by side.
    pub(in crate::evaluate) batch: usize,
}

impl Caption<'_> {
    /// The tokens of a caption for each picture's file, or why there is none.
    ///
    /// # Errors
    /// When the model cannot compute any more.
    pub(in crate::evaluate) fn write(
        &self,
        speaker: &Speaker,
        files: &[Bytes],
    ) -> Result<Vec<Result<Vec<u32>, Failure>>, Failure> {
        let prompts = (0..).zip(files).map(|(id, file)| Prompt {
            id,
            what: What::Text(self.prompt.to_owned()),
            picture: Some(STANDARD.encode(file)),
            max_tokens: self.max_tokens,
            ..Prompt::default()
        });
        let answers = answers(speaker, prompts.collect(), self.batch)?.into_iter();
        Ok(answers
            .map(|answer| answer.map(|answer| answer.tokens))
            .collect())
    }
}

pub(super) fn measure(
    measurement: &Measurement<'_>,
    settings: &Captions,
    items: &[Pictured],
    blocks: &mut dyn Blocks,
) -> Result<Found, Setback> {
    measurement.must_see()?;
    let caption = Caption {
        prompt: &settings.prompt,
        max_tokens: settings.max_tokens,
        batch: measurement.batch,
    };
    let shares = blocks.shares(items.len(), &mut |block| {
        let numbered = block.clone().zip(&items[block.clone()]);
        let files = numbered.map(|(number, item)| (number, item.file.as_str()));
        let files = measurement.pictures(files)?;
        let captions = caption.write(measurement.speaker, &files)?.into_iter();
        let tokens = captions
            .zip(block.clone())
            .map(|(caption, number)| caption.map_err(|failure| measurement.named(number, failure)));
        Ok(encode(&tokens.collect::<Result<Vec<_>, _>>()?))
    })?;
    let encoder = &measurement.speaker.encoder;
    let captions = decode(&shares).into_iter();
    let captions = captions.map(|tokens| encoder.decode(&tokens));
    let captions = captions.collect::<Result<Vec<String>, Failure>>()?;
    let (metrics, scores) = judge(items, &captions);
    let samples = items.iter().zip(&captions).zip(scores).enumerate();
    let samples = samples.map(|(number, ((item, caption), [rouge, cider]))| {
        json!({
            "doc_id": number,
            "doc": {"id": item.key, "file": item.file},
            "target": item.captions,
            "arguments": [[settings.prompt]],
            "resps": [[caption]],
            "filtered_resps": [caption],
            "filter": "none",
            "metrics": ["rouge_l", "cider"],
            "rouge_l": rouge,
            "cider": cider,
        })
    });
    Ok(Found {
        metrics,
        samples: samples.collect::<Vec<Value>>(),
    })
}

/// The metrics of all captions, and each one's own ROUGE-L and CIDEr-D.
///
/// In the bootstrap BLEU is computed again from the items' counts. How rare words are, which CIDEr-D weighs
/// by, stays as it is in the whole.
fn judge(items: &[Pictured], captions: &[String]) -> (Vec<Metric>, Vec<[f64; 2]>) {
    let captioned: Vec<Captioned> = items
        .iter()
        .zip(captions)
        .map(|(item, caption)| Captioned {
            candidate: words(caption),
            references: item.captions.iter().map(|text| words(text)).collect(),
        })
        .collect();
    let statistics: Vec<Statistics> = captioned.iter().map(Statistics::of).collect();
    let rouge: Vec<f64> = captioned.iter().map(rouge_l).collect();
    let cider = cider_d(&captioned);
    let all = |drawn: &[usize]| {
        let [one, two, three, four] = drawn
            .iter()
            .map(|at| statistics[*at])
            .sum::<Statistics>()
            .bleu();
        [
            one,
            two,
            three,
            four,
            mean_of(&rouge, drawn),
            mean_of(&cider, drawn),
        ]
    };
    let whole: Vec<usize> = (0..items.len()).collect();
    let values = all(&whole);
    let root = (items.len().max(1) as f64).sqrt();
    let spreads = spread(items.len(), all);
    let metrics = NAMES
        .iter()
        .zip(values)
        .zip(spreads)
        .map(|((name, value), spread)| {
            let stderr = match *name {
                "rouge_l" => deviation(&rouge) / root,
                "cider" => deviation(&cider) / root,
                _ => spread.deviation,
            };
            metric(name, value, stderr, spread)
        });
    let metrics = metrics.collect();
    let own = rouge
        .iter()
        .zip(&cider)
        .map(|(rouge, cider)| [*rouge, *cider]);
    (metrics, own.collect())
}
