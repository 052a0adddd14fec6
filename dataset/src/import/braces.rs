//! Brace expansion of sources: `part-{00000..00003}.tar`, `{train,test}.jsonl`, as shells do.

/// Most names that one pattern may stand for.
const MAX_NAMES: usize = 1_000_000;

/// Expands a pattern; the leftmost braces vary slowest. Braces without a comma or a range in
/// them stay as they are.
///
/// # Errors
/// In words: a `{` that is never closed, or too many names.
pub(crate) fn expand(pattern: &str) -> Result<Vec<String>, String> {
    let Some((before, inside, after)) = first_group(pattern)? else {
        return Ok(vec![pattern.to_owned()]);
    };
    let heads = match alternatives(inside)? {
        Some(heads) => heads,
        None => expand(inside)?
            .into_iter()
            .map(|inside| format!("{{{inside}}}"))
            .collect(),
    };
    let tails = expand(after)?;
    if heads.len().saturating_mul(tails.len()) > MAX_NAMES {
        return Err(too_many());
    }
    let names = heads.iter().flat_map(|head| {
        tails
            .iter()
            .map(move |tail| format!("{before}{head}{tail}"))
    });
    Ok(names.collect())
}

fn too_many() -> String {
    format!("it stands for more than {MAX_NAMES} names")
}

/// Splits at the first brace and its partner: before, inside, after.
fn first_group(pattern: &str) -> Result<Option<(&str, &str, &str)>, String> {
    let Some(open) = pattern.find('{') else {
        return Ok(None);
    };
    let mut depth = 0usize;
    for (at, symbol) in pattern[open..].char_indices() {
        match symbol {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            let close = open + at;
            return Ok(Some((
                &pattern[..open],
                &pattern[open + 1..close],
                &pattern[close + 1..],
            )));
        }
    }
    Err("a `{` is never closed".into())
}

/// What one pair of braces stands for, or `None` if it has neither comma nor range.
fn alternatives(inside: &str) -> Result<Option<Vec<String>>, String> {
    let parts = split_at_commas(inside);
    if parts.len() == 1 {
        return range(inside);
    }
    let mut names = Vec::new();
    for part in parts {
        names.extend(expand(part)?);
        if names.len() > MAX_NAMES {
            return Err(too_many());
        }
    }
    Ok(Some(names))
}

/// Splits at the commas that are in no inner braces.
fn split_at_commas(inside: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut depth, mut start) = (0i64, 0);
    for (at, symbol) in inside.char_indices() {
        match symbol {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&inside[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&inside[start..]);
    parts
}

/// `FIRST..LAST` of whole numbers, padded with zeros if one of them is.
fn range(inside: &str) -> Result<Option<Vec<String>>, String> {
    let Some((first, last)) = inside.split_once("..") else {
        return Ok(None);
    };
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse::<u64>().ok()).flatten()
    };
    let (Some(from), Some(to)) = (number(first), number(last)) else {
        return Ok(None);
    };
    if from.abs_diff(to) >= MAX_NAMES as u64 {
        return Err(too_many());
    }
    let padded = |text: &str| text.len() > 1 && text.starts_with('0');
    let width = if padded(first) || padded(last) {
        first.len().max(last.len())
    } else {
        0
    };
    let name = |number: u64| format!("{number:0width$}");
    let names: Vec<String> = (from.min(to)..=from.max(to)).map(name).collect();
    Ok(Some(if from <= to {
        names
    } else {
        names.into_iter().rev().collect()
    }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(pattern: &str) -> Vec<String> {
        expand(pattern).unwrap()
    }

    #[test]
    fn patterns_expand_as_in_a_shell() {
        assert_eq!(names("a.tar"), ["a.tar"]);
        assert_eq!(
            names("p-{08..11}.tar"),
            ["p-08.tar", "p-09.tar", "p-10.tar", "p-11.tar"]
        );
        assert_eq!(names("{3..1}"), ["3", "2", "1"]);
        assert_eq!(names("{a,b}{1..2}"), ["a1", "a2", "b1", "b2"]);
        assert_eq!(names("x{,-y}"), ["x", "x-y"]);
        assert_eq!(names("{a,{b,c}d}"), ["a", "bd", "cd"]);
        assert_eq!(names("{single}"), ["{single}"]);
        assert_eq!(names("{a..b}"), ["{a..b}"]);
        assert_eq!(names("{x{1..2}}"), ["{x1}", "{x2}"]);
        assert_eq!(names("a}b"), ["a}b"]);
    }

    #[test]
    fn open_braces_and_floods_are_refused() {
        assert!(
            expand("part-{0..3.tar")
                .unwrap_err()
                .contains("never closed")
        );
        for flood in [
            "{0..99999999999}",
            "{0..9999}{0..9999}",
            "{0..18446744073709551615}",
        ] {
            assert!(expand(flood).unwrap_err().contains("more than"), "{flood}");
        }
    }

    proptest! {
        #[test]
        fn ranges_count_every_number_once(from in 0u64..2000, len in 0u64..300, width in 0usize..7) {
            let to = from + len;
            let (first, last) = (format!("{from:0width$}"), format!("{to:0width$}"));
            let pattern = format!("s3://b/x-{{{first}..{last}}}.tar");
            // As in bash: one number with leading zeros makes all as wide as the widest.
            let is_padded = |number: &str| number.len() > 1 && number.starts_with('0');
            let width = match is_padded(&first) || is_padded(&last) {
                true => first.len().max(last.len()),
                false => 0,
            };
            let expected: Vec<_> =
                (from..=to).map(|n| format!("s3://b/x-{n:0width$}.tar")).collect();
            prop_assert_eq!(names(&pattern), expected);
        }

        #[test]
        fn text_without_braces_is_left_alone(text in "[^{}]{0,40}") {
            prop_assert_eq!(names(&text), vec![text]);
        }

        #[test]
        fn no_text_panics(text in "[a{},.0-9]{0,24}") {
            let _ = expand(&text);
        }

        #[test]
        fn products_have_the_size_of_their_parts(counts in prop::collection::vec(1usize..5, 1..4)) {
            let pattern: String =
                counts.iter().map(|n| format!("{{{}}}", vec!["x"; n + 1].join(","))).collect();
            let expected: usize = counts.iter().map(|n| n + 1).product();
            prop_assert_eq!(names(&pattern).len(), expected);
        }
    }
}
