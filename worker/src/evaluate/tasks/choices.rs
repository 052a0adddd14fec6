//! `multiple-choice`: how likely each choice is behind the prompt.

use mks2_dataset::row::{Row, render};
use mks2_dataset::task::{Choice, MultipleChoice};
use mks2_proto::failure::Failure;
use mks2_proto::generate::{Prompt, Score, What};
use serde_json::{Value, json};

use super::{Found, Measurement, means};
use crate::evaluate::blocks::Blocks;
use crate::evaluate::metrics::choice::{likeliest, likeliest_per_character};
use crate::generate::answers;
use crate::objective::Share;
use crate::team::Setback;
use crate::text::to_tokens;

/// Log-likelihood of a choice, and whether every token of it was the likeliest.
type Likely = (f64, bool);

pub(super) fn measure(
    measurement: &Measurement<'_>,
    settings: &MultipleChoice,
    items: &[Choice],
    blocks: &mut dyn Blocks,
) -> Result<Found, Setback> {
    let shares = blocks.shares(items.len(), &mut |block| {
        let first = block.start;
        score(measurement, settings, &items[block], first)
    })?;
    let mut numbers = shares.iter().flat_map(|share| share.counts.chunks(2));
    let (mut acc, mut acc_norm, mut samples) = (Vec::new(), Vec::new(), Vec::new());
    for (number, item) in items.iter().enumerate() {
        let own = numbers.by_ref().take(item.choices.len());
        let likely: Vec<Likely> = own.map(|pair| (pair[0], pair[1] > 0.0)).collect();
        let sums: Vec<f64> = likely.iter().map(|(sum, _)| *sum).collect();
        let hit = |guess: usize| f64::from(guess == item.right);
        acc.push(hit(likeliest(&sums)));
        acc_norm.push(hit(likeliest_per_character(&sums, &item.choices)));
        let prompt = render(&settings.prompt, &item.row).map_err(Failure::from)?;
        let arguments = item.choices.iter().map(|choice| {
            let continuation = [settings.separator.as_str(), choice].concat();
            json!([prompt, continuation])
        });
        let responses: Vec<Value> = likely.iter().map(|one| json!(one)).collect();
        samples.push(json!({
            "doc_id": number,
            "doc": document(&item.row),
            "target": item.right,
            "arguments": arguments.collect::<Vec<_>>(),
            "resps": responses.iter().map(|one| json!([one])).collect::<Vec<_>>(),
            "filtered_resps": responses,
            "filter": "none",
            "metrics": ["acc", "acc_norm"],
            "acc": acc[number],
            "acc_norm": acc_norm[number],
        }));
    }
    Ok(Found {
        metrics: means([("acc", &acc), ("acc_norm", &acc_norm)]),
        samples,
    })
}

/// For each choice of each item a [`Likely`]; `first` is the place of the first item.
fn score(
    measurement: &Measurement<'_>,
    settings: &MultipleChoice,
    items: &[Choice],
    first: usize,
) -> Result<Share, Failure> {
    let (mut prompts, mut owners) = (Vec::new(), Vec::new());
    for (number, item) in (first..).zip(items) {
        let text = render(&settings.prompt, &item.row)?;
        let what = match settings.raw {
            true => What::Raw(text),
            false => What::Text(text),
        };
        for choice in &item.choices {
            let continued = measurement
                .speaker
                .continued(&what, &settings.separator, choice);
            let (ids, own) = continued.map_err(|failure| measurement.named(number, failure))?;
            prompts.push(scored(prompts.len(), &ids, own));
            owners.push(number);
        }
    }
    let mut counts = Vec::with_capacity(2 * prompts.len());
    let answers = answers(measurement.speaker, prompts, measurement.batch)?;
    for (answer, number) in answers.into_iter().zip(owners) {
        let answer = answer.map_err(|failure| measurement.named(number, failure))?;
        let mut scores = answer.scores.iter();
        let sum: Option<f64> = scores.clone().map(|one| one.token.logprob).sum();
        let sum = sum.ok_or_else(|| measurement.named(number, unpredicted()))?;
        let is_likeliest =
            scores.all(|one| one.top.first().is_some_and(|top| top.id == one.token.id));
        counts.extend([sum, f64::from(is_likeliest)]);
    }
    Ok(Share {
        counts,
        features: Vec::new(),
    })
}

/// A choice that cannot be compared with others.
fn unpredicted() -> Failure {
    Failure::data(
        "a choice has no likelihood",
        "nothing stands before its first token",
        "give the task a prompt, or choices that are not empty",
    )
}

/// A text of which the last tokens are scored.
fn scored(place: usize, ids: &[i64], last: usize) -> Prompt {
    Prompt {
        id: place as u64,
        what: What::Tokens(to_tokens(ids)),
        score: Some(Score {
            prompt: u32::try_from(last).unwrap_or(u32::MAX),
            top: 1,
        }),
        max_tokens: Some(0),
        ..Prompt::default()
    }
}

/// A row as it was in the data.
fn document(row: &Row) -> Value {
    let mut fields = row.metadata.clone();
    for (name, text) in [
        ("question", &row.question),
        ("answer", &row.answer),
        ("caption", &row.caption),
    ] {
        if let Some(text) = text {
            fields.insert(name.to_owned(), Value::String(text.clone()));
        }
    }
    Value::Object(fields)
}
