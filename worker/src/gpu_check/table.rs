//! The table that the checks end with.

use std::io::{self, Write};

/// What a number must be.
#[derive(Clone, Copy, Debug)]
pub(super) enum Limit {
    /// At most this.
    AtMost(f64),
    /// Below this.
    Below(f64),
}

/// One row.
#[derive(Debug)]
pub(super) struct Check {
    what: String,
    found: String,
    wanted: String,
    outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed,
    NotDone,
    /// A figure that nothing is asked of.
    Noted,
}

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Self::Passed => "ok",
            Self::Failed => "FAILED",
            Self::NotDone => "not done",
            Self::Noted => "",
        }
    }
}

impl Check {
    /// A number beside its limit, with a remark. What is no number has failed.
    pub(super) fn measured(what: String, found: f64, limit: Limit, remark: String) -> Self {
        let (passed, wanted) = match limit {
            Limit::AtMost(most) => (found <= most, format!("at most {most:.1e}")),
            Limit::Below(most) => (found < most, format!("below {most:.4}")),
        };
        let found = match limit {
            Limit::AtMost(_) => format!("{found:.1e}"),
            Limit::Below(_) => format!("{found:.4}"),
        };
        let found = [found, remark].join(" ").trim_end().to_owned();
        Self::new(what, found, wanted, passed)
    }

    /// Something that is as it should be, or not.
    pub(super) fn new(what: String, found: String, wanted: String, passed: bool) -> Self {
        let outcome = if passed {
            Outcome::Passed
        } else {
            Outcome::Failed
        };
        Self {
            what,
            found,
            wanted,
            outcome,
        }
    }

    /// A check that came to nothing.
    pub(super) fn failed(what: String, why: String) -> Self {
        Self::new(what, why, String::new(), false)
    }

    /// A check for which something is missing here, which is no failure.
    pub(super) fn not_done(what: String, why: &str) -> Self {
        Self {
            what,
            found: why.to_owned(),
            wanted: String::new(),
            outcome: Outcome::NotDone,
        }
    }

    /// A figure for the reader.
    pub(super) fn noted(what: String, found: String) -> Self {
        Self {
            what,
            found,
            wanted: String::new(),
            outcome: Outcome::Noted,
        }
    }

    /// Whether it speaks against the device.
    pub(super) fn has_failed(&self) -> bool {
        self.outcome == Outcome::Failed
    }
}

/// Writes the rows in columns.
pub(super) fn write(checks: &[Check], out: &mut dyn Write) -> io::Result<()> {
    let width = |of: fn(&Check) -> &str, least: usize| {
        let widths = checks.iter().map(|check| of(check).chars().count());
        widths.chain([least]).max().unwrap_or(least)
    };
    let what = width(|check| &check.what, "check".len());
    let found = width(|check| &check.found, "found".len());
    let wanted = width(|check| &check.wanted, "wanted".len());
    let mut row = |cells: [&str; 4]| {
        let [a, b, c, d] = cells;
        let line = format!("{a:<what$}  {b:<found$}  {c:<wanted$}  {d}");
        writeln!(out, "{}", line.trim_end())
    };
    row(["check", "found", "wanted", ""])?;
    for check in checks {
        row([
            &check.what,
            &check.found,
            &check.wanted,
            check.outcome.word(),
        ])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_over_its_limit_and_no_number_have_failed() {
        let check = |found| Check::measured("x".into(), found, Limit::AtMost(1e-5), String::new());
        assert!(!check(1e-6).has_failed());
        assert!(check(2e-5).has_failed());
        assert!(check(f64::NAN).has_failed());
        let below = |found| Check::measured("x".into(), found, Limit::Below(1.0), String::new());
        assert!(below(1.0).has_failed() && !below(0.9).has_failed());
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let checks = [
            Check::new("a long name".into(), "1".into(), String::new(), true),
            Check::not_done("b".into(), "no GPU"),
        ];
        let mut out = Vec::new();
        write(&checks, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "check        found   wanted");
        assert_eq!(lines[1], "a long name  1               ok");
        assert_eq!(lines[2], "b            no GPU          not done");
    }
}
