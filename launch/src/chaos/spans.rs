//! Lengths of time: read from a command line, written as seconds.

use std::time::Duration;

use serde::Serializer;

/// `500ms`, `15s`, `10m`, `1h`; `0`: none.
pub(super) fn parse(text: &str) -> Result<Duration, String> {
    let wrong =
        || "it must be a length of time, for example 15s, 10m or 500ms; 0: never".to_owned();
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: f64 = digits.parse().map_err(|_| wrong())?;
    let unit = match &text[digits.len()..] {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(wrong()),
    };
    Duration::try_from_secs_f64(number * unit).map_err(|_| wrong())
}

/// As seconds.
pub(super) fn seconds<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_read_with_their_units() {
        let millis = |text| parse(text).map(|time| time.as_millis());
        assert_eq!(millis("15s"), Ok(15_000));
        assert_eq!(millis("10m"), Ok(600_000));
        assert_eq!(millis("1.5h"), Ok(5_400_000));
        assert_eq!(millis("250ms"), Ok(250));
        assert_eq!(millis("0"), Ok(0));
        for wrong in ["", "15", "s", "-1s", "1d", "1 s"] {
            assert!(millis(wrong).is_err(), "{wrong}");
        }
    }
}
