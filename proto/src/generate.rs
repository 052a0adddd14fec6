//! How `mks2` asks the program that computes to generate: lines of JSON over its standard input and
//! output.
//!
//! ```text
//! mks2 ──► Opening, then one Ask a line, in any number, at any time; then the end of the input
//!      ◄── Ready, then for each prompt: Text ..., and Done or Refused; or Failed, at any time
//! ```
//!
//! Prompts are answered side by side, in any order. All that is asked has an id, which whoever asks
//! chooses.

use serde::{Deserialize, Serialize};

use crate::failure::{ExitCode, Failure};
use crate::job::Precision;

/// The first line: what is to be asked, and where it computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Opening {
    /// The model.
    pub model: Source,
    /// `cpu`, `cuda` or `cuda:N`.
    pub device: String,
    /// What it computes in; none: as the run did, or fp32.
    #[serde(default)]
    pub precision: Option<Precision>,
    /// Threads of libtorch.
    pub threads: u32,
    /// Prompts that are answered side by side.
    pub batch: u32,
    /// Bytes of keys and values that are kept at most; none: as the model's positions and the batch need.
    #[serde(default)]
    pub cache_bytes: Option<u64>,
}

/// Where a model comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Source {
    /// What a run has trained.
    Run {
        /// Its job, resolved.
        job_toml: String,
        /// Its directory.
        url: String,
        /// The stage that is asked.
        stage: String,
        /// The checkpoints of all stages that have any.
        trained: Vec<Trained>,
    },
    /// A language model as Hugging Face ships it.
    Folder {
        /// Where it is.
        url: String,
        /// Whether a tensor that the model does not know is refused, instead of left out.
        #[serde(default = "strict")]
        strict: bool,
    },
}

fn strict() -> bool {
    true
}

/// A checkpoint of a stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trained {
    /// The stage.
    pub stage: String,
    /// Where in the run directory its manifest is.
    pub manifest_path: String,
    /// blake3 of the manifest in hex.
    pub manifest_digest: String,
}

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
pub enum Ask {
    /// An answer.
    Prompt(Prompt),
    /// Nobody waits for this answer any more.
    Cancel {
        /// The prompt's.
        id: u64,
    },
    /// The tokens of a text.
    Tokenize {
        /// What the answer is marked with.
        id: u64,
        /// The text.
        text: String,
        /// Whether special tokens stand around it, as around every text.
        special: bool,
    },
    /// The text of tokens.
    Detokenize {
        /// What the answer is marked with.
        id: u64,
        /// The tokens.
        tokens: Vec<u32>,
    },
}

/// What an answer goes on from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// A text, presented as the stage was trained: as a question where it answers questions.
    Text(String),
    /// A text as it is.
    Raw(String),
    /// A text with nothing put around it: special tokens stand in it, the begin token included.
    Bare(String),
    /// Tokens as they are.
    Tokens(Vec<u32>),
}

impl What {
    /// The text, if it is one.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Self::Text(text) | Self::Raw(text) | Self::Bare(text) => text,
            Self::Tokens(_) => "",
        }
    }
}

impl Default for What {
    fn default() -> Self {
        Self::Text(String::new())
    }
}

/// What a refusal of a prompt begins with that the model has no positions or no room for.
pub const TOO_LONG: &str = "the prompt is too long";

/// Which probabilities an answer comes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Score {
    /// Also those of so many tokens at the prompt's end; of all where there are no more.
    pub prompt: u32,
    /// Likeliest tokens that are told at each place.
    pub top: u32,
}

/// A question to the model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Prompt {
    /// What answers are marked with.
    pub id: u64,
    /// What it says.
    #[serde(default)]
    pub what: What,
    /// A picture that stands before the text: a file's bytes in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub picture: Option<String>,
    /// The answer begins with the prompt's text.
    #[serde(default)]
    pub echo: bool,
    /// Probabilities of its tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<Score>,
    /// Tokens that are generated at most; none: as many as the model has positions for. Zero is for an
    /// echo or the prompt's own probabilities.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// How tokens are chosen.
    #[serde(default)]
    pub sampling: Sampling,
    /// Texts that end the answer, which does not contain them.
    #[serde(default)]
    pub stop: Vec<String>,
}

/// How the next token is chosen; by default the likeliest.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// Logits are divided by it; 0: the likeliest token.
    pub temperature: f64,
    /// Of so many likeliest tokens; 0: of all.
    pub top_k: u32,
    /// Of the likeliest tokens that have this probability together (Holtzman et al. 2020).
    pub top_p: f64,
    /// The same seed and prompt give the same answer.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            seed: 0,
        }
    }
}

impl Sampling {
    /// Whether the numbers make sense.
    ///
    /// # Errors
    /// The first that does not (exit 2).
    pub fn check(&self) -> Result<(), Failure> {
        let wrong = |name: &str, value: f64, right: &str| {
            Err(Failure::usage(
                format!("{name} cannot be {value}"),
                format!("it must be {right}"),
                "leave it out, or choose another number",
            ))
        };
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return wrong("temperature", self.temperature, "0 or larger");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return wrong("top-p", self.top_p, "larger than 0 and at most 1");
        }
        Ok(())
    }
}

