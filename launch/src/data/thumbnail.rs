//! Pictures on a terminal: two pixels in each character, as coloured half blocks.

use std::fmt::Write;
use std::io::IsTerminal;

use mks2_dataset::picture::{Limits, RgbPicture, decode, fit};
use mks2_dataset::row::Row;

/// Size of a thumbnail, pixels: 32 columns, 16 lines.
const SIDE: u32 = 32;

/// Whether standard output is a terminal with 24-bit colours, and nobody has asked for none.
pub(super) fn can_show() -> bool {
    let variable = |name| std::env::var(name).unwrap_or_default();
    let full_colour = matches!(variable("COLORTERM").as_str(), "truecolor" | "24bit");
    std::io::stdout().is_terminal() && full_colour && variable("NO_COLOR").is_empty()
}

/// The picture of a row as lines of half blocks, if it has one that can be decoded.
pub(super) fn render(row: &Row) -> Option<String> {
    let picture = decode(row.image.as_ref()?, &Limits::default()).ok()?;
    fit(&picture, SIDE, SIDE)
        .ok()
        .map(|small| half_blocks(&small))
}

/// Two lines of pixels in each line of text: the upper half in the foreground's colour, the
/// lower in the background's.
fn half_blocks(picture: &RgbPicture) -> String {
    let lines: Vec<&[u8]> = picture
        .pixels
        .chunks_exact(picture.width as usize * 3)
        .collect();
    let mut text = String::new();
    for pair in lines.chunks(2) {
        let upper = pair[0].chunks_exact(3);
        // Below an odd last line there is white, as around the picture.
        let white = vec![255; pair[0].len()];
        let lower = pair.get(1).copied().unwrap_or(&white).chunks_exact(3);
        for (top, bottom) in upper.zip(lower) {
            let ([r, g, b], [x, y, z]) =
                ([top[0], top[1], top[2]], [bottom[0], bottom[1], bottom[2]]);
            // Writing to a string does not fail.
            let _ = write!(text, "\u{1b}[38;2;{r};{g};{b};48;2;{x};{y};{z}m\u{2580}");
        }
        text.push_str("\u{1b}[0m\n");
    }
    text
}

/// A text on one line: control characters, which could move the cursor, become blanks.
pub(super) fn plain(text: &str, most: usize) -> String {
    let clean: String = text
        .chars()
        .take(most)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if text.chars().nth(most).is_some() {
        format!("{clean}…")
    } else {
        clean
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_lines_of_pixels_make_one_line_of_text() {
        let pixels = [[255, 0, 0], [0, 255, 0], [0, 0, 255]].concat();
        let text = half_blocks(&RgbPicture {
            width: 1,
            height: 3,
            pixels,
        });
        assert_eq!(text.lines().count(), 2);
        assert!(text.starts_with("\u{1b}[38;2;255;0;0;48;2;0;255;0m"));
        assert!(text.contains("38;2;0;0;255;48;2;255;255;255m"));
        assert!(text.ends_with("\u{1b}[0m\n"));
    }

    #[test]
    fn texts_cannot_move_the_cursor() {
        assert_eq!(plain("a\u{1b}[2J\nb", 100), "a [2J b");
        assert_eq!(plain("abcdef", 3), "abc…");
    }
}
