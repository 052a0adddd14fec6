//! The only place that writes to the terminal: results to standard output, everything about the
//! way there to standard error.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{MultiProgress, ProgressDrawTarget};
use mks2_proto::failure::{ExitCode, Failure};
use mks2_proto::telemetry::BoxMakeWriter;

use crate::cli::Common;

/// How this process talks to its user.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    json: bool,
    quiet: bool,
    bars: MultiProgress,
    is_terminal: bool,
    color: bool,
    /// How it ended is told once.
    told: Arc<AtomicBool>,
}

impl Output {
    pub(crate) fn new(common: &Common) -> Self {
        let is_terminal = io::stderr().is_terminal();
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let output = Self {
            json: common.is_json(),
            quiet: common.quiet,
            bars: MultiProgress::new(),
            is_terminal,
            color: is_terminal && !no_color && !dumb,
            told: Arc::default(),
        };
        if !output.shows_bars() {
            output.bars.set_draw_target(ProgressDrawTarget::hidden());
        }
        output
    }

    /// Bars make sense; else plain lines.
    pub(crate) fn shows_bars(&self) -> bool {
        self.is_terminal && !self.json && !self.quiet
    }

    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    pub(crate) fn has_color(&self) -> bool {
        self.color
    }

    pub(crate) fn bars(&self) -> &MultiProgress {
        &self.bars
    }

    /// A line about the way there. In JSON, lines are logs and come from `tracing`.
    pub(crate) fn note(&self, line: &str) {
        if self.json {
            tracing::info!("{line}");
        } else if !self.quiet {
            self.say(line);
        }
    }

    /// Something went wrong and the work goes on. Shown even when quiet.
    pub(crate) fn warning(&self, what: &str, why: &str) {
        if self.json {
            tracing::warn!(why, "{what}");
        } else if self.color {
            self.say(&format!(
                "\u{1b}[1;33mwarning:\u{1b}[0m {what}\n  why: {why}"
            ));
        } else {
            self.say(&format!("warning: {what}\n  why: {why}"));
        }
    }

    /// A result, whole lines.
    pub(crate) fn result(&self, text: &str) {
        self.raw(&format!("{}\n", text.trim_end_matches('\n')));
    }

    /// A result as it is. A closed pipe is not worth an error: the reader has seen enough.
    pub(crate) fn raw(&self, text: &str) {
        self.bars.suspend(|| {
            let mut stdout = io::stdout().lock();
            let _ = stdout
                .write_all(text.as_bytes())
                .and_then(|()| stdout.flush());
        });
    }

    /// How it ended, when it did not end well. Only the first one is shown: a cause may be told as
    /// soon as it is known, long before the end.
    pub(crate) fn failure(&self, failure: &Failure) {
        if !self.told.swap(true, Ordering::Relaxed) {
            self.problem(failure);
        }
    }

    /// One of several things that are wrong.
    pub(crate) fn problem(&self, failure: &Failure) {
        if self.json {
            self.say(&failure.to_json().to_string());
        } else if failure.exit == ExitCode::Stopped {
            // What was asked for is no error.
            self.say(&format!(
                "{}: {}\n  {}",
                failure.what, failure.why, failure.cure
            ));
        } else if self.color {
            let text = failure.to_string();
            let rest = text.strip_prefix("error:").unwrap_or(&text);
            self.say(&format!("\u{1b}[1;31merror:\u{1b}[0m{rest}"));
        } else {
            self.say(&failure.to_string());
        }
    }

    /// Whole lines on standard error. It may be closed, by `| head` for example: then nobody
    /// listens any more, and the work goes on.
    fn say(&self, text: &str) {
        self.bars.suspend(|| {
            let _ = writeln!(io::stderr().lock(), "{text}");
        });
    }

    /// Where log lines go: above the bars.
    pub(crate) fn log_writer(&self) -> BoxMakeWriter {
        let bars = self.bars.clone();
        BoxMakeWriter::new(move || AboveBars {
            bars: bars.clone(),
            line: Vec::new(),
        })
    }
}

/// Collects one log line and writes it while the bars are away.
struct AboveBars {
    bars: MultiProgress,
    line: Vec<u8>,
}

impl Write for AboveBars {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            return Ok(());
        }
        self.bars.suspend(|| io::stderr().lock().write_all(&line))
    }
}

impl Drop for AboveBars {
    fn drop(&mut self) {
        // Standard error is gone: there is nobody left to tell.
        let _ = self.flush();
    }
}