/// An answer's part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The model is there.
    Ready {
        /// Tokens of text that it has positions for.
        positions: u32,
        /// Whether it can be shown pictures.
        sees: bool,
        /// The token that ends a text.
        end: String,
        /// What opens every text, if that is one token.
        begin: Option<String>,
    },
    /// The answer goes on with this.
    Text {
        /// The prompt's.
        id: u64,
        /// Some characters.
        text: String,
    },
    /// The answer is complete.
    Done {
        /// The prompt's.
        id: u64,
        /// Why.
        end: End,
        /// Tokens of the prompt, those of a picture included.
        prompt_tokens: u32,
        /// What was generated, without the end token.
        tokens: Vec<u32>,
        /// Probabilities of the prompt's tokens and of those that were generated, the end token
        /// included, as far as they were asked for.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        scores: Vec<Scored>,
    },
    /// The tokens of a text.
    Tokens {
        /// What asked for them.
        id: u64,
        /// The tokens.
        tokens: Vec<u32>,
    },
    /// The text of tokens.
    Plain {
        /// What asked for it.
        id: u64,
        /// The text.
        text: String,
    },
    /// This cannot be answered; other things can.
    Refused {
        /// What was asked.
        id: u64,
        /// Why not.
        why: Words,
    },
    /// Nothing can be answered any more.
    Failed {
        /// Why not.
        why: Words,
    },
}

impl Event {
    /// What it belongs to; none: to all.
    #[must_use]
    pub fn id(&self) -> Option<u64> {
        match self {
            Self::Text { id, .. }
            | Self::Done { id, .. }
            | Self::Tokens { id, .. }
            | Self::Plain { id, .. }
            | Self::Refused { id, .. } => Some(*id),
            Self::Ready { .. } | Self::Failed { .. } => None,
        }
    }
}

/// A token and how likely it was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scored {
    /// The token.
    pub token: Likely,
    /// Characters of the text before it, those of an echo included.
    pub offset: u32,
    /// The likeliest ones at its place, likeliest first.
    pub top: Vec<Likely>,
}

/// A token at a place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Likely {
    /// The token.
    pub id: u32,
    /// Its text, or its name in the vocabulary where it is no whole character.
    pub text: String,
    /// The natural logarithm of its probability; none for a first token, which nothing predicts.
    pub logprob: Option<f64>,
}

/// Why an answer is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// The model ended it, or it came to a stop text.
    Stop,
    /// It has as many tokens as it may have.
    Length,
}

/// A [`Failure`] between processes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Words {
    /// The exit code.
    pub exit: u8,
    /// What did not work.
    pub what: String,
    /// The reason.
    pub why: String,
    /// What the user can do.
    pub cure: String,
}

impl From<&Failure> for Words {
    fn from(failure: &Failure) -> Self {
        Self {
            exit: failure.exit.code(),
            what: failure.what.clone(),
            why: failure.why.clone(),
            cure: failure.cure.clone(),
        }
    }
}

impl From<Words> for Failure {
    fn from(words: Words) -> Self {
        let exit = ExitCode::from_code(words.exit.into());
        Self::new(exit, words.what, words.why, words.cure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_the_same_on_the_other_side() {
        let failure = Failure::data("the picture is broken", "it ends early", "send it again");
        let json = serde_json::to_string(&Words::from(&failure)).expect("JSON");
        let words: Words = serde_json::from_str(&json).expect("words");
        assert_eq!(Failure::from(words).to_string(), failure.to_string());
    }

    #[test]
    fn a_prompt_needs_no_more_than_its_text() {
        let line = r#"{"ask": "prompt", "id": 3, "what": {"text": "Hi"}}"#;
        let ask: Ask = serde_json::from_str(line).expect("a prompt");
        let wanted = Prompt {
            id: 3,
            what: What::Text("Hi".into()),
            ..Prompt::default()
        };
        assert_eq!(ask, Ask::Prompt(wanted));
    }

    #[test]
    fn all_that_is_asked_and_answered_survives_a_line() {
        let asks = [
            Ask::Prompt(Prompt {
                what: What::Tokens(vec![3, 4]),
                score: Some(Score {
                    prompt: u32::MAX,
                    top: 2,
                }),
                ..Prompt::default()
            }),
            Ask::Cancel { id: 7 },
            Ask::Tokenize {
                id: 8,
                text: "a\nb".into(),
                special: true,
            },
            Ask::Detokenize {
                id: 9,
                tokens: vec![1],
            },
        ];
        for ask in asks {
            let line = serde_json::to_string(&ask).expect("JSON");
            assert!(!line.contains('\n'));
            assert_eq!(serde_json::from_str::<Ask>(&line).expect("read"), ask);
        }
        let likely = Likely {
            id: 5,
            text: "\"".into(),
            logprob: Some(-0.1),
        };
        let event = Event::Done {
            id: 1,
            end: End::Length,
            prompt_tokens: 3,
            tokens: vec![5],
            scores: vec![Scored {
                offset: 1,
                token: likely.clone(),
                top: vec![likely],
            }],
        };
        let line = serde_json::to_string(&event).expect("JSON");
        assert_eq!(serde_json::from_str::<Event>(&line).expect("read"), event);
        assert_eq!(event.id(), Some(1));
    }

    #[test]
    fn numbers_that_choose_nothing_are_refused() {
        let usual = Sampling::default();
        usual.check().expect("good");
        for temperature in [-0.1, f64::NAN, f64::INFINITY] {
            let sampling = Sampling {
                temperature,
                ..usual
            };
            assert_eq!(sampling.check().expect_err("refused").exit, ExitCode::Usage);
        }
        for top_p in [0.0, -1.0, 1.01, f64::NAN] {
            let sampling = Sampling { top_p, ..usual };
            let failure = sampling.check().expect_err("refused");
            assert!(failure.what.contains("top-p"), "{failure}");
        }
    }
}
