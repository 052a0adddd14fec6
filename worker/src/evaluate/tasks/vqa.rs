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
        let own = &items[block.clone()];
        let files = block.clone().zip(own.iter().map(|item| item.file.as_str()));
        let files = measurement.pictures(files)?;
        let prompts = (0..).zip(own.iter().zip(files)).map(|(id, (item, file))| {
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
        let asked = question(settings, item)?;
        samples.push(sample(number, item, (asked.text(), &answer), score));
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

/// An item with what was asked and answered.
fn sample(number: usize, item: &Asked, (asked, answer): (&str, &str), score: f64) -> Value {
    json!({
        "doc_id": number,
        "doc": {"id": item.key, "question": item.question, "file": item.file},
        "target": item.answers,
        "arguments": [[asked]],
        "resps": [[answer]],
        "filtered_resps": [normalised(answer)],
        "filter": "none",
        "metrics": ["vqa_accuracy"],
        "vqa_accuracy": score,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_the_question_as_it_was_put() {
        let settings: Vqa = serde_json::from_value(json!({
            "data": "q.json", "annotations": "a.json", "images": ".", "prompt": "Q: {question} A:",
        }))
        .expect("settings");
        let item = Asked {
            key: "1".into(),
            question: "what?".into(),
            file: "1.png".into(),
            answers: vec!["a fox".into()],
        };
        let asked = question(&settings, &item).expect("a prompt");
        let sample = sample(0, &item, (asked.text(), "fox"), 0.0);
        assert_eq!(sample["arguments"], json!([["Q: what? A:"]]));
        assert_eq!(sample["doc"]["question"], "what?");
    }
}
