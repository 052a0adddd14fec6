//! `vqa`: answers about pictures, beside those of ten people.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mks2_dataset::row::{Row, render};
use mks2_dataset::task::{Asked, Vqa};
use mks2_proto::failure::Failure;
use mks2_proto::generate::{Prompt, What};
use serde_json::{Value, json};

use super::{Found, Measurement, decode, encode, means};
use crate::evaluate::blocks::Blocks;
use crate::evaluate::metrics::vqa::{accuracy, normalised};
use crate::generate::answers;
use crate::team::Setback;

pub(super) fn measure(
    measurement: &Measurement<'_>,
    settings: &Vqa,
    items: &[Asked],
    blocks: &mut dyn Blocks,
) -> Result<Found, Setback> {
    measurement.must_see()?;
    let shares = blocks.shares(items.len(), &mut |block| {
        let numbered = (0..).zip(block.clone().zip(&items[block.clone()]));
        let prompts = numbered.map(|(id, (number, item))| {
            let file = measurement.picture(number, &item.file)?;
            Ok(Prompt {
                id,
                what: question(settings, item)?,
                picture: Some(STANDARD.encode(file)),
                max_tokens: Some(settings.max_tokens),
                ..Prompt::default()
            })
        });
        let prompts = prompts.collect::<Result<Vec<_>, Failure>>()?;
        let answered = answers(measurement.speaker, prompts, measurement.batch)?;
        let tokens = answered.into_iter().zip(block).map(|(answer, number)| {
            let answer = answer.map_err(|failure| measurement.named(number, failure))?;
            Ok(answer.tokens)
        });
        Ok(encode(&tokens.collect::<Result<Vec<_>, Failure>>()?))
    })?;
    let (mut scores, mut samples) = (Vec::new(), Vec::new());
    for (number, (item, tokens)) in items.iter().zip(decode(&shares)).enumerate() {
        let answer = measurement.speaker.encoder.decode(&tokens)?;
        let score = accuracy(&answer, &item.answers);
        samples.push(sample(number, item, &answer, score));
        scores.push(score);
    }
    Ok(Found {
        metrics: means([("vqa_accuracy", &scores)]),
        samples,
    })
}

fn question(settings: &Vqa, item: &Asked) -> Result<What, Failure> {
    let row = Row {
        key: item.key.clone(),
        question: Some(item.question.clone()),
        ..Row::default()
    };
    let text = render(&settings.prompt, &row)?;
    Ok(match settings.raw {
        true => What::Raw(text),
        false => What::Text(text),
    })
}

fn sample(number: usize, item: &Asked, answer: &str, score: f64) -> Value {
    json!({
        "doc_id": number,
        "doc": {"id": item.key, "question": item.question, "file": item.file},
        "target": item.answers,
        "arguments": [[item.question]],
        "resps": [[answer]],
        "filtered_resps": [normalised(answer)],
        "filter": "none",
        "metrics": ["vqa_accuracy"],
        "vqa_accuracy": score,
    })
}
