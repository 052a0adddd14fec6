//! Tasks in files of their own, measured on a model that can be asked.
//!
//! ```text
//! items ─► blocks: what the model says of each, shared by the workers ─► metrics, samples
//! ```
//!
//! What the model says is numbers: log-likelihoods, tokens, features. Everyone gets those of all items, and
//! makes the same texts, metrics and samples of them.

pub(super) mod captions;
mod choices;
mod retrieval;
mod vqa;

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use mks2_dataset::task::{Items, Settings, Task};
use mks2_proto::evaluate::{Measured, Metric};
use mks2_proto::failure::Failure;
use mks2_proto::v1::Phase;
use serde_json::Value;
use tokio::runtime::Handle;

use super::Evaluator;
use super::blocks::{BLOCK, Blocks, Workers};
use super::metrics::bootstrap::{Spread, deviation, mean, spread};
use crate::collectives::Collective;
use crate::generate::Speaker;
use crate::objective::Share;
use crate::team::Setback;

/// Pictures that are read at a time.
const READ_AT_ONCE: usize = 16;

/// A task, and who answers it.
pub(super) struct Measurement<'a> {
    pub(super) task: &'a Task,
    pub(super) speaker: &'a Speaker,
    /// Prompts that are answered side by side.
    pub(super) batch: usize,
    pub(super) runtime: &'a Handle,
}

/// What an evaluation gives.
pub(super) struct Found {
    metrics: Vec<Metric>,
    /// One for each item, as lm-evaluation-harness logs them.
    samples: Vec<Value>,
}

impl Measurement<'_> {
    /// Measures the task; gives the result and the samples.
    ///
    /// # Errors
    /// When an item cannot be answered, the model lacks what the task needs, or as [`Blocks::shares`].
    pub(super) fn run(&self, blocks: &mut dyn Blocks) -> Result<(Measured, Vec<Value>), Setback> {
        let task = self.task;
        blocks.agree(&task.name, &task.digest)?;
        let found = match (&task.settings, &task.items) {
            (Settings::MultipleChoice(settings), Items::Choices(items)) => {
                choices::measure(self, settings, items, blocks)?
            }
            (Settings::Captions(settings), Items::Pictures(items)) => {
                captions::measure(self, settings, items, blocks)?
            }
            (Settings::Retrieval(settings), Items::Pictures(items)) => {
                retrieval::measure(self, settings, items, blocks)?
            }
            (Settings::Vqa(settings), Items::Questions(items)) => {
                vqa::measure(self, settings, items, blocks)?
            }
            _ => {
                let why = "its items are not those of its kind";
                return Err(Failure::internal("a task cannot be measured", why).into());
            }
        };
        let settings = serde_json::to_value(&task.settings)
            .map_err(|error| Failure::internal("a task has no JSON", error.to_string()))?;
        let result = Measured {
            task: task.name.clone(),
            stage: None,
            version: task.settings.version().to_owned(),
            digest: task.digest.clone(),
            items: task.count as u64,
            measured: task.items.len() as u64,
            metrics: found.metrics,
            settings,
        };
        Ok((result, found.samples))
    }

    /// The files of the pictures of these items, in their order. Several are read at a time, and one that several
    /// items in a row have, once.
    fn pictures<'f>(
        &self,
        items: impl Iterator<Item = (usize, &'f str)>,
    ) -> Result<Vec<Bytes>, Failure> {
        let (wanted, places) = once(items);
        let read = wanted.into_iter();
        let read = read.map(|(number, file)| self.task.picture(number, file));
        let read = stream::iter(read).buffered(READ_AT_ONCE);
        let files: Vec<Bytes> = self.runtime.block_on(read.try_collect())?;
        Ok(places.into_iter().map(|at| files[at].clone()).collect())
    }

    /// What went wrong, with the item (from 0) where it did.
    fn named(&self, number: usize, mut failure: Failure) -> Failure {
        let place = format!("{}, item {}", self.task.data, number + 1);
        failure.what = format!("{place}: {}", failure.what);
        failure
    }

    /// Whether the model can be shown pictures, before any is read.
    fn must_see(&self) -> Result<(), Failure> {
        self.speaker.eyes().map(drop).map_err(|mut failure| {
            failure.what = format!("task '{}': {}", self.task.name, failure.what);
            failure
        })
    }
}

