//! What happened, as a digest that two executions can be compared by, and as lines if somebody reads.

use std::time::Duration;

use super::{
    chance::{fold, fold_number},
    executor::now,
};

/// See the module.
#[derive(Default)]
pub(super) struct Trace {
    digest: u64,
    /// None: nobody reads.
    lines: Option<Vec<String>>,
}

impl Trace {
    pub(super) fn new(is_read: bool) -> Self {
        let lines = is_read.then(Vec::new);
        Self { digest: 0, lines }
    }

    pub(super) fn note(&mut self, what: &str, numbers: &[u64]) {
        let at = now();
        self.digest = fold(self.digest, what.as_bytes());
        let time = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
        self.digest = fold_number(self.digest, time);
        for number in numbers {
            self.digest = fold_number(self.digest, *number);
        }
        if let Some(lines) = &mut self.lines {
            lines.push(line(at, what, numbers));
        }
    }

    /// The digest, with a last number in it, and the lines.
    pub(super) fn end(&mut self, last: u64) -> (u64, Vec<String>) {
        let lines = self.lines.take().unwrap_or_default();
        (fold_number(self.digest, last), lines)
    }
}

fn line(at: Duration, what: &str, numbers: &[u64]) -> String {
    let numbers: Vec<String> = numbers.iter().map(u64::to_string).collect();
    format!("{:10.4} {what} {}", at.as_secs_f64(), numbers.join(" "))
}
