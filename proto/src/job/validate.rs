//! Rules that a type alone can not hold: every relation between the values of a job.

use super::Job;
use crate::failure::Failure;

/// A broken rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key whose value is at fault: `stage.memory.batch_size`.
    pub key: String,
    /// Why it can not be, with the numbers.
    pub why: String,
    /// What to write instead.
    pub cure: String,
}

/// Checks every relation between the values of a job.
///
/// # Errors
/// The first broken rule, with [`ExitCode::Settings`](crate::failure::ExitCode::Settings).
pub fn validate(job: &Job) -> Result<(), Failure> {
    match problems(job).into_iter().next() {
        None => Ok(()),
        Some(problem) => Err(Failure::settings(
            format!("the job is not valid: {}", problem.key),
            problem.why,
            problem.cure,
        )),
    }
}

/// All broken rules, in the order of the job file.
#[must_use]
pub fn problems(job: &Job) -> Vec<Problem> {
    let mut found = Vec::new();
    if job.lanes == 0 {
        found.push(Problem {
            key: "lanes".into(),
            why: "a run needs at least one lane".into(),
            cure: "set lanes to the largest number of workers you may want, for example 8".into(),
        });
    }
    found
}
