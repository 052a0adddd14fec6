//! A model that can be asked: read from a run's checkpoints or from a folder, whole and frozen.

use std::sync::Arc;

use mks2_dataset::picture;
use mks2_dataset::pretrained::base::{self, Part};
use mks2_dataset::pretrained::config::Described;
use mks2_dataset::pretrained::mks2::{Mks2, SecondHalf};
use mks2_dataset::pretrained::{Folder, tokens};
use mks2_dataset::row::{Row, render};
use mks2_proto::failure::Failure;
use mks2_proto::generate::{Event, Source, TOO_LONG, What};
use mks2_proto::job::{self, Job, Precision, StageKind};
use tch::{Device, Tensor};
use tokio::runtime::Handle;

use super::refused;
use crate::evaluate::ancestry;
use crate::eyes::Eyes;
use crate::lineage::Lineage;
use crate::model::{Decoder, Experts, Memory, RetrievalHeads, SecondHalves, Weights};
use crate::objective::experts::experts;
use crate::pretrained;
use crate::text::{TextEncoder, to_tokens};
use crate::trained::{OfRun, positions};

/// Bytes of a text, or tokens, that the tokenizer is given at once: nothing else is done meanwhile.
const MOST_AT_ONCE: usize = 1 << 20;

/// A language model, its memories and eyes, and how it was trained to be asked.
pub(crate) struct Speaker {
    pub(crate) encoder: Arc<TextEncoder>,
    pub(crate) decoder: Decoder,
    halves: Halves,
    eyes: Option<Eyes>,
    /// What a memory stage searches with.
    pub(super) heads: Option<RetrievalHeads>,
    form: Form,
    /// Tokens of text that it has positions for.
    pub(crate) positions: usize,
    /// Bytes of a text that may have so few tokens.
    most_bytes: usize,
    /// Bytes of keys and values that answers may have; none: as [`super::Engine`] chooses.
    pub(crate) cache_bytes: Option<u64>,
    pub(crate) device: Device,
}

/// What stands in the second halves of the blocks.
enum Halves {
    Mlp,
    Memory(Memory),
    Experts(Experts),
}

/// How texts are presented to the model.
enum Form {
    /// As the tokenizer does it.
    Published,
    /// As stages here begin their texts.
    Text,
    /// As the questions of an `experts` stage.
    Question(Box<job::Experts>),
}

impl Speaker {
    /// Reads what `source` names. It computes in `precision`; without one as the run did, or in fp32.
    ///
    /// # Errors
    /// When something is missing, damaged or of another job, or the stage cannot be asked.
    pub(crate) fn open(
        source: &Source,
        (precision, device): (Option<Precision>, Device),
        runtime: &Handle,
    ) -> Result<Self, Failure> {
        match source {
            Source::Folder { url, strict } => {
                let place = (precision.unwrap_or_default(), device);
                Self::of_folder((url, *strict), place, runtime)
            }
            Source::Run {
                job_toml,
                url,
                stage,
                trained,
            } => {
                let named = OfRun {
                    job_toml,
                    url,
                    stage,
                    trained,
                };
                let (job, lineage) = named.read((precision, device), runtime)?;
                Self::of_stage(&job, stage, &lineage, (device, runtime))
            }
        }
    }

    /// What a stage of a job has trained, of which `lineage` holds the results.
    ///
    /// # Errors
    /// When the stage cannot be asked, or one that it builds on has not run.
    pub(crate) fn of_stage(
        job: &Job,
        name: &str,
        lineage: &Lineage,
        (device, runtime): (Device, &Handle),
    ) -> Result<Self, Failure> {
        let names = ancestry(job, name)?;
        let weights = lineage.weights(&names)?;
        let weights = weights.computing_in((job.precision, device));
        let encoder = lineage.encoder(&names)?;
        let stage = job.stages.iter().find(|stage| stage.name == name);
        let kind = stage.map_or(StageKind::Evaluate, |stage| stage.kind);
        let model = &job.model;
        let (halves, form) = match kind {
            StageKind::Memory | StageKind::Attach => {
                let memory = Memory::new(model, name, &weights)?;
                (Halves::Memory(memory), Form::Text)
            }
            StageKind::Experts => {
                let settings = stage.and_then(|stage| stage.experts.clone());
                let settings = settings.unwrap_or_default();
                let experts = experts(job, &settings, &weights)?;
                (Halves::Experts(experts), Form::Question(settings.into()))
            }
            StageKind::Bootstrap | StageKind::Pretrained => (Halves::Mlp, Form::Text),
            StageKind::Evaluate => {
                return Err(refused(
                    format!("stage '{name}' cannot be asked"),
                    "it trains no model",
                    "name a stage that does",
                ));
            }
        };
        let sees = weights.contains("bridge.weight");
        let eyes = sees.then(|| Eyes::new(model, &weights)).transpose()?;
        let searches = matches!(kind, StageKind::Memory | StageKind::Attach);
        let heads = searches.then(|| RetrievalHeads::new(model, &weights));
        let positions = positions(job, &names, runtime)?;
        Ok(Self {
            decoder: Decoder::new(&model.decoder, encoder.vocab_size(), &weights)?,
            most_bytes: positions.saturating_mul(encoder.longest_entry()),
            encoder,
            halves,
            eyes,
            heads: heads.transpose()?,
            form,
            positions,
            cache_bytes: None,
            device,
        })
    }