/// The files that are to be read, each for the first of the items in a row that have it, and which of them each item
/// has.
fn once<'f>(items: impl Iterator<Item = (usize, &'f str)>) -> (Vec<(usize, &'f str)>, Vec<usize>) {
    let (mut wanted, mut places) = (Vec::<(usize, &str)>::new(), Vec::new());
    for (number, file) in items {
        if wanted.last().is_none_or(|(_, last)| *last != file) {
            wanted.push((number, file));
        }
        places.push(wanted.len() - 1);
    }
    (wanted, places)
}

/// Metrics that are means of what each item has, in the order of items.
fn means<const N: usize>(named: [(&str, &[f64]); N]) -> Vec<Metric> {
    let items = named.first().map_or(0, |(_, values)| values.len());
    let spreads = spread(items, |drawn| {
        named.map(|(_, values)| mean_of(values, drawn))
    });
    let metrics = named.iter().zip(spreads).map(|((name, values), spread)| {
        let stderr = deviation(values) / (items.max(1) as f64).sqrt();
        metric(name, mean(values), stderr, spread)
    });
    metrics.collect()
}

/// The mean over the items that were drawn.
fn mean_of(values: &[f64], drawn: &[usize]) -> f64 {
    drawn.iter().map(|at| values[*at]).sum::<f64>() / drawn.len().max(1) as f64
}

fn metric(name: &str, value: f64, stderr: f64, spread: Spread) -> Metric {
    Metric {
        name: name.to_owned(),
        value,
        stderr,
        interval: [spread.low, spread.high],
    }
}

/// Texts as numbers that workers exchange: for each how many tokens, and these.
fn encode(texts: &[Vec<u32>]) -> Share {
    let numbers = texts.iter().flat_map(|tokens| {
        let length = std::iter::once(tokens.len() as f64);
        length.chain(tokens.iter().map(|token| f64::from(*token)))
    });
    Share {
        counts: numbers.collect(),
        features: Vec::new(),
    }
}

/// The tokens of all texts again.
fn decode(shares: &[Share]) -> Vec<Vec<u32>> {
    let mut numbers = shares.iter().flat_map(|share| &share.counts).copied();
    let mut texts = Vec::new();
    while let Some(length) = numbers.next() {
        let tokens = numbers.by_ref().take(length as usize);
        texts.push(tokens.map(|token| token as u32).collect());
    }
    texts
}

/// The tasks of an `evaluate` stage.
///
/// # Errors
/// As [`Measurement::run`], or when a task cannot be read.
pub(super) fn of_stage(
    evaluator: &Evaluator,
    collective: &mut dyn Collective,
) -> Result<Vec<Measured>, Setback> {
    let settings = evaluator.settings;
    let mut speakers: BTreeMap<&str, Speaker> = BTreeMap::new();
    let mut results = Vec::with_capacity(settings.tasks.len());
    for url in &settings.tasks {
        evaluator.control.set_phase(Phase::Loading, 0);
        let task = evaluator.runtime.block_on(Task::read(url));
        let task = task.map_err(Failure::from)?;
        evaluator.control.set_phase(Phase::Evaluating, 0);
        let stage = settings.asked(task.is_of_memory()).unwrap_or_default();
        if !speakers.contains_key(stage) {
            speakers.insert(stage, evaluator.speaker(stage)?);
        }
        let measurement = Measurement {
            task: &task,
            speaker: &speakers[stage],
            batch: BLOCK,
            runtime: &evaluator.runtime,
        };
        let mut workers = Workers {
            control: evaluator.control,
            collective,
        };
        let (mut result, _) = measurement.run(&mut workers)?;
        result.stage = Some(stage.to_owned());
        results.push(result);
    }
    Ok(results)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_survive_the_exchange() {
        let texts = [vec![3, 2_000_000], vec![], vec![0]];
        let shares = [encode(&texts[..2]), encode(&texts[2..])];
        assert_eq!(decode(&shares), texts);
        assert!(decode(&[encode(&[])]).is_empty());
    }

    #[test]
    fn a_picture_is_read_once_for_the_questions_in_a_row_about_it() {
        let files = ["a", "a", "b", "b", "a"];
        let (wanted, places) = once((7..).zip(files));
        assert_eq!(wanted, [(7, "a"), (9, "b"), (11, "a")]);
        assert_eq!(places, [0, 0, 1, 1, 2]);
    }

    #[test]
    fn means_have_the_errors_of_theory() {
        let right: Vec<f64> = (0..50).map(|i| f64::from(i % 5 == 0)).collect();
        let found = means([("acc", &right), ("acc_norm", &right)]);
        assert_eq!(found.len(), 2);
        assert!((found[0].value - 0.2).abs() < 1e-12);
        // lm-evaluation-harness: the standard deviation of the sample over the root of n.
        let stderr = (0.2 * 0.8 * 50.0 / 49.0f64).sqrt() / 50f64.sqrt();
        assert!((found[0].stderr - stderr).abs() < 1e-12);
        assert!(found[0].interval[0] < 0.2 && found[0].interval[1] > 0.2);
        assert_eq!(found[0].interval, found[1].interval);
    }
}
