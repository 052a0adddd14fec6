//! Text in and out of the model: the BPE tokenizer and rows of fixed length.
//!
//! A row of tokens always has the length that the job fixes (`max_text_tokens`), so that no
//! shape, and so no schedule of collectives, depends on the data. Longer texts are cut before
//! their end token.

use mks2_dataset::row::{Row, render};
use mks2_proto::failure::{ExitCode, Failure};
use mks2_proto::splitmix;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Tokenizer, models::TrainerWrapper};

mod published;

/// The special tokens of a tokenizer that is trained here, with the ids 0, 1 and 2.
const SPECIAL: [&str; 3] = ["<pad>", "<s>", "</s>"];
/// Label of a position that has no loss (PyTorch's convention).
pub const IGNORE: i64 = -100;

/// Tokens of one text, padded to the job's length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// Token ids, `[T]`.
    pub ids: Vec<i64>,
    /// `labels[t]` is the token that position `t` predicts, or [`IGNORE`]; `[T]`.
    pub labels: Vec<i64>,
    /// How many tokens open the text.
    pub opening: usize,
    /// Position of the last end token.
    pub end: usize,
}

impl Tokens {
    /// How many positions have a loss.
    pub fn targets(&self) -> usize {
        self.labels.iter().filter(|&&label| label != IGNORE).count()
    }
}

/// A tokenizer with the row length of a job.
pub struct TextEncoder {
    tokenizer: Tokenizer,
    max_tokens: usize,
    vocab_size: u32,
    /// What stands before every text: one begin token, mostly.
    opening: Vec<i64>,
    /// What stands before a text that is scored where nothing else does.
    prefix: i64,
    /// Closes a text: `</s>`, where the retrieval head reads.
    end: i64,
    /// Other tokens that end an answer.
    other_ends: Vec<i64>,
    /// Stands where a row has no token. Nothing reads it: it is behind the end, and has no loss.
    pad: i64,
}

impl TextEncoder {
    /// Trains a byte-level BPE of `vocab_size` entries on `texts`.
    ///
    /// The result depends on the multiset of texts alone, so that every worker can train it by
    /// itself and gets the same vocabulary.
    pub fn train(texts: &[String], vocab_size: usize, max_tokens: usize) -> Result<Self, Failure> {
        let mut tokenizer = Tokenizer::new(BPE::default());
        tokenizer.with_pre_tokenizer(Some(ByteLevel::new(true, false, true)));
        tokenizer.with_decoder(Some(ByteLevel::default()));
        let mut trainer: TrainerWrapper = BpeTrainerBuilder::new()
            .vocab_size(vocab_size)
            .special_tokens(SPECIAL.map(|t| AddedToken::from(t, true)).to_vec())
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .show_progress(false)
            .build()
            .into();
        tokenizer
            .train(&mut trainer, texts.iter())
            .map_err(|e| broken("train", &e))?;
        Ok(Self::own(tokenizer, max_tokens))
    }

    /// Reads the `tokenizer.json` of a tokenizer that was trained here.
    pub fn from_json(json: &[u8], max_tokens: usize) -> Result<Self, Failure> {
        let tokenizer = Tokenizer::from_bytes(json).map_err(|e| broken("read", &e))?;
        Ok(Self::own(tokenizer, max_tokens))
    }

    fn own(tokenizer: Tokenizer, max_tokens: usize) -> Self {
        Self {
            vocab_size: tokenizer.get_vocab_size(true) as u32,
            tokenizer,
            max_tokens,
            pad: 0,
            opening: vec![1],
            prefix: 1,
            end: 2,
            other_ends: Vec::new(),
        }
    }

    /// The tokenizer as `tokenizer.json`.
    pub fn to_json(&self) -> Result<Vec<u8>, Failure> {
        let json = self
            .tokenizer
            .to_string(false)
            .map_err(|e| broken("write", &e))?;
        Ok(json.into_bytes())
    }

