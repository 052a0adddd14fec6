//! How fast the job goes when nothing goes wrong: seconds of a step, by stage and by number of
//! workers, measured in a quiet run. Nothing is assumed about how they depend on each other: on a
//! small machine four workers are hardly faster than three.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::story::{Story, overlap};

/// Steps behind a change of the workers that are not measured.
const SETTLING: u64 = 2;
/// How far around a moment a run's own steps say how fast it could go then.
const AROUND: Duration = Duration::from_secs(30);

/// A step that nothing disturbed.
#[derive(Clone, Debug)]
pub(super) struct CalmStep {
    at: Duration,
    stage: String,
    workers: u32,
    seconds: f64,
}

/// Steps before and in which nothing happened and nothing changed, and no worker was starting.
pub(super) fn calm_steps(story: &Story) -> Vec<CalmStep> {
    let faults = story.injected.iter().map(|injected| {
        let over = injected.over.unwrap_or(injected.at);
        (injected.at, over + Duration::from_millis(1))
    });
    let troubles: Vec<_> = story.starts().into_iter().chain(faults).collect();
    let (mut calm, mut settled) = (Vec::new(), 0);
    for pair in story.commits.windows(2) {
        let [before, commit] = pair else { continue };
        let span = (before.at, commit.at);
        let is_calm = before.stage == commit.stage
            && before.generation == commit.generation
            && !troubles.iter().any(|trouble| overlap(span, *trouble));
        settled = if is_calm { settled + 1 } else { 0 };
        if settled > SETTLING {
            calm.push(CalmStep {
                at: commit.at,
                stage: commit.stage.clone(),
                workers: commit.workers,
                seconds: commit.at.saturating_sub(before.at).as_secs_f64(),
            });
        }
    }
    calm
}

/// Seconds of a step around a moment, of the nearest number of workers, by the run's own calm steps.
pub(super) fn own_step_seconds(
    calm: &[CalmStep],
    stage: &str,
    workers: u32,
    at: Duration,
) -> Option<f64> {
    let first = calm.partition_point(|step| step.at + AROUND < at);
    let near = calm[first..]
        .iter()
        .take_while(|step| step.at <= at + AROUND);
    let mut rates = Rates::default();
    for step in near.filter(|step| step.stage == stage) {
        rates.add(step);
    }
    rates.step_seconds(stage, workers)
}

/// What was measured.
#[derive(Clone, Debug, Default)]
pub(super) struct Rates {
    by_stage: BTreeMap<String, BTreeMap<u32, Measured>>,
    /// From the last step of the stage before to the first one of this.
    borders: BTreeMap<String, f64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Measured {
    steps: u64,
    seconds: f64,
}

/// A line of the table.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Measurement {
    pub(super) stage: String,
    pub(super) workers: u32,
    pub(super) steps: u64,
    pub(super) step_seconds: f64,
}

impl Rates {
    /// Measures a quiet run.
    pub(super) fn measure(quiet: &Story) -> Self {
        let mut rates = Self::default();
        for step in calm_steps(quiet) {
            rates.add(&step);
        }
        for pair in quiet.commits.windows(2) {
            let [before, commit] = pair else { continue };
            // Not where the run was stopped and went on.
            if before.stage != commit.stage && before.generation == commit.generation {
                let seconds = commit.at.saturating_sub(before.at).as_secs_f64();
                rates.borders.insert(commit.stage.clone(), seconds);
            }
        }
        rates
    }

    fn add(&mut self, step: &CalmStep) {
        let of_stage = self.by_stage.entry(step.stage.clone()).or_default();
        let measured = of_stage.entry(step.workers).or_default();
        measured.steps += 1;
        measured.seconds += step.seconds;
    }

    /// Seconds of a step of a stage with so many workers; of the nearest number that was measured.
    pub(super) fn step_seconds(&self, stage: &str, workers: u32) -> Option<f64> {
        let of_stage = self.by_stage.get(stage)?;
        let nearest = of_stage.iter().min_by_key(|(n, _)| n.abs_diff(workers))?;
        Some(nearest.1.seconds / nearest.1.steps as f64)
    }

    /// Seconds from the last step of the stage before to the first one of this.
    pub(super) fn border_seconds(&self, stage: &str) -> Option<f64> {
        self.borders.get(stage).copied()
    }

    pub(super) fn table(&self) -> Vec<Measurement> {
        let mut table = Vec::new();
        for (stage, of_stage) in &self.by_stage {
            table.extend(of_stage.iter().map(|(workers, measured)| Measurement {
                stage: stage.clone(),
                workers: *workers,
                steps: measured.steps,
                step_seconds: measured.seconds / measured.steps as f64,
            }));
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::story::Commit;

    fn commit(millis: u64, step: u64, stage: &str, workers: u32, generation: u64) -> Commit {
        Commit {
            at: Duration::from_millis(millis),
            took: Duration::ZERO,
            seen: Duration::from_millis(millis),
            step,
            stage: stage.into(),
            workers,
            generation,
            bits: String::new(),
        }
    }

    #[test]
    fn only_settled_steps_are_measured_for_each_number_of_workers() {
        let mut commits = Vec::new();
        let mut now = 0;
        // Steps of 100 ms with two workers, then of 300 ms with one; changes take a second.
        for step in 1..=10 {
            let (workers, millis) = if step <= 6 { (2, 100) } else { (1, 300) };
            now += if step == 7 { 1000 } else { millis };
            commits.push(commit(now, step, "a", workers, u64::from(3 - workers)));
        }
        commits.push(commit(now + 2000, 11, "b", 1, 2));
        let quiet = Story {
            commits,
            ..Story::default()
        };
        let rates = Rates::measure(&quiet);
        let close = |found: Option<f64>, right: f64| {
            assert!(found.is_some_and(|f| (f - right).abs() < 1e-9), "{found:?}");
        };
        close(rates.step_seconds("a", 2), 0.1);
        close(rates.step_seconds("a", 1), 0.3);
        close(rates.step_seconds("a", 4), 0.1);
        close(rates.border_seconds("b"), 2.0);
        assert!(rates.step_seconds("b", 1).is_none());
        let steps: Vec<_> = rates.table().iter().map(|rate| rate.steps).collect();
        assert_eq!(steps, [1, 3]);
    }

    #[test]
    fn a_run_that_becomes_slower_has_another_rate_of_its_own() {
        let mut commits = Vec::new();
        let mut now = 0;
        for step in 1..=1000 {
            now += if step <= 500 { 100 } else { 200 };
            commits.push(commit(now, step, "a", 2, 1));
        }
        let story = Story {
            commits,
            ..Story::default()
        };
        let calm = calm_steps(&story);
        let at = |seconds| own_step_seconds(&calm, "a", 4, Duration::from_secs(seconds));
        let close = |found: Option<f64>, right: f64| {
            assert!(found.is_some_and(|f| (f - right).abs() < 1e-9), "{found:?}");
        };
        close(at(10), 0.1);
        close(at(120), 0.2);
        assert!(at(50).is_some_and(|seconds| 0.1 < seconds && seconds < 0.2));
        assert_eq!(at(400), None, "nothing is known of that time");
        assert_eq!(
            own_step_seconds(&calm, "b", 2, Duration::from_secs(9)),
            None
        );
    }
}
