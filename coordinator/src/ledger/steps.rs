//! The committed steps, as `metrics.jsonl` tells them: each once, in order, under its generation.
//!
//! When a run begins again from a checkpoint, the lines after it are cut off, since their steps are
//! computed again. So every line is of a step that counts. A line carries the generation in which
//! its step was committed, also where the news of it came when there was a later one.

use std::collections::BTreeMap;

use mks2_proto::ids::Generation;
use serde::Deserialize;

use super::{Course, Formed, Timeline, Violation};
use crate::metrics::FILE_NAME;

const RESTORE: &str = "bring the file back from a copy of the run directory, or go back to the \
     checkpoint before: mks2 train JOB --run RUN --resume STEP";
const REPORT: &str = "if nobody has changed the file, report it together with the folder journal/";

/// What the ledger reads of a line.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct StepLine {
    /// Step of the run, from 1.
    pub step: u64,
    /// The stage.
    pub stage: String,
    /// Samples since the beginning of the stage.
    pub samples: u64,
    /// Workers of the generation.
    pub workers: u32,
    /// The generation under which it was committed.
    pub generation: Generation,
}

/// The committed steps.
#[derive(Clone, Debug, Default)]
pub struct Steps {
    /// By their number.
    pub committed: BTreeMap<u64, StepLine>,
    /// Lines that the next start cuts off.
    pub void: u64,
    /// The last line has no end: it is being written, or a crash cut it.
    pub is_torn: bool,
}

impl Steps {
    /// Committed steps of a stretch of the run.
    #[must_use]
    pub fn within(&self, after: u64, last: u64) -> u64 {
        match after < last {
            true => self.committed.range(after + 1..=last).count() as u64,
            false => 0,
        }
    }

    pub(super) fn read(
        text: &[u8],
        timeline: &Timeline,
        course: &Course,
        is_whole: bool,
        violations: &mut Vec<Violation>,
    ) -> Self {
        let mut reader = Reader {
            timeline,
            course,
            is_whole,
            generations: by_number(&timeline.generations),
            steps: Self::default(),
            last: None,
            violations,
        };
        for (number, line) in (1..).zip(text.split_inclusive(|byte| *byte == b'\n')) {
            if line.ends_with(b"\n") {
                reader.line(number, line);
            } else {
                reader.steps.is_torn = true;
            }
        }
        reader.gaps();
        reader.steps
    }
}

/// Generations by their numbers, each with the last step that it may have committed: where a later
/// one goes back. Another later one is no limit, since news of steps may arrive after its record.
fn by_number(generations: &[Formed]) -> BTreeMap<Generation, (&Formed, u64)> {
    let (mut known, mut limit) = (BTreeMap::new(), u64::MAX);
    for formed in generations.iter().rev() {
        known.insert(formed.generation, (formed, limit));
        if formed.goes_back {
            limit = limit.min(formed.after_step);
        }
    }
    known
}

/// The first step that a generation may have committed. Where it was formed in the middle of a
/// step, one member may have committed that already and another one not.
fn first_step(formed: &Formed) -> u64 {
    formed.after_step + u64::from(formed.goes_back)
}

struct Reader<'a> {
    timeline: &'a Timeline,
    course: &'a Course,
    is_whole: bool,
    generations: BTreeMap<Generation, (&'a Formed, u64)>,
    steps: Steps,
    /// Step and generation of the line before.
    last: Option<(u64, Generation)>,
    violations: &'a mut Vec<Violation>,
}

impl Reader<'_> {
    fn object(&mut self, number: usize, what: String, cure: &str) {
        let place = format!("{FILE_NAME}, line {number}");
        self.violations.push(Violation::new(place, what, cure));
    }

    fn line(&mut self, number: usize, text: &[u8]) {
        let line: StepLine = match serde_json::from_slice(text) {
            Ok(line) => line,
            Err(error) => {
                return self.object(number, format!("it cannot be read: {error}"), RESTORE);
            }
        };
        let step = line.step;
        if self.timeline.void_after.is_some_and(|last| step > last) {
            self.steps.void += 1;
            return;
        }
        if self.steps.committed.contains_key(&step) {
            return self.object(number, format!("step {step} stands there twice"), RESTORE);
        }
        if let Some((before, generation)) = self.last {
            if step < before {
                self.object(
                    number,
                    format!("step {step} stands behind step {before}"),
                    RESTORE,
                );
            } else if line.generation < generation {
                let what = format!(
                    "step {step} is of generation {}, and step {before} before it of the later \
                     generation {generation}",
                    line.generation
                );
                self.object(number, what, REPORT);
            }
        }
        for what in self.objections(&line) {
            self.object(number, what, REPORT);
        }
        self.last = Some((step, line.generation));
        self.steps.committed.insert(step, line);
    }

    fn objections(&self, line: &StepLine) -> Vec<String> {
        let (step, mut found) = (line.step, Vec::new());
        match self.course.leg_of(step) {
            None => found.push(format!(
                "there is no step {step}: the job has {}",
                self.course.total_steps()
            )),
            Some(leg) if leg.name != line.stage => found.push(format!(
                "step {step} is said to be of stage '{}', and is of '{}'",
                line.stage, leg.name
            )),
            Some(leg) => {
                let planned = (step - leg.before) * leg.batch;
                if line.samples != planned {
                    found.push(format!(
                        "stage '{}' is said to have used {} samples up to step {step}, and the \
                         plan gives {planned}",
                        leg.name, line.samples
                    ));
                }
            }
        }
        found.extend(self.objections_to_generation(line));
        found
    }

    fn objections_to_generation(&self, line: &StepLine) -> Vec<String> {
        let (step, number) = (line.step, line.generation);
        let Some(&(formed, limit)) = self.generations.get(&number) else {
            // It may be in a record that is missing.
            let unknown = "which the journal does not know";
            return Vec::from_iter(
                self.is_whole
                    .then(|| format!("step {step} is of generation {number}, {unknown}")),
            );
        };
        let mut found = Vec::new();
        if line.workers as usize != formed.members.len() {
            found.push(format!(
                "step {step} is said to be of {} workers, and generation {number} has {}",
                line.workers,
                formed.members.len()
            ));
        }
        if self.is_whole && step < first_step(formed) {
            found.push(format!(
                "step {step} is of generation {number}, which began after step {}",
                formed.after_step
            ));
        }
        if self.is_whole && step > limit {
            found.push(format!(
                "step {step} is of generation {number}, which a later one replaced at step {limit}"
            ));
        }
        found
    }

    /// Steps that must be there and are not.
    fn gaps(&mut self) {
        let due = self.timeline.safe_step();
        let due = due.max(self.timeline.ended_at.unwrap_or(0));
        let mut next = 1;
        let mut gaps = Vec::new();
        for &step in self.steps.committed.keys() {
            if step > next {
                gaps.push((next, step - 1));
            }
            next = step + 1;
        }
        if due >= next {
            gaps.push((next, due));
        }
        for (from, to) in gaps {
            let what = match from == to {
                true => format!("step {from} has no line"),
                false => format!("steps {from} to {to} have no line"),
            };
            self.violations
                .push(Violation::new(FILE_NAME, what, RESTORE));
        }
        if let Some(end) = self.timeline.ended_at
            && next > end + 1
        {
            let what = format!("it has step {}, and the run ended at step {end}", next - 1);
            self.violations
                .push(Violation::new(FILE_NAME, what, REPORT));
        }
    }
}
