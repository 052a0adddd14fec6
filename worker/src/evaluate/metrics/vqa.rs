//! VQA accuracy, by the rules that [the challenge publishes](https://visualqa.org/evaluation.html):
//! an answer is right if at least three of ten people gave it, averaged over all sets of nine.
//!
//! Before they are compared, answers are normalised: lower case; no articles; no full stops but
//! decimal points; number words as digits; the apostrophe of a contraction put back; other punctuation
//! replaced by a space, apostrophes and colons excepted. As in the challenge's own program, punctuation
//! is left out without a space where some of its kind stands beside a space, or a comma between digits.

use std::collections::HashMap;
use std::sync::OnceLock;

/// So many people make an answer right.
const ENOUGH: f64 = 3.0;
const PUNCTUATION: &[char] = &[
    ';', '/', '[', ']', '"', '{', '}', '(', ')', '=', '+', '\\', '_', '-', '>', '<', '@', '`', ',',
    '?', '!',
];
const ARTICLES: [&str; 3] = ["a", "an", "the"];
const NUMBERS: [(&str, &str); 12] = [
    ("none", "0"),
    ("zero", "0"),
    ("one", "1"),
    ("two", "2"),
    ("three", "3"),
    ("four", "4"),
    ("five", "5"),
    ("six", "6"),
    ("seven", "7"),
    ("eight", "8"),
    ("nine", "9"),
    ("ten", "10"),
];
/// Contractions that are understood without one of their apostrophes. Those whose letters are another
/// word, such as `she'll`, are not among them.
const CONTRACTIONS: &str = "ain't aren't can't could've couldn't couldn't've didn't doesn't don't \
    hadn't hadn't've hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll \
    ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at \
    shan't she'd've should've shouldn't shouldn't've somebody'd somebody'd've somebody'll \
    somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll \
    that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't \
    we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd \
    who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all \
    y'all'll y'all'd've you'd you'd've you'll you're you've";

/// The share of right answers that `answer` counts for, between 0 and 1.
#[must_use]
pub fn accuracy(answer: &str, people: &[String]) -> f64 {
    let answer = normalised(answer);
    let same: Vec<bool> = people.iter().map(|own| normalised(own) == answer).collect();
    let all = same.iter().filter(|is_same| **is_same).count();
    let without = |own: &bool| ((all - usize::from(*own)) as f64 / ENOUGH).min(1.0);
    same.iter().map(without).sum::<f64>() / same.len().max(1) as f64
}

/// An answer as it is compared.
#[must_use]
pub fn normalised(answer: &str) -> String {
    let bare = without_stops(&without_punctuation(answer.trim()));
    let lower = bare.to_lowercase();
    let words = lower.split_whitespace().map(|word| {
        let number = NUMBERS.iter().find(|(name, _)| *name == word);
        number.map_or(word, |(_, digits)| *digits)
    });
    let words = words.filter(|word| !ARTICLES.contains(word));
    let words = words.map(|word| contractions().get(word).map_or(word, String::as_str));
    words.collect::<Vec<_>>().join(" ")
}

fn without_punctuation(text: &str) -> String {
    let text = text.replace(['\n', '\t'], " ");
    let characters: Vec<char> = text.chars().collect();
    let has_number_with_comma = characters
        .windows(3)
        .any(|three| three[1] == ',' && three[0].is_ascii_digit() && three[2].is_ascii_digit());
    let is_beside_a_space = |mark: char| {
        let pairs = characters.windows(2);
        let mut pairs = pairs.map(|pair| (pair[0], pair[1]));
        pairs.any(|pair| pair == (mark, ' ') || pair == (' ', mark))
    };
    let mut kept = String::with_capacity(text.len());
    for character in &characters {
        if !PUNCTUATION.contains(character) {
            kept.push(*character);
        } else if !has_number_with_comma && !is_beside_a_space(*character) {
            kept.push(' ');
        }
    }
    kept
}

/// Full stops stay before a digit alone.
fn without_stops(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let is_decimal = characters.peek().is_some_and(char::is_ascii_digit);
        if character != '.' || is_decimal {
            kept.push(character);
        }
    }
    kept
}

/// A contraction that lacks one apostrophe, to the one that has all.
fn contractions() -> &'static HashMap<String, String> {
    static CONTRACTED: OnceLock<HashMap<String, String>> = OnceLock::new();
    CONTRACTED.get_or_init(|| {
        let mut forms = HashMap::new();
        for whole in CONTRACTIONS.split_whitespace() {
            for (at, _) in whole.match_indices('\'') {
                let form = [&whole[..at], &whole[at + 1..]].concat();
                forms.insert(form, whole.to_owned());
            }
        }
        forms
    })
}
