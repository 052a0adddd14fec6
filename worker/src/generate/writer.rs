//! Tokens become text, piece by piece.
//!
//! Two things keep a piece back: bytes that are no whole character yet, and characters that may be
//! the beginning of a stop text.

use mks2_proto::failure::Failure;

use crate::text::{TextEncoder, to_tokens};

/// Tokens of the prompt that decide how the first ones of the answer look, such as whether a space
/// stands before them.
const CONTEXT: usize = 8;

/// The text of one answer.
pub(super) struct Writer<'a> {
    encoder: &'a TextEncoder,
    stop: Vec<String>,
    ids: Vec<u32>,
    /// Where the tokens begin that are decoded together.
    from: usize,
    /// Tokens whose text is known.
    known: usize,
    /// Text that may be the beginning of a stop text.
    held: String,
    /// Characters that have come, those that are held back and those of a stop text included.
    characters: u32,
    is_over: bool,
}

impl<'a> Writer<'a> {
    /// The text behind a prompt.
    pub(super) fn new(encoder: &'a TextEncoder, prompt: &[i64], stop: Vec<String>) -> Self {
        let context = &prompt[prompt.len().saturating_sub(CONTEXT)..];
        let ids = to_tokens(context);
        Self {
            encoder,
            stop: stop.into_iter().filter(|stop| !stop.is_empty()).collect(),
            from: 0,
            known: ids.len(),
            ids,
            held: String::new(),
            characters: 0,
            is_over: false,
        }
    }

    /// The text that is certain with one more token.
    ///
    /// # Errors
    /// When the tokenizer refuses.
    pub(super) fn push(&mut self, token: u32) -> Result<String, Failure> {
        self.ids.push(token);
        let new = self.new_text()?;
        // A part of a character decodes to this one.
        if new.is_empty() || new.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        self.from = self.known;
        self.known = self.ids.len();
        let characters = u32::try_from(new.chars().count()).unwrap_or(u32::MAX);
        self.characters = self.characters.saturating_add(characters);
        self.held.push_str(&new);
        Ok(self.release())
    }

    /// What makes text of tokens.
    pub(super) fn encoder(&self) -> &'a TextEncoder {
        self.encoder
    }

    /// Characters of the tokens, as far as they are whole.
    pub(super) fn characters(&self) -> u32 {
        self.characters
    }

    /// Whether a stop text has come.
    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    /// What was held back.
    ///
    /// # Errors
    /// When the tokenizer refuses.
    pub(super) fn finish(&mut self) -> Result<String, Failure> {
        if self.is_over {
            return Ok(String::new());
        }
        let new = self.new_text()?;
        self.known = self.ids.len();
        self.held.push_str(&new);
        let text = self.release();
        Ok(match self.is_over {
            true => text,
            false => text + &std::mem::take(&mut self.held),
        })
    }

    /// What the tokens say whose text is not known yet.
    fn new_text(&self) -> Result<String, Failure> {
        let before = self.encoder.plain(&self.ids[self.from..self.known])?;
        let after = self.encoder.plain(&self.ids[self.from..])?;
        Ok(match after.strip_prefix(&before) {
            Some(new) => new.to_owned(),
            // The prompt ended within a character, which is whole now.
            None => self.encoder.plain(&self.ids[self.known..])?,
        })
    }

    fn release(&mut self) -> String {
        let stops = self.stop.iter();
        if let Some(at) = stops.filter_map(|stop| self.held.find(stop)).min() {
            self.is_over = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let starts = |from: usize| {
            let rest = &self.held[from..];
            self.stop.iter().any(|stop| stop.starts_with(rest))
        };
        let mut borders = self.held.char_indices().map(|(at, _)| at);
        let at = borders.find(|at| starts(*at)).unwrap_or(self.held.len());
        let rest = self.held.split_off(at);
        std::mem::replace(&mut self.held, rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoder() -> TextEncoder {
        let texts = ["the red fox is red", "a naïve 🦊 fox"].map(String::from);
        TextEncoder::train(&texts, 290, 64).expect("a tokenizer")
    }

    /// The pieces of `text`, token by token.
    fn pieces(text: &str, stop: &[&str]) -> (Vec<String>, bool) {
        let encoder = encoder();
        let stop = stop.iter().map(|&stop| stop.to_owned()).collect();
        let mut writer = Writer::new(&encoder, &[1], stop);
        let mut pieces = Vec::new();
        for id in encoder.ids(text).expect("encoded") {
            pieces.push(writer.push(id as u32).expect("decoded"));
            if writer.is_over() {
                break;
            }
        }
        pieces.push(writer.finish().expect("decoded"));
        (pieces, writer.is_over())
    }

    #[test]
    fn the_pieces_are_the_text() {
        // A space at the beginning: the tokenizer adds one where there is none.
        for text in [
            " the red fox",
            "  two",
            " naïve 🐳🦊 fox\n",
            " \u{FFFD}a",
            "",
        ] {
            let (pieces, is_over) = pieces(text, &[]);
            assert_eq!(pieces.concat(), text);
            assert!(!is_over);
        }
    }

    #[test]
    fn characters_come_as_a_whole() {
        let (pieces, _) = pieces(" a🐳b", &[]);
        let whole = |piece: &&String| !piece.contains(char::REPLACEMENT_CHARACTER);
        assert!(pieces.iter().all(|piece| whole(&piece)), "{pieces:?}");
        assert!(pieces.iter().filter(|piece| piece.is_empty()).count() > 1);
    }

    #[test]
    fn what_is_cut_within_a_character_is_shown_as_such() {
        let encoder = encoder();
        let mut writer = Writer::new(&encoder, &[1], Vec::new());
        let ids = encoder.ids(" 🐳").expect("encoded");
        assert!(ids.len() > 2, "the whale is one token");
        for id in &ids[..ids.len() - 1] {
            let _ = writer.push(*id as u32).expect("decoded");
        }
        let rest = writer.finish().expect("decoded");
        assert!(rest.contains(char::REPLACEMENT_CHARACTER), "{rest:?}");
    }

    #[test]
    fn a_stop_text_ends_it_wherever_tokens_end() {
        let text = " the red fox is red";
        for (stop, wanted) in [
            (" fox", " the red"),
            ("ed f", " the r"),
            ("d", " the re"),
            (" the", ""),
            ("is red", " the red fox "),
        ] {
            let (pieces, is_over) = pieces(text, &["nothing", stop]);
            assert_eq!(pieces.concat(), wanted, "{stop}");
            assert!(is_over, "{stop}");
        }
    }

    #[test]
    fn the_earliest_of_several_stop_texts_counts() {
        let (pieces, _) = pieces(" the red fox is red", &["is", "red", "fox"]);
        assert_eq!(pieces.concat(), " the ");
    }

    #[test]
    fn what_only_looked_like_a_stop_text_is_shown_at_last() {
        let (pieces, is_over) = pieces(" the red fox", &["fox trot"]);
        assert_eq!(pieces.concat(), " the red fox");
        assert!(!is_over);
        let last = pieces.last().expect("a piece");
        assert!("fox".ends_with(last.as_str()) && !last.is_empty(), "{last}");
    }

    #[test]
    fn the_space_after_the_prompt_belongs_to_the_answer() {
        let encoder = encoder();
        let prompt = encoder.ids("the").expect("encoded");
        let mut writer = Writer::new(&encoder, &prompt, Vec::new());
        let mut text = String::new();
        for id in encoder.ids(" fox").expect("encoded") {
            text += &writer.push(id as u32).expect("decoded");
        }
        assert_eq!(text, " fox");
    }
}
