//! The tables of docs/benchmarks.md. Each has its place between two marks; the text around stays.

use std::fs;

use super::Line;
use crate::fault::{Fault, Outcome};
use crate::{places, shell, ui};

const PAGE: &str = "docs/benchmarks.md";

pub(super) fn table(lines: &[Line]) -> String {
    let rows = lines.iter().map(|line| {
        vec![
            line.name.to_owned(),
            shown(line, line.ours),
            format!("{} {}", line.against_name, shown(line, line.against)),
            format!("{:.2}x", line.ratio),
            format!("{:.2}x", line.wanted),
            if line.ratio >= line.wanted {
                "yes"
            } else {
                "no"
            }
            .to_owned(),
        ]
    });
    let head = [
        "what",
        "ours",
        "against",
        "ratio",
        "wanted at least",
        "reached",
    ];
    ui::table(&head, &rows.collect::<Vec<_>>())
}

fn shown(line: &Line, value: f64) -> String {
    match line.is_bytes {
        true => format!("{:.0} MiB", value / f64::from(1 << 20)),
        false => seconds(value),
    }
}

fn seconds(value: f64) -> String {
    match value {
        small if small < 1e-3 => format!("{:.1} us", small * 1e6),
        middle if middle < 1.0 => format!("{:.2} ms", middle * 1e3),
        large => format!("{large:.2} s"),
    }
}

/// Puts a table into the page, in its own section.
pub(super) fn write(title: &str, table: &str, rounds: u32) -> Outcome {
    let path = places::root().join(PAGE);
    let page = fs::read_to_string(&path).map_err(|e| Fault::file("read", &path, &e))?;
    let machine = machine();
    let body =
        format!("## {title}\n\nMedian of {rounds} interleaved rounds on {machine}.\n\n{table}");
    fs::write(&path, with_section(&page, title, &body))
        .map_err(|error| Fault::file("write", &path, &error))
}

/// The page with a section replaced, or added at the end.
fn with_section(page: &str, title: &str, body: &str) -> String {
    let (open, close) = (format!("<!-- bench: {title} -->"), "<!-- /bench -->");
    let section = format!("{open}\n{body}\n{close}");
    let place = page.find(&open).and_then(|start| {
        let end = page[start..].find(close)? + start + close.len();
        Some((start, end))
    });
    match place {
        Some((start, end)) => format!("{}{section}{}", &page[..start], &page[end..]),
        None => format!("{}\n\n{section}\n", page.trim_end()),
    }
}

/// Cores and processor, without which no figure means much.
fn machine() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let date = shell::read(shell::program("date").arg("+%Y-%m-%d")).unwrap_or_default();
    format!(
        "{cores} cores of {}, {}",
        model.unwrap_or("an unknown processor"),
        date.trim()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_replaced_where_it_stands_and_the_rest_stays() {
        let page = with_section("# Benchmarks\n\nIntro.\n", "A", "first");
        let page = with_section(&page, "B", "other");
        let page = with_section(&page, "A", "second");
        assert!(!page.contains("first"));
        assert!(page.starts_with("# Benchmarks\n\nIntro.\n\n<!-- bench: A -->\nsecond\n"));
        assert!(page.contains("<!-- bench: B -->\nother\n<!-- /bench -->"));
    }

    #[test]
    fn seconds_are_shown_in_a_unit_that_reads_well() {
        assert_eq!(seconds(0.000_012), "12.0 us");
        assert_eq!(seconds(0.047), "47.00 ms");
        assert_eq!(seconds(1.5), "1.50 s");
    }
}