    /// The same for other programs, which get from it alone how a text is opened here.
    ///
    /// # Errors
    /// When the tokenizer has no such tokens.
    pub fn presenting_json(&self) -> Result<Vec<u8>, Failure> {
        if self.published("")? == self.opening {
            return self.to_json();
        }
        let opening = self.opening.iter().map(|&id| {
            let entry = self.entry(id).ok_or("an opening token without a name")?;
            Ok::<_, &str>((entry, u32::try_from(id).unwrap_or_default()))
        });
        let opening = opening.collect::<Result<Vec<_>, _>>();
        let opening = opening.map_err(|why| broken("write", &why))?;
        let before = |text: &[&str]| {
            let names = opening.iter().map(|(name, _)| name.as_str());
            names
                .chain(text.iter().copied())
                .map(String::from)
                .collect::<Vec<_>>()
        };
        let template = TemplateProcessing::builder()
            .try_single(before(&["$A"]))
            .and_then(|builder| builder.try_pair(before(&["$A", "$B"])))
            .map_err(|why| broken("write", &why))?
            .special_tokens(opening.clone())
            .build()
            .map_err(|why| broken("write", &why))?;
        let mut presenting = self.tokenizer.clone();
        presenting.with_post_processor(Some(template));
        let json = presenting.to_string(false);
        Ok(json.map_err(|e| broken("write", &e))?.into_bytes())
    }

    /// A token's name in the vocabulary.
    pub fn entry(&self, token: i64) -> Option<String> {
        self.tokenizer.id_to_token(u32::try_from(token).ok()?)
    }

    /// What stands where a row has no token.
    pub fn padding(&self) -> i64 {
        self.pad
    }

    /// Rows of the embedding: entries of the vocabulary, the special tokens included, and in a
    /// pretrained model maybe some more.
    pub fn vocab_size(&self) -> u32 {
        self.vocab_size
    }

    /// What opens every text.
    pub fn opening(&self) -> &[i64] {
        &self.opening
    }

    /// What predicts the first token of a text that nothing opens: the begin token, or else the end token.
    pub fn prefix(&self) -> i64 {
        self.prefix
    }

    /// What closes a text.
    pub fn end(&self) -> i64 {
        self.end
    }

    /// All tokens that end an answer: what closes a text, then the others.
    pub fn ends(&self) -> Vec<i64> {
        let others = self.other_ends.iter().copied();
        let mut ends = vec![self.end];
        for other in others {
            if !ends.contains(&other) {
                ends.push(other);
            }
        }
        ends
    }

    /// Whether an answer ends with this token: with what closes a text, or a turn of a dialogue.
    pub fn is_end(&self, token: u32) -> bool {
        let token = i64::from(token);
        token == self.end || self.other_ends.contains(&token)
    }

    /// The special token that has exactly this text.
    pub fn special(&self, text: &str) -> Option<u32> {
        let added = self.tokenizer.get_added_vocabulary();
        let token = self.tokenizer.token_to_id(text);
        token.filter(|_| added.is_special_token(text))
    }

    /// Length `T` of every row of tokens.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Ids of a bare text. Special tokens in it are tokens; none is added.
    pub fn ids(&self, text: &str) -> Result<Vec<i64>, Failure> {
        self.encode(text, false)
    }

    /// A text as the tokenizer's own post-processor presents it.
    ///
    /// # Errors
    /// When the tokenizer refuses.
    pub fn published(&self, text: &str) -> Result<Vec<i64>, Failure> {
        self.encode(text, true)
    }

    fn encode(&self, text: &str, special: bool) -> Result<Vec<i64>, Failure> {
        let encoding = self.tokenizer.encode_fast(text, special);
        let encoding = encoding.map_err(|e| broken("apply", &e))?;
        Ok(encoding.get_ids().iter().map(|&id| i64::from(id)).collect())
    }

