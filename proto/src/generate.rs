//! How `mks2` asks the program that computes to generate: lines of JSON over its standard input and
//! output.
//!
//! ```text
//! mks2 ──► Opening, then one Prompt a line, in any number, at any time; then the end of the input
//!      ◄── Ready, then for each prompt: Text ..., and Done or Refused; or Failed, at any time
//! ```
//!
//! Prompts are answered side by side, in any order.

use serde::{Deserialize, Serialize};

use crate::failure::{ExitCode, Failure};

/// The first line: what is to be asked, and where it computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Opening {
    /// The model.
    pub model: Source,
    /// `cpu`, `cuda` or `cuda:N`.
    pub device: String,
    /// Threads of libtorch.
    pub threads: u32,
    /// Prompts that are answered side by side.
    pub batch: u32,
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
    },
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

/// What is asked.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Prompt {
    /// What answers are marked with.
    pub id: u64,
    /// The text.
    pub text: String,
    /// A picture that stands before the text: a file's bytes in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub picture: Option<String>,
    /// The text is taken as it is, even where the stage was trained on questions.
    #[serde(default)]
    pub raw: bool,
    /// Tokens that are generated at most; none: as many as the model has positions for.
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
                "leave it out for the likeliest tokens",
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
    },
    /// This prompt cannot be answered; others can.
    Refused {
        /// The prompt's.
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
        let prompt: Prompt = serde_json::from_str(r#"{"id": 3, "text": "Hi"}"#).expect("a prompt");
        assert_eq!(prompt.sampling, Sampling::default());
        assert_eq!((prompt.max_tokens, prompt.raw), (None, false));
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
