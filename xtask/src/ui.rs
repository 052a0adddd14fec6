//! The only place that prints.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool's output"
)]

use std::fmt::Display;
use std::time::{Duration, Instant};

use crate::fault::{Fault, Outcome};

/// A line of output.
pub(crate) fn say(line: impl Display) {
    println!("{line}");
}

/// The last line of a command that failed.
pub(crate) fn error(fault: &Fault) {
    eprintln!("error: {fault}");
}

/// Stages of a command, each announced and timed.
#[derive(Default)]
pub(crate) struct Stages {
    done: Vec<(String, Duration, &'static str)>,
}

impl Stages {
    /// Announces and runs a stage. When it fails, the table so far is printed before the fault.
    pub(crate) fn run<T>(&mut self, name: &str, work: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
        println!("\n==> {name}");
        let start = Instant::now();
        let result = work();
        let word = if result.is_ok() { "ok" } else { "FAILED" };
        self.done.push((name.to_owned(), start.elapsed(), word));
        if result.is_err() {
            self.table();
        }
        result
    }

    /// Notes a stage that is left out, with the reason.
    pub(crate) fn skip(&mut self, name: &str, reason: &str) {
        println!("\n==> {name}: skipped, {reason}");
        self.done.push((name.to_owned(), Duration::ZERO, "skipped"));
    }

    /// The stages with their times.
    pub(crate) fn table(&self) {
        let rows = self.done.iter().map(|(name, time, word)| {
            vec![
                name.clone(),
                format!("{:.1} s", time.as_secs_f64()),
                (*word).to_owned(),
            ]
        });
        println!(
            "\n{}",
            table(&["stage", "time", "result"], &rows.collect::<Vec<_>>())
        );
    }
}

/// A Markdown table with aligned columns: reads well in a terminal and in a document.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows
            .iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count());
        cells
            .chain([head[column].chars().count(), 3])
            .max()
            .unwrap_or(3)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded = cells
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        format!("| {} |", padded.collect::<Vec<_>>().join(" | "))
    };
    let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
    let mut lines = vec![
        line(&mut head.iter().copied()),
        line(&mut rule.iter().map(String::as_str)),
    ];
    lines.extend(
        rows.iter()
            .map(|row| line(&mut row.iter().map(String::as_str))),
    );
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let text = table(&["name", "x"], &[vec!["a long one".into(), "1".into()]]);
        assert_eq!(
            text,
            "| name       | x   |\n| ---------- | --- |\n| a long one | 1   |"
        );
    }
}