    /// `<s> text </s>`, every token after the opening being a target.
    pub fn sentence(&self, text: &str) -> Result<Tokens, Failure> {
        let mut ids = self.opening.clone();
        ids.extend(self.ids(text)?);
        ids.truncate(self.max_tokens - 1);
        ids.push(self.end);
        Ok(self.pad(ids, self.opening.len()))
    }

    /// `<s> question answer </s>`, or `<s> question </s> answer </s>` when `after_end`; the
    /// targets are the answer's tokens and the end token behind them.
    pub fn dialogue(
        &self,
        question: &str,
        answer: &str,
        after_end: bool,
    ) -> Result<Tokens, Failure> {
        let answer = self.ids(answer)?;
        let mut ids = self.opening.clone();
        ids.extend(self.ids(question)?);
        let closing = 1 + usize::from(after_end);
        ids.truncate(
            self.max_tokens
                .saturating_sub(answer.len() + closing)
                .max(1),
        );
        if after_end {
            ids.push(self.end);
        }
        let first_target = ids.len();
        ids.extend(answer);
        ids.truncate(self.max_tokens - 1);
        ids.push(self.end);
        Ok(self.pad(ids, first_target))
    }

    /// The text of `ids`, special tokens and space around it left out.
    ///
    /// # Errors
    /// When the tokenizer refuses.
    pub fn decode(&self, ids: &[u32]) -> Result<String, Failure> {
        Ok(self.plain(ids)?.trim().to_owned())
    }

    /// What a token says, or its name in the vocabulary where it is no whole character, or a special
    /// token.
    pub fn name_of(&self, token: u32) -> String {
        self.said_by(token)
            .or_else(|| self.tokenizer.id_to_token(token))
            .unwrap_or_else(|| format!("<{token}>"))
    }

    /// Whether it is a special token, which no text shows.
    pub fn is_special(&self, token: u32) -> bool {
        let added = self.tokenizer.get_added_vocabulary();
        let name = self.tokenizer.id_to_token(token);
        name.is_some_and(|name| added.is_special_token(&name))
    }

    /// What a token says behind others, whole characters alone: the first one of a text may lose the
    /// space before it.
    fn said_by(&self, token: u32) -> Option<String> {
        let end = u32::try_from(self.end).ok()?;
        let before = self.tokenizer.decode(&[end], false).ok()?;
        let both = self.tokenizer.decode(&[end, token], false).ok()?;
        let text = both.strip_prefix(&before)?;
        let is_whole = !text.is_empty() && !text.contains(char::REPLACEMENT_CHARACTER);
        is_whole.then(|| text.to_owned())
    }

    /// Bytes of the longest entry of the vocabulary: no token stands for more.
    pub fn longest_entry(&self) -> usize {
        let vocabulary = self.tokenizer.get_vocab(true);
        vocabulary.keys().map(String::len).max().unwrap_or(1)
    }

    /// The text of `ids`, special tokens included.
    ///
    /// # Errors
    /// When the tokenizer refuses.
    pub fn verbatim(&self, ids: &[u32]) -> Result<String, Failure> {
        let text = self.tokenizer.decode(ids, false);
        text.map_err(|e| broken("apply", &e))
    }

    /// The text of `ids`, special tokens left out.
    ///
    /// # Errors
    /// When the tokenizer refuses.
    pub fn plain(&self, ids: &[u32]) -> Result<String, Failure> {
        let text = self.tokenizer.decode(ids, true);
        text.map_err(|e| broken("apply", &e))
    }

    fn pad(&self, mut ids: Vec<i64>, first_target: usize) -> Tokens {
        let end = ids.len() - 1;
        let mut labels = vec![IGNORE; self.max_tokens];
        labels[first_target - 1..end].copy_from_slice(&ids[first_target..]);
        ids.resize(self.max_tokens, self.pad);
        Tokens {
            ids,
            labels,
            opening: self.opening.len(),
            end,
        }
    }
}

