//! Linear probes of the questions' answers: what the picture's feature knows, and what the
//! language model's state knows with and without the memory.

use std::collections::{BTreeMap, BTreeSet};

use mks2_dataset::row::Row;
use mks2_proto::failure::Failure;
use serde::Serialize;
use tch::Tensor;

use super::Evaluator;
use super::pairs::Reader;
use super::probe::linear_probe;
use super::questions::{Question, read};
use crate::model::SecondHalves;

/// Accuracy of linear probes on the held-out questions.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Probes {
    /// From the global image feature.
    pub image: f64,
    /// From the language model's state at the question's end token, with its own MLPs.
    pub without_memory: f64,
    /// From the same state with the memory in the MLPs' place.
    pub with_memory: f64,
}

/// Fits the probes on the questions that were trained on and tests them on the held-out ones.
/// None if the stage names no memory or no training questions.
pub(super) fn measure(evaluator: &Evaluator, held_out: &str) -> Result<Option<Probes>, Failure> {
    let settings = evaluator.settings;
    let (Some(stage), Some(corpus), Some(trained)) = (
        &settings.memory,
        &settings.corpus,
        &settings.train_questions,
    ) else {
        return Ok(None);
    };
    let reader = Reader::new(evaluator, stage)?;
    let (train, test) = (read(evaluator, trained)?, read(evaluator, held_out)?);
    let classes: Vec<String> = train
        .iter()
        .chain(&test)
        .flat_map(|q| q.choices.iter().cloned())
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    let labels = |questions: &[Question]| {
        let class = |q: &Question| {
            classes
                .iter()
                .position(|c| *c == q.choices[q.right])
                .unwrap_or(0) as i64
        };
        Tensor::from_slice(&questions.iter().map(class).collect::<Vec<_>>())
    };
    let (train_labels, test_labels) = (labels(&train), labels(&test));
    let probe = |train_nd: Tensor, test_nd: Tensor| {
        tch::with_grad(|| {
            linear_probe(
                (&train_nd, &train_labels),
                (&test_nd, &test_labels),
                classes.len() as i64,
            )
        })
    };
    let pictures: BTreeMap<String, Row> = evaluator
        .rows(corpus)?
        .into_iter()
        .map(|row| (row.key.clone(), row))
        .collect();
    let image = |questions: &[Question]| image_features(evaluator, &reader, &pictures, questions);
    let state = |questions: &[Question], halves| {
        let texts = questions.iter().map(|question| question.question.clone());
        reader
            .speaker
            .end_states(&texts.collect::<Vec<_>>(), halves)
    };
    let memory = reader.speaker.halves();
    Ok(Some(Probes {
        image: probe(image(&train)?, image(&test)?),
        without_memory: probe(
            state(&train, SecondHalves::Mlp)?,
            state(&test, SecondHalves::Mlp)?,
        ),
        with_memory: probe(state(&train, memory)?, state(&test, memory)?),
    }))
}

/// Global image features `[n, e]` of the pictures that the questions are about.
fn image_features(
    evaluator: &Evaluator,
    reader: &Reader,
    pictures: &BTreeMap<String, Row>,
    questions: &[Question],
) -> Result<Tensor, Failure> {
    let picture = |question: &Question| {
        let row = pictures.get(&question.row.key).ok_or_else(|| {
            Failure::data(
                format!(
                    "question '{}' is about no picture of the corpus",
                    question.row.key
                ),
                "its key is the key of no row",
                "give each question the key of its picture, or leave train_questions out",
            )
        })?;
        evaluator.picture(row)
    };
    let pictures = questions
        .iter()
        .map(picture)
        .collect::<Result<Vec<_>, _>>()?;
    let pictures: Vec<&[u8]> = pictures.iter().map(Vec::as_slice).collect();
    let speaker = &reader.speaker;
    Ok(speaker.eyes()?.see(&pictures, speaker.device)?.global_be)
}
