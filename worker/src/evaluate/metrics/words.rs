//! Captions as words, as COCO's caption evaluation makes them with Stanford's PTBTokenizer 3.4.1: lower
//! case, contractions apart (`it 's`, `do n't`), punctuation left out.
//!
//! It agrees with that program on ordinary captions; it is not all of it. Known differences: `no.` before a
//! number loses its full stop here, and web addresses, `at&t` and rare abbreviations are cut elsewhere. Round and other brackets stay as `-lrb-` and so on, as they do there.

/// The apostrophe of typographers.
const CURLY: char = '\u{2019}';
/// Words whose full stop belongs to them.
const ABBREVIATIONS: &[&str] = &[
    "mr", "mrs", "ms", "dr", "st", "mt", "jr", "sr", "vs", "etc", "inc", "co", "corp", "ltd",
    "ave", "blvd", "gen", "rev", "col", "sgt", "prof", "ph.d", "approx", "jan", "feb", "aug",
    "sept", "oct", "nov", "dec",
];
/// Words that are two.
const PAIRS: &[(&str, usize)] = &[
    ("cannot", 3),
    ("gonna", 3),
    ("wanna", 3),
    ("gotta", 3),
    ("gimme", 3),
    ("lemme", 3),
    ("'tis", 2),
    ("'twas", 2),
];
/// What is split off the end of a word.
const ENDINGS: [&str; 7] = ["n't", "'s", "'m", "'d", "'ll", "'re", "'ve"];

/// The words of a caption.
#[must_use]
pub fn words(caption: &str) -> Vec<String> {
    let plain: String = caption
        .chars()
        .flat_map(char::to_lowercase)
        .map(plain)
        .collect();
    let mut words = Vec::new();
    for chunk in plain.split_whitespace() {
        Chunk::of(chunk).cut(&mut words);
    }
    words
}

/// Typographic signs as typewriters have them.
fn plain(character: char) -> char {
    match character {
        '\u{2018}' => '\'',
        '\u{201c}' | '\u{201d}' | '`' => '"',
        // Dashes part words.
        '\u{2013}' | '\u{2014}' | '\u{2026}' => ';',
        // The other program cannot read these.
        rare if rare > '\u{ffff}' => ' ',
        usual => usual,
    }
}

/// What stands between two spaces.
struct Chunk {
    characters: Vec<char>,
}

impl Chunk {
    fn of(text: &str) -> Self {
        Self {
            characters: text.chars().collect(),
        }
    }

    fn at(&self, place: usize) -> char {
        self.characters.get(place).copied().unwrap_or(' ')
    }

    /// Appends its words.
    fn cut(&self, words: &mut Vec<String>) {
        let (mut word, mut place) = (String::new(), 0);
        while let Some(character) = self.characters.get(place) {
            if self.belongs(place, &word) {
                word.push(*character);
                place += 1;
                continue;
            }
            finish(&mut word, words);
            let shouted: String = self.characters[place..]
                .iter()
                .take_while(|mark| matches!(mark, '?' | '!'))
                .collect();
            // Several of them are a word there, and no punctuation.
            match shouted.len() {
                0 | 1 => words.extend(sign(*character)),
                _ => words.push(shouted.clone()),
            }
            place += shouted.len().max(1);
        }
        finish(&mut word, words);
    }

    /// Whether the character at `place` belongs to the word before it or begins one.
    fn belongs(&self, place: usize, word: &str) -> bool {
        let (character, next) = (self.at(place), self.at(place + 1));
        let is_inside = !word.is_empty() && next.is_alphanumeric();
        let is_number = word.ends_with(|last: char| last.is_ascii_digit()) && next.is_ascii_digit();
        match character {
            '\'' | CURLY if word.is_empty() => self.begins_with_apostrophe(place),
            '\'' | CURLY | '-' | '/' | '@' if !word.is_empty() => is_inside,
            '-' | '+' => next.is_ascii_digit(),
            ',' | ':' => is_number,
            '.' => is_inside || !word.is_empty() && keeps_its_stop(word),
            '_' => true,
            other => other.is_alphanumeric() || is_mark(other),
        }
    }

    /// `'tis`, `'90s`
    fn begins_with_apostrophe(&self, place: usize) -> bool {
        let rest: String = self.characters[place..].iter().collect();
        let is_known = PAIRS.iter().any(|(word, _)| rest.starts_with(word));
        is_known || self.at(place + 1).is_ascii_digit()
    }
}

/// Marks that go with the letter before them.
fn is_mark(character: char) -> bool {
    matches!(character, '\u{300}'..='\u{36f}')
}

/// `p.m`, `etc`, `c`
fn keeps_its_stop(word: &str) -> bool {
    let letters = |part: &str| part.chars().count() == 1 && part.chars().all(char::is_alphabetic);
    word.split('.').all(letters) || ABBREVIATIONS.contains(&word)
}

/// A sign that is a word of its own; none for punctuation, which is left out.
fn sign(character: char) -> Option<String> {
    let name = match character {
        '(' => "-lrb-",
        ')' => "-rrb-",
        '[' => "-lsb-",
        ']' => "-rsb-",
        '{' => "-lcb-",
        '}' => "-rcb-",
        '"' | '\'' | CURLY | '.' | '?' | '!' | ',' | ':' | '-' | ';' => return None,
        other => return Some(other.to_string()),
    };
    Some(name.to_owned())
}

/// The word is over: its parts are appended. Only an ending's apostrophe is made straight.
fn finish(word: &mut String, words: &mut Vec<String>) {
    let whole = std::mem::take(word);
    if whole.is_empty() {
        return;
    }
    let straight = whole.replace(CURLY, "'");
    if let Some((_, cut)) = PAIRS.iter().find(|(pair, _)| *pair == straight) {
        let (first, second) = straight.split_at(*cut);
        words.extend([first.to_owned(), second.to_owned()]);
        return;
    }
    let mut endings = ENDINGS.iter();
    let Some(ending) = endings.find(|ending| straight.ends_with(*ending)) else {
        words.push(whole);
        return;
    };
    let kept = whole.chars().count() - ending.len();
    let first: String = whole.chars().take(kept).collect();
    if !first.is_empty() {
        words.push(first);
    }
    words.push((*ending).to_owned());
}