/// Ids of libtorch as ids of the tokenizer.
pub fn to_tokens(ids: &[i64]) -> Vec<u32> {
    let ids = ids.iter();
    ids.filter_map(|&id| u32::try_from(id).ok()).collect()
}

/// The template of `templates` that belongs to (seed, step, row), with the row's fields.
pub fn choose_text(templates: &[String], row: &Row, key: Draw) -> Result<String, Failure> {
    let choice = key.below(templates.len() as u64) as usize;
    render(&templates[choice], row).map_err(Failure::from)
}

/// A source of chance that depends on what is drawn for, never on who draws.
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    /// Seed of the job.
    pub seed: u64,
    /// Step of the run.
    pub step: u64,
    /// Global index of the row in its corpus.
    pub row: u64,
    /// What is drawn: keeps independent choices apart.
    pub purpose: u64,
}

impl Draw {
    /// A uniform number below `n` (0 when `n` is 0).
    pub fn below(self, n: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(n)) >> 64) as u64
    }

    fn bits(self) -> u64 {
        [self.step, self.row, self.purpose]
            .into_iter()
            .fold(stirred(self.seed), |h, x| stirred(h ^ x))
    }
}

/// A number stirred well, 0 included.
fn stirred(mut number: u64) -> u64 {
    splitmix::next(&mut number)
}

fn broken(verb: &str, cause: &dyn std::fmt::Display) -> Failure {
    Failure::new(
        ExitCode::Checkpoint,
        format!("could not {verb} the tokenizer"),
        cause.to_string(),
        "where it came with a published model, fetch that again; else start the bootstrap stage again \
         in a new run directory",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoder() -> TextEncoder {
        let texts: Vec<String> = ["the red fox", "a blue whale", "What color is the fox?"]
            .map(String::from)
            .to_vec();
        TextEncoder::train(&texts, 300, 12).unwrap()
    }

    #[test]
    fn training_twice_gives_the_same_vocabulary() {
        assert_eq!(encoder().to_json().unwrap(), encoder().to_json().unwrap());
    }

    #[test]
    fn a_sentence_predicts_each_of_its_tokens_once() {
        let tokens = encoder().sentence("the fox").unwrap();
        assert_eq!(tokens.ids.len(), 12);
        assert_eq!(tokens.ids[tokens.end], 2);
        assert_eq!(tokens.targets(), tokens.end);
        assert_eq!(tokens.labels[..tokens.end], tokens.ids[1..=tokens.end]);
    }

    #[test]
    fn a_long_text_is_cut_before_its_end_token() {
        let tokens = encoder().sentence(&"whale ".repeat(40)).unwrap();
        assert_eq!((tokens.end, tokens.ids[11]), (11, 2));
    }

    #[test]
    fn only_the_answer_of_a_dialogue_is_a_target() {
        let encoder = encoder();
        let answer = encoder.ids("red").unwrap().len();
        for after_end in [false, true] {
            let tokens = encoder.dialogue("the fox", "red", after_end).unwrap();
            assert_eq!(tokens.targets(), answer + 1);
            let first = tokens.labels.iter().position(|&l| l != IGNORE).unwrap();
            assert_eq!(tokens.ids[first] == 2, after_end);
        }
    }

    #[test]
    fn text_survives_the_round_trip() {
        let encoder = encoder();
        let ids = encoder.ids("a blue naïve 🦊").unwrap();
        assert_eq!(encoder.decode(&to_tokens(&ids)).unwrap(), "a blue naïve 🦊");
    }

    #[test]
    fn draws_differ_by_row_and_stay_below_the_bound() {
        let draw = |row| {
            Draw {
                seed: 1,
                step: 2,
                row,
                purpose: 0,
            }
            .below(10)
        };
        let seen: std::collections::BTreeSet<u64> = (0..200).map(draw).collect();
        assert_eq!(seen, (0..10).collect());
    }
}
