//! Numbers for people.

use std::time::Duration;

/// `12,345`
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1.23 M`: three digits and a decimal prefix.
pub(crate) fn short(number: u64) -> String {
    scaled(
        number as f64,
        1000.0,
        &["", " k", " M", " G", " T", " P", " E"],
    )
}

/// `1.23 MiB`
pub(crate) fn bytes(number: u64) -> String {
    scaled(
        number as f64,
        1024.0,
        &[" B", " KiB", " MiB", " GiB", " TiB", " PiB", " EiB"],
    )
}

fn scaled(mut value: f64, base: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while value >= base && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    let decimals = match value {
        _ if unit == 0 => 0,
        value if value < 10.0 => 2,
        value if value < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}{}", units[unit])
}

/// Bytes of `5GB`, `500MB`, `2GiB` or a plain number.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let units: [(&str, u64); 7] = [
        ("KB", 1000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("", 1),
    ];
    let parts = units.iter().find_map(|(unit, bytes)| {
        let number = text.strip_suffix(unit)?.trim();
        number.parse::<u64>().ok()?.checked_mul(*bytes)
    });
    parts
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| "it must be a size such as 5GB, 500MB or 2GiB".into())
}

/// `1:02:03` or `2:03`
pub(crate) fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 {
        format!("{hours}:{minutes:02}:{seconds:02}")
    } else {
        format!("{minutes}:{seconds:02}")
    }
}

/// `93.4 %` of a share.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// `worker` or `workers`
pub(crate) fn plural(number: u64, word: &str) -> String {
    format!(
        "{} {word}{}",
        count(number),
        if number == 1 { "" } else { "s" }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_decimal_or_binary_units() {
        assert_eq!(size("5GB"), Ok(5_000_000_000));
        assert_eq!(size("2 GiB"), Ok(2 << 30));
        assert_eq!(size("70"), Ok(70));
        for wrong in ["", "0MB", "5", "-1KB", "1.5GB", "5gb", "99999999999GiB"] {
            assert_eq!(size(wrong).is_err(), wrong != "5", "{wrong}");
        }
    }

    #[test]
    fn numbers_are_short_and_readable() {
        assert_eq!(count(0), "0");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(short(999), "999");
        assert_eq!(short(1_234_567), "1.23 M");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(64 << 20), "64.0 MiB");
        assert_eq!(clock(Duration::from_secs(3723)), "1:02:03");
        assert_eq!(clock(Duration::from_secs(63)), "1:03");
        assert_eq!(percent(0.934), "93.4 %");
        assert_eq!(plural(1, "worker"), "1 worker");
        assert_eq!(plural(2, "lane"), "2 lanes");
    }
}
