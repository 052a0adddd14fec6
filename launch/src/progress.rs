//! What a person sees while a run goes on: one bar per stage on a terminal, plain lines every few
//! seconds elsewhere, events for JSON logs. Fed with statuses, by `train` and `watch` alike.

mod pace;

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use mks2_proto::v1::{RunState, StageChanged, StatusResponse, StepMetrics};

use crate::output::Output;
use crate::units::{clock, count};
use pace::Pace;

/// Time between two plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// The progress of one run.
#[derive(Debug)]
pub(crate) struct Progress {
    output: Output,
    stage: Option<Stage>,
    /// What is shown while no stage runs.
    waiting: Option<ProgressBar>,
    last_reason: String,
    /// Number of the last notice that was shown.
    noticed: u64,
    /// Whom the others wait for, as it was shown last.
    stalled: String,
}

/// A stage at work.
#[derive(Debug)]
struct Stage {
    name: String,
    first_step: u64,
    steps: u64,
    since: Instant,
    pace: Pace,
    bar: Option<ProgressBar>,
    last_line: Option<Instant>,
    last: Option<StepMetrics>,
    /// Steps done of it.
    done: u64,
}

/// How a stage was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It is done: another one follows, or the run is finished.
    Finished,
    /// The run was stopped, failed, or is not followed any more.
    Left,
}

impl Progress {
    pub(crate) fn new(output: &Output) -> Self {
        Self {
            output: output.clone(),
            stage: None,
            waiting: None,
            last_reason: String::new(),
            noticed: 0,
            stalled: String::new(),
        }
    }

    /// Shows a status.
    pub(crate) fn update(&mut self, status: &StatusResponse) {
        for notice in &status.notices {
            if notice.number > self.noticed {
                self.noticed = notice.number;
                self.output.warning(&notice.what, &notice.why);
            }
        }
        if status.stalled != self.stalled {
            self.stalled.clone_from(&status.stalled);
            if !self.stalled.is_empty() {
                self.output.note(&self.stalled);
            }
        }
        match status.state() {
            RunState::WaitingForMembers => self.wait(&status.reason),
            RunState::Running | RunState::Stopping => self.advance(status),
            RunState::Finished => self.close(End::Finished),
            _ => self.finish(),
        }
    }

    /// Ends the display; the last stage keeps its line, which says where it was left.
    pub(crate) fn finish(&mut self) {
        self.close(End::Left);
    }

    fn close(&mut self, end: End) {
        if let Some(waiting) = self.waiting.take() {
            waiting.finish_and_clear();
        }
        if let Some(stage) = self.stage.take() {
            stage.end(end, &self.output);
        }
    }

    fn wait(&mut self, reason: &str) {
        if reason == self.last_reason {
            return;
        }
        reason.clone_into(&mut self.last_reason);
        if self.output.shows_bars() {
            let bar = self.waiting.get_or_insert_with(|| spinner(&self.output));
            bar.set_message(reason.to_owned());
        } else {
            self.output.note(reason);
        }
    }

    fn advance(&mut self, status: &StatusResponse) {
        if let Some(waiting) = self.waiting.take() {
            waiting.finish_and_clear();
        }
        let Some(announced) = &status.stage else {
            return;
        };
        let is_new = self
            .stage
            .as_ref()
            .is_none_or(|stage| stage.name != announced.stage);
        if is_new {
            if let Some(before) = self.stage.take() {
                before.end(End::Finished, &self.output);
            }
            self.stage = Some(Stage::begin(announced, &self.output));
        }
        if let Some(stage) = &mut self.stage {
            stage.show(status, &self.output);
        }
    }
}

impl Stage {
    fn begin(announced: &StageChanged, output: &Output) -> Self {
        let steps = announced.last_step.saturating_sub(announced.first_step);
        let bar = output.shows_bars().then(|| {
            let bar = if steps == 0 {
                spinner(output)
            } else {
                meter(output, steps)
            };
            bar.set_prefix(announced.stage.clone());
            bar
        });
        if output.is_json() {
            tracing::info!(
                stage = announced.stage,
                first_step = signed(announced.first_step),
                last_step = signed(announced.last_step),
                "stage begins"
            );
        }
        Self {
            name: announced.stage.clone(),
            first_step: announced.first_step,
            steps,
            since: Instant::now(),
            pace: Pace::default(),
            bar,
            last_line: None,
            last: None,
            done: 0,
        }
    }