    fn of_folder(
        (url, strict): (&str, bool),
        (precision, device): (Precision, Device),
        runtime: &Handle,
    ) -> Result<Self, Failure> {
        let folder = Folder::open(url)?;
        let described = runtime.block_on(base::read(&folder))?;
        let (language, model) = match &described {
            Described::Decoder(language) => (language, language.model()),
            Described::Mks2(mks2) => (&mks2.language, mks2.model()),
            Described::Vision(_) | Described::QFormer(_) => {
                return Err(Failure::settings(
                    format!("{} cannot be asked", folder.location()),
                    format!("its config.json describes a {}", described.kind()),
                    "name the folder of a language model, or a run",
                ));
            }
        };
        let part = runtime.block_on(Part::open(&folder, &described, strict))?;
        let files = runtime.block_on(tokens::read(&folder))?;
        let positions = language.shape.max_text_tokens as usize;
        let encoder = TextEncoder::pretrained(&files, language.vocab_size, positions)?;
        let weights = pretrained::weights(&part, (precision, device), runtime)?;
        let weights = weights.computing_in((precision, device));
        let (halves, form) = match &described {
            Described::Mks2(mks2) => of_mks2(mks2, &model, &weights)?,
            _ => (Halves::Mlp, Form::Published),
        };
        let sees = weights.contains("bridge.weight");
        Ok(Self {
            decoder: Decoder::new(&language.shape, language.vocab_size, &weights)?,
            most_bytes: positions.saturating_mul(encoder.longest_entry()),
            encoder: encoder.into(),
            halves,
            eyes: sees.then(|| Eyes::new(&model, &weights)).transpose()?,
            heads: None,
            form,
            positions,
            cache_bytes: None,
            device,
        })
    }

