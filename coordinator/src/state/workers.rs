//! How many workers a run has.

use std::str::FromStr;

use mks2_proto::failure::Failure;

/// `N`, or `MIN:MAX`.
///
/// With `N` a run starts when N workers are here and goes on while one is left. With `MIN:MAX` it
/// starts with any number between, and waits whenever there are fewer than MIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workers {
    /// The run does not start with fewer.
    pub start: u32,
    /// The run waits while there are fewer.
    pub min: u32,
    /// The run takes no more, unless it is scaled.
    pub max: u32,
}

impl Workers {
    /// Exactly so many at the start, and at least one later.
    #[must_use]
    pub fn exactly(number: u32) -> Self {
        Self {
            start: number,
            min: number.min(1),
            max: number,
        }
    }

    /// Whether a job of so many lanes can have them.
    ///
    /// # Errors
    /// No workers, or more than lanes: each holds at least one.
    pub fn check(self, lanes: u32) -> Result<(), Failure> {
        let most = self.max;
        if most == 0 {
            return Err(Failure::settings(
                "the run has no workers",
                "0 workers were asked for",
                "ask for at least one: --workers 1",
            ));
        }
        if most > lanes {
            return Err(Failure::settings(
                format!("{most} workers are too many for this job"),
                format!("it has {lanes} lanes, and each worker holds at least one"),
                format!("use --workers {lanes} or fewer, or set lanes to {most} or more"),
            ));
        }
        Ok(())
    }
}

impl std::fmt::Display for Workers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if *self == Self::exactly(self.max) {
            return write!(f, "{}", self.max);
        }
        write!(f, "{}:{}", self.min, self.max)
    }
}

impl FromStr for Workers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |part: &str| {
            let parsed = part.parse::<u32>().ok().filter(|number| *number > 0);
            parsed.ok_or_else(|| {
                "it must be a number of workers or MIN:MAX, each 1 or larger".to_owned()
            })
        };
        let Some((min, max)) = text.split_once(':') else {
            return number(text).map(Self::exactly);
        };
        let (min, max) = (number(min)?, number(max)?);
        if min > max {
            return Err("MIN must be at most MAX, as in 2:4".to_owned());
        }
        Ok(Self {
            start: min,
            min,
            max,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_and_written() {
        for text in ["1", "4", "2:4", "3:3"] {
            let workers: Workers = text.parse().expect(text);
            assert_eq!(workers.to_string(), text);
        }
        // With one worker both forms mean the same.
        assert_eq!(
            "1:1".parse::<Workers>().map(|w| w.to_string()),
            Ok("1".into())
        );
        for text in ["", "x", "0", "2:", ":4", "4:2", "0:2", "-1", "1:2:3"] {
            assert!(text.parse::<Workers>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_job_needs_a_lane_for_each() {
        assert!(Workers::exactly(8).check(8).is_ok());
        assert!(Workers::exactly(0).check(8).is_err());
        for text in ["9", "2:9"] {
            let workers: Workers = text.parse().expect(text);
            let refused = workers.check(8).expect_err(text);
            assert_eq!(refused.what, "9 workers are too many for this job");
        }
    }
}