    fn show(&mut self, status: &StatusResponse, output: &Output) {
        let done = status.step.saturating_sub(self.first_step).min(self.steps);
        self.done = done;
        if let Some(metrics) = status.metrics.as_ref().filter(|m| m.stage == self.name) {
            self.pace.note(Instant::now(), done, metrics.samples);
            self.last = Some(metrics.clone());
        }
        let text = self.describe(done);
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            bar.set_message(text);
        } else if self.line_is_due() {
            self.last_line = Some(Instant::now());
            self.log(done, &text, output);
        }
    }

    fn line_is_due(&self) -> bool {
        self.last_line
            .is_none_or(|last| last.elapsed() >= LINE_INTERVAL)
    }

    fn log(&self, done: u64, text: &str, output: &Output) {
        if output.is_json() {
            tracing::info!(
                stage = self.name,
                step = signed(self.first_step + done),
                loss = self.last.as_ref().map(|metrics| metrics.loss),
                samples_per_second = self.pace.samples_per_second(),
                seconds_left = self
                    .pace
                    .left(self.steps - done)
                    .map(|left| left.as_secs_f64()),
                "progress"
            );
        } else if self.steps == 0 {
            output.note(&format!("{}  {text}", self.name));
        } else {
            output.note(&format!(
                "{}  {}/{}  {text}",
                self.name,
                count(done),
                count(self.steps)
            ));
        }
    }

    /// `loss 1.2345  512 samples/s  0:35 left`
    fn describe(&self, done: u64) -> String {
        if self.steps == 0 {
            return format!("at work for {}", clock(self.since.elapsed()));
        }
        let mut parts = Vec::new();
        parts.extend(
            self.last
                .as_ref()
                .map(|metrics| format!("loss {:.4}", metrics.loss)),
        );
        parts.extend(
            self.pace
                .samples_per_second()
                .map(|rate| format!("{rate:.0} samples/s")),
        );
        parts.extend(
            self.pace
                .left(self.steps - done)
                .map(|left| format!("{} left", clock(left))),
        );
        if parts.is_empty() {
            "starting".into()
        } else {
            parts.join("  ")
        }
    }

    /// `loss 1.2345  in 0:35`, or `loss 1.2345  stopped at step 9 of 60`
    fn last_words(&self, end: End) -> String {
        let loss = self
            .last
            .as_ref()
            .map(|m| format!("loss {:.4}  ", m.loss))
            .unwrap_or_default();
        match end {
            End::Finished => format!("{loss}in {}", clock(self.since.elapsed())),
            End::Left if self.steps == 0 => "stopped before its end".into(),
            End::Left => format!(
                "{loss}stopped at step {} of {}",
                count(self.done),
                count(self.steps)
            ),
        }
    }

    fn end(self, end: End, output: &Output) {
        let text = self.last_words(end);
        match self.bar {
            Some(bar) => bar.abandon_with_message(text),
            None if output.is_json() => {
                tracing::info!(
                    stage = self.name,
                    seconds = self.since.elapsed().as_secs_f64(),
                    finished = end == End::Finished,
                    "stage ends"
                );
            }
            None => output.note(&format!("{}  {text}", self.name)),
        }
    }
}

/// OpenTelemetry knows signed numbers only.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn meter(output: &Output, steps: u64) -> ProgressBar {
    let bar = output.bars().add(ProgressBar::new(steps));
    let template = if output.has_color() {
        "{prefix:12.bold} {bar:30.cyan/dim} {pos:>6}/{len}  {msg}"
    } else {
        "{prefix:12} {bar:30} {pos:>6}/{len}  {msg}"
    };
    styled(bar, template)
}

fn spinner(output: &Output) -> ProgressBar {
    let bar = output.bars().add(ProgressBar::new_spinner());
    let bar = styled(bar, "{prefix:12} {spinner} {msg}");
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// The templates are constants and a test reads them; one that is wrong keeps the usual style.
fn styled(bar: ProgressBar, template: &str) -> ProgressBar {
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("━╸─"));
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(steps: u64) -> Stage {
        Stage {
            name: "memory".into(),
            first_step: 100,
            steps,
            since: Instant::now(),
            pace: Pace::default(),
            bar: None,
            last_line: None,
            last: None,
            done: 0,
        }
    }

    #[test]
    fn a_stage_says_what_it_knows() {
        assert_eq!(stage(10).describe(0), "starting");
        assert_eq!(stage(0).describe(0), "at work for 0:00");
        let mut known = stage(10);
        known.last = Some(StepMetrics {
            loss: 1.5,
            ..StepMetrics::default()
        });
        assert_eq!(known.describe(1), "loss 1.5000");
    }

    #[test]
    fn a_stage_that_was_left_does_not_look_finished() {
        let mut left = stage(60);
        left.done = 9;
        assert_eq!(left.last_words(End::Left), "stopped at step 9 of 60");
        assert_eq!(left.last_words(End::Finished), "in 0:00");
        assert_eq!(stage(0).last_words(End::Left), "stopped before its end");
        assert_eq!(stage(0).last_words(End::Finished), "in 0:00");
    }

    #[test]
    fn templates_are_well_formed() {
        for template in [
            "{prefix:12.bold} {bar:30.cyan/dim} {pos:>6}/{len}  {msg}",
            "{spinner}",
        ] {
            assert!(ProgressStyle::with_template(template).is_ok());
        }
    }
}
