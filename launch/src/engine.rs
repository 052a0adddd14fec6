//! A model that can be asked: which one a path or URL means, and the program that computes its answers.

mod source;
mod talk;

use std::num::NonZeroU32;

use clap::Args;
use mks2_dataset::pretrained::Folder;
use mks2_proto::evaluate;
use mks2_proto::export::{Order, Told};
use mks2_proto::failure::Failure;
use mks2_proto::generate::{Opening, Source};
use mks2_proto::job::Precision;
use serde::Deserialize;
use serde::de::IntoDeserializer;

use crate::output::Output;
use crate::units::size;
pub(crate) use source::Found;
pub(crate) use source::find;
pub(crate) use talk::{Answers, Asking};

/// Which model is asked, and where it computes.
#[derive(Clone, Debug, Args)]
pub(crate) struct ModelArgs {
    /// A run directory, or a folder with a published language model: a path or any object store URL
    #[arg(value_name = "RUN|MODEL")]
    pub(crate) model: String,
    /// The stage of the run that is asked [default: what its evaluation calls mks2, or else the last
    /// one that is finished]
    #[arg(long, value_name = "NAME")]
    stage: Option<String>,
    /// Leave out tensors that a published model does not know, instead of refusing them
    #[arg(long)]
    no_strict: bool,
    /// Prompts that are answered side by side
    #[arg(long, default_value = "8", value_name = "N", help_heading = COMPUTING)]
    batch: NonZeroU32,
    /// Keys and values that are kept at most [default: what the batch needs with up to 4,096 positions
    /// each, or one text with all positions of the model]
    #[arg(long, value_parser = size, value_name = "SIZE", help_heading = COMPUTING)]
    cache_bytes: Option<u64>,
    /// Where to compute: cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu", value_name = "DEVICE", help_heading = COMPUTING)]
    device: String,
    /// Numbers to compute in [default: those of the run, or fp32]
    #[arg(long, value_parser = precision, value_name = "fp32|bf16", help_heading = COMPUTING)]
    precision: Option<Precision>,
    /// Threads on a CPU [default: all]
    #[arg(long, value_name = "N", help_heading = COMPUTING)]
    threads: Option<NonZeroU32>,
}

const COMPUTING: &str = "Computing";

fn precision(word: &str) -> Result<Precision, String> {
    let value = word.into_deserializer();
    Precision::deserialize(value).map_err(|error: serde::de::value::Error| error.to_string())
}

/// A model that can be asked as soon as it says so.
pub(crate) struct Started {
    pub(crate) asking: Asking,
    pub(crate) answers: Answers,
    /// Where it is, if it is a published one.
    pub(crate) folder: Option<Folder>,
}

impl ModelArgs {
    /// Finds the model and starts the program. Call it from the main thread.
    ///
    /// # Errors
    /// No such model (exit 2, 3), storage (5), no program (6).
    pub(crate) async fn start(&self, output: &Output) -> Result<Started, Failure> {
        let found = self.find().await?;
        output.note(&found.words);
        let opening = Opening {
            model: found.source,
            device: self.device.clone(),
            precision: self.precision,
            threads: threads(self.threads),
            batch: self.batch.get(),
            cache_bytes: self.cache_bytes,
        };
        let (asking, answers) = talk::begin("generate", &opening).await?;
        Ok(Started {
            asking,
            answers,
            folder: found.folder,
        })
    }

    /// Finds the model alone.
    ///
    /// # Errors
    /// As [`ModelArgs::start`].
    pub(crate) async fn find(&self) -> Result<Found, Failure> {
        let mut found = find(&self.model, self.stage.as_deref()).await?;
        match &mut found.source {
            Source::Folder { strict, .. } => *strict = !self.no_strict,
            Source::Run { .. } if self.no_strict => {
                return Err(Failure::usage(
                    "--no-strict does not fit a run",
                    "its job says how published models are read: pretrained.strict",
                    "leave the option out",
                ));
            }
            Source::Run { .. } => {}
        }
        Ok(found)
    }

    /// Starts the program to measure tasks. Call it from the main thread.
    ///
    /// # Errors
    /// No program (exit 6).
    pub(crate) async fn measure(
        &self,
        found: Found,
        tasks: Vec<evaluate::Asked>,
        limit: Option<u64>,
    ) -> Result<Answers, Failure> {
        let opening = evaluate::Opening {
            model: found.source,
            tasks,
            device: self.device.clone(),
            precision: self.precision,
            threads: threads(self.threads),
            batch: self.batch.get(),
            cache_bytes: self.cache_bytes,
            limit,
        };
        let (_, answers) = talk::begin("eval", &opening).await?;
        Ok(answers)
    }

    /// Where it computes.
    pub(crate) fn device(&self) -> &str {
        &self.device
    }

    /// Prompts that are answered side by side.
    pub(crate) fn batch(&self) -> usize {
        self.batch.get() as usize
    }
}

/// Has the program write a model, and waits for what it tells. Call it from the main thread.
///
/// # Errors
/// No program (exit 6), or one that ended without an answer.
pub(crate) async fn order(order: &Order) -> Result<Told, Failure> {
    let (_, mut answers) = talk::begin("export", order).await?;
    let told = answers.said().await?;
    told.ok_or_else(|| Failure::internal("the program that exports has said nothing", "it ended"))
}

/// Threads on a CPU: all, where none are named.
pub(crate) fn threads(named: Option<NonZeroU32>) -> u32 {
    let all = std::thread::available_parallelism();
    let all = all.map_or(1, |all| u32::try_from(all.get()).unwrap_or(1));
    named.map_or(all, NonZeroU32::get)
}
