//! How fast a stage goes, over the last seconds.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How far back the pace looks.
const WINDOW: Duration = Duration::from_secs(15);
/// Least time between two observations that say something: statuses come in bursts.
const LEAST: f64 = 0.5;

/// Observations of steps and samples.
#[derive(Clone, Debug, Default)]
pub(super) struct Pace {
    /// `(when, steps done, samples done)`, both since the beginning of the stage.
    seen: VecDeque<(Instant, u64, u64)>,
}

impl Pace {
    pub(super) fn note(&mut self, now: Instant, steps: u64, samples: u64) {
        if self.seen.back().is_some_and(|(_, last, _)| *last >= steps) {
            return;
        }
        self.seen.push_back((now, steps, samples));
        while self.seen.len() > 2 && now.duration_since(self.seen[0].0) > WINDOW {
            self.seen.pop_front();
        }
    }

    /// Seconds, steps and samples between the oldest and the newest observation.
    fn span(&self) -> Option<(f64, f64, f64)> {
        let (from, to) = (self.seen.front()?, self.seen.back()?);
        let seconds = to.0.duration_since(from.0).as_secs_f64();
        let (steps, samples) = (to.1 - from.1, to.2.saturating_sub(from.2));
        (seconds >= LEAST && samples > 0).then_some((seconds, steps as f64, samples as f64))
    }

    pub(super) fn samples_per_second(&self) -> Option<f64> {
        self.span().map(|(seconds, _, samples)| samples / seconds)
    }

    /// Time for so many more steps.
    pub(super) fn left(&self, steps: u64) -> Option<Duration> {
        let (seconds, done, _) = self.span().filter(|(_, done, _)| *done > 0.0)?;
        Some(Duration::from_secs_f64(
            (seconds / done * steps as f64).min(1e9),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pace_looks_back_over_a_window_only() {
        let start = Instant::now();
        let mut pace = Pace::default();
        pace.note(start, 1, 64);
        assert_eq!(pace.samples_per_second(), None);
        for second in 1..=100 {
            pace.note(
                start + Duration::from_secs(second),
                1 + second * 2,
                (1 + second * 2) * 64,
            );
        }
        assert!((pace.samples_per_second().expect("known") - 128.0).abs() < 1e-6);
        assert_eq!(pace.left(20), Some(Duration::from_secs(10)));
        assert!(pace.seen.len() < 20);
    }

    #[test]
    fn a_burst_of_statuses_says_nothing_about_the_pace() {
        let start = Instant::now();
        let mut pace = Pace::default();
        pace.note(start, 0, 64);
        pace.note(start + Duration::from_millis(1), 1, 64);
        assert_eq!((pace.samples_per_second(), pace.left(5)), (None, None));
        pace.note(start + Duration::from_secs(1), 3, 192);
        assert_eq!(pace.samples_per_second(), Some(128.0));
    }

    #[test]
    fn a_status_without_a_new_step_changes_nothing() {
        let start = Instant::now();
        let mut pace = Pace::default();
        pace.note(start, 1, 64);
        pace.note(start + Duration::from_secs(9), 1, 64);
        assert_eq!(pace.seen.len(), 1);
    }
}