    /// What stands in the second halves of the blocks.
    pub(crate) fn halves(&self) -> SecondHalves<'_> {
        match &self.halves {
            Halves::Mlp => SecondHalves::Mlp,
            Halves::Memory(memory) => SecondHalves::Memory(memory),
            Halves::Experts(experts) => SecondHalves::Experts(experts),
        }
    }

    /// What whoever asks has to know.
    pub(super) fn ready(&self) -> Event {
        let name = |id: i64| u32::try_from(id).map(|id| self.encoder.name_of(id));
        Event::Ready {
            positions: u32::try_from(self.positions).unwrap_or(u32::MAX),
            sees: self.eyes.is_some(),
            end: name(self.encoder.end()).unwrap_or_default(),
            begin: match self.encoder.opening() {
                [begin] if *begin != self.encoder.end() => name(*begin).ok(),
                _ => None,
            },
        }
    }

    /// The tokens of a prompt.
    ///
    /// # Errors
    /// When the stage's template wants more than a question, or the model has no such token.
    pub(super) fn ids(&self, what: &What) -> Result<Vec<i64>, Failure> {
        match (what, &self.form) {
            (What::Tokens(tokens), _) => self.known(tokens),
            (What::Text(text) | What::Raw(text) | What::Bare(text), _)
                if text.len() > self.most_bytes =>
            {
                Err(self.too_long(&format!("{} bytes", text.len())))
            }
            (What::Bare(text), _) => self.encoder.ids(text),
            (What::Text(text), Form::Question(settings)) => {
                let row = Row {
                    question: Some(text.clone()),
                    ..Row::default()
                };
                let question = render(&settings.question, &row).map_err(|error| {
                    refused(
                        "the stage cannot be asked a question alone",
                        error.to_string(),
                        "give the whole text as it was trained on: with --raw, or as tokens",
                    )
                })?;
                let end = settings.answer_after_end.then(|| self.encoder.end());
                self.opened(&question, end)
            }
            (What::Text(text) | What::Raw(text), _) => self.presented(text),
        }
    }

    /// The tokens of a prompt that goes on with `choice`, and how many of them, the last ones, are the
    /// choice's. A stage that answers questions is given both as it was trained: the end token behind the
    /// answer is included, and a question that is too long is cut. For others, `separator` stands between them, and space at the end of the prompt
    /// belongs to what follows: a tokenizer joins it with the next word. Where no token stands before a choice, the
    /// begin token does, or else the end token, as in lm-evaluation-harness: something must predict it.
    ///
    /// # Errors
    /// When the stage's templates want more than question and answer, or the tokenizer refuses.
    pub(crate) fn continued(
        &self,
        prompt: &What,
        separator: &str,
        choice: &str,
    ) -> Result<(Vec<i64>, usize), Failure> {
        if let (What::Text(question), Form::Question(settings)) = (prompt, &self.form) {
            let row = Row {
                question: Some(question.clone()),
                answer: Some(choice.to_owned()),
                ..Row::default()
            };
            let tokens = self.encoder.dialogue(
                &render(&settings.question, &row)?,
                &render(&settings.answer, &row)?,
                settings.answer_after_end,
            )?;
            let own = tokens.targets();
            return Ok((tokens.ids[..=tokens.end].to_vec(), own));
        }
        let text = prompt.text();
        let context = text.trim_end();
        let rest = &text[context.len()..];
        let mut whole = self.presented(&[context, rest, separator, choice].concat())?;
        let mut before = self.presented(context)?.len();
        if before == 0 {
            let prefix = self.encoder.prefix();
            if whole.first() != Some(&prefix) {
                whole.insert(0, prefix);
            }
            before = 1;
        }
        let own = whole.len().saturating_sub(before);
        Ok((whole, own.max(1)))
    }

    /// A text as every text begins.
    fn presented(&self, text: &str) -> Result<Vec<i64>, Failure> {
        match self.form {
            Form::Published => self.encoder.published(text),
            Form::Text | Form::Question(_) => self.opened(text, None),
        }
    }

    fn opened(&self, text: &str, closing: Option<i64>) -> Result<Vec<i64>, Failure> {
        let mut ids = self.encoder.opening().to_vec();
        ids.extend(self.encoder.ids(text)?);
        ids.extend(closing);
        Ok(ids)
    }

    /// A prompt of this size is.
    pub(super) fn too_long(&self, size: &str) -> Failure {
        refused(
            format!("{TOO_LONG}: {size}"),
            format!(
                "the model has positions for {} tokens of text, the answer included",
                self.positions
            ),
            "shorten the prompt",
        )
    }

    /// The tokens of a text, with special tokens around it or without.
    ///
    /// # Errors
    /// When the tokenizer refuses.
    pub(super) fn tokenize(&self, text: &str, special: bool) -> Result<Vec<u32>, Failure> {
        limited(text.len())?;
        let ids = match special {
            true => self.presented(text)?,
            false => self.encoder.ids(text)?,
        };
        Ok(to_tokens(&ids))
    }

    /// The text of tokens, special ones included.
    ///
    /// # Errors
    /// When the model has no such token.
    pub(super) fn detokenize(&self, tokens: &[u32]) -> Result<String, Failure> {
        limited(tokens.len())?;
        self.known(tokens)?;
        self.encoder.verbatim(tokens)
    }

    fn known(&self, tokens: &[u32]) -> Result<Vec<i64>, Failure> {
        let entries = self.encoder.vocab_size();
        match tokens.iter().find(|token| **token >= entries) {
            None => Ok(tokens.iter().map(|token| i64::from(*token)).collect()),
            Some(token) => Err(refused(
                format!("there is no token {token}"),
                format!("the model knows those from 0 to {}", entries - 1),
                "make tokens with the model's own tokenizer",
            )),
        }
    }

    /// Soft tokens `[b, p, d]` of pictures as their files have them.
    ///
    /// # Errors
    /// When the model cannot see.
    pub(super) fn look(&self, pictures: &[&[u8]]) -> Result<Tensor, Failure> {
        self.eyes()?.look(pictures, self.device)
    }

    /// A picture's file as the encoder wants it: RGB bytes of a square.
    ///
    /// # Errors
    /// When the model cannot see, or the file is no picture that can be read.
    pub(crate) fn picture(&self, file: &[u8]) -> Result<Vec<u8>, Failure> {
        let side = self.eyes()?.side();
        let square = picture::square(file, &picture::Limits::default(), side);
        let square = square.map_err(|error| {
            Failure::data(
                "the picture cannot be read",
                error.to_string(),
                "give a PNG, JPEG or WebP file",
            )
        });
        Ok(square?.pixels)
    }

    /// What it sees with.
    ///
    /// # Errors
    /// When it cannot see.
    pub(crate) fn eyes(&self) -> Result<&Eyes, Failure> {
        self.eyes.as_ref().ok_or_else(|| {
            refused(
                "the model cannot be shown pictures",
                "nothing connects a visual encoder to it",
                "leave the picture out, or ask a memory stage or one that builds on it",
            )
        })
    }
}

/// The second halves of an exported model, and how it is asked.
fn of_mks2(mks2: &Mks2, model: &job::Model, weights: &Weights) -> Result<(Halves, Form), Failure> {
    let names = mks2.memories();
    if mks2.words.second_half == SecondHalf::Memory {
        let memory = Memory::new(model, &names.concat(), weights)?;
        return Ok((Halves::Memory(memory), Form::Text));
    }
    let settings = mks2.experts();
    let memories = names.iter().map(|name| Memory::new(model, name, weights));
    let memories = memories.collect::<Result<Vec<_>, _>>()?;
    let experts = Experts::new(model, &settings, &memories, weights)?;
    Ok((Halves::Experts(experts), Form::Question(settings.into())))
}

/// Whether bytes or tokens for the tokenizer alone are few enough.
fn limited(count: usize) -> Result<(), Failure> {
    match count <= MOST_AT_ONCE {
        true => Ok(()),
        false => Err(refused(
            "that is too much for the tokenizer at once",
            format!("{count} bytes or tokens are more than {MOST_AT_ONCE}"),
            "send it in parts",
        )),
    }
}

#[cfg(test)]
mod tests;
