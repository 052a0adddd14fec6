//! Tokens a second of a published model, many answers side by side, and what it takes to read it.

use std::time::Instant;

use clap::Args;
use mks2_proto::failure::Failure;
use mks2_proto::generate::{Prompt, Source, What};
use mks2_proto::job::Precision;
use serde_json::{Value, json};

use super::process::{memory, reset_peak};
use super::stage::median;
use crate::app::io_runtime;
use crate::device;
use crate::generate::{Speaker, answers};

/// What is generated.
#[derive(Debug, Args)]
pub(super) struct Generate {
    /// Folder of the model.
    #[arg(long)]
    folder: String,
    /// Answers side by side.
    #[arg(long, default_value_t = 1)]
    batch: u64,
    /// Words of a prompt.
    #[arg(long, default_value_t = 4)]
    words: usize,
    /// Tokens of an answer.
    #[arg(long, default_value_t = 64)]
    tokens: u32,
    /// Computes in bf16.
    #[arg(long)]
    bf16: bool,
    /// Threads of libtorch.
    #[arg(long, default_value_t = 2)]
    threads: u32,
    /// Measured answers of each place, after one to warm up.
    #[arg(long, default_value_t = 3)]
    repetitions: usize,
}

/// Seconds that a token takes, prompts included.
pub(super) fn measure(settings: &Generate) -> Result<Value, Failure> {
    device::prepare(settings.threads);
    let runtime = io_runtime()?;
    let source = Source::Folder {
        url: settings.folder.clone(),
        strict: true,
    };
    reset_peak();
    let before = memory("VmRSS:");
    let began = Instant::now();
    let precision = settings.bf16.then_some(Precision::Bf16);
    let speaker = Speaker::open(&source, (precision, tch::Device::Cpu), runtime.handle())?;
    let load_seconds = began.elapsed().as_secs_f64();
    let load_bytes = memory("VmHWM:").saturating_sub(before);
    let prompts = (0..settings.batch).map(|id| Prompt {
        id,
        what: What::Text("fox ".repeat(settings.words)),
        max_tokens: Some(settings.tokens),
        ..Prompt::default()
    });
    let prompts: Vec<Prompt> = prompts.collect();
    let mut seconds = Vec::new();
    for repetition in 0..=settings.repetitions {
        let began = Instant::now();
        let tokens = tch::no_grad(|| answer(&speaker, prompts.clone()))?;
        if repetition > 0 {
            seconds.push(began.elapsed().as_secs_f64() / tokens as f64);
        }
    }
    Ok(json!({
        "token_seconds": median(seconds), "load_seconds": load_seconds,
        "load_bytes": load_bytes, "weights_bytes": weights_bytes(&settings.folder)?,
    }))
}

/// Bytes of the files of weights in a folder.
fn weights_bytes(folder: &str) -> Result<u64, Failure> {
    let unread = |error| Failure::io(format!("{folder} cannot be listed"), error);
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder).map_err(unread)? {
        let entry = entry.map_err(unread)?;
        if entry
            .path()
            .extension()
            .is_some_and(|end| end == "safetensors")
        {
            bytes += entry.metadata().map_err(unread)?.len();
        }
    }
    Ok(bytes)
}

/// How many tokens were generated.
fn answer(speaker: &Speaker, prompts: Vec<Prompt>) -> Result<usize, Failure> {
    let batch = prompts.len();
    let answers = answers(speaker, prompts, batch)?.into_iter();
    answers.map(|answer| Ok(answer?.tokens.len())).sum()
}
