//! `mks2 generate`: asks a model that a run has trained, or one that was published.
//!
//! | module | what |
//! |---|---|
//! | [`source`] | which model a path or URL means |
//! | [`prompts`] | what is asked: options, pictures, files of prompts |
//! | [`talk`] | the conversation with the program that computes |
//! | [`show`] | answers as text or JSON, in the order of the prompts |

mod prompts;
mod show;
mod source;
mod talk;

use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::Args;
use mks2_proto::failure::Failure;
use mks2_proto::generate::{Opening, Sampling};

use crate::output::Output;
use show::Answers;
use talk::Talk;

const EXAMPLES: &str = "\
Examples:
  mks2 generate runs/emoji --prompt \"What color is the fox?\"
      The model of the run's last stage, or of the one that its evaluation calls mks2.
  mks2 generate runs/emoji --stage memory --image fox.png
      What the memory stage says of a picture: its caption.
  mks2 generate models/Llama-2-7b-hf --prompt \"Once upon\" --temperature 0.8 --top-p 0.95 --max-tokens 100
      A published language model, as Hugging Face ships it.
  mks2 generate runs/emoji --prompts questions.jsonl --json > answers.jsonl
      One prompt a line, {\"prompt\": \"...\", \"image\": \"FILE\"}; one answer a line, in the same order.

The likeliest tokens are taken unless --temperature is given. An experts stage is asked as it was trained:
with the question in its template, closed as there.";

/// Options of `generate`.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct GenerateArgs {
    /// A run directory, or a folder with a published language model: a path or any object store URL
    #[arg(value_name = "RUN|MODEL")]
    model: String,
    /// The stage of the run that is asked [default: what its evaluation calls mks2, or else the last
    /// one that is finished]
    #[arg(long, value_name = "NAME")]
    stage: Option<String>,
    /// What is asked; may be repeated
    #[arg(long = "prompt", short, value_name = "TEXT")]
    prompts: Vec<String>,
    /// A picture before each --prompt, or alone: PNG, JPEG or WebP
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// A file with one {"prompt": ..., "image": ...} a line; - for standard input
    #[arg(long = "prompts", value_name = "FILE", conflicts_with_all = ["prompts", "image"])]
    file: Option<PathBuf>,
    /// Take prompts as they are, without the template of an experts stage
    #[arg(long)]
    raw: bool,
    /// Tokens to generate at most [default: as many as the model has positions for]
    #[arg(long, value_name = "N")]
    max_tokens: Option<NonZeroU32>,
    /// Draw tokens by their probabilities, logits divided by this; 0 takes the likeliest
    #[arg(long, default_value_t = 0.0, value_name = "NUMBER")]
    temperature: f64,
    /// Draw among the likeliest tokens that have this probability together
    #[arg(long, default_value_t = 1.0, value_name = "SHARE")]
    top_p: f64,
    /// Draw among so many likeliest tokens; 0: among all
    #[arg(long, default_value_t = 0, value_name = "N")]
    top_k: u32,
    /// Decides what is drawn, together with the place of the prompt
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// End an answer before this text; may be repeated
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Prompts that are answered side by side
    #[arg(long, default_value = "8", value_name = "N")]
    batch: NonZeroU32,
    /// Where to compute: cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    device: String,
    /// Threads on a CPU [default: all]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroU32>,
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
}

impl GenerateArgs {
    fn sampling(&self) -> Sampling {
        Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            seed: self.seed,
        }
    }

    fn threads(&self) -> u32 {
        let all = std::thread::available_parallelism();
        let all = all.map_or(1, |all| u32::try_from(all.get()).unwrap_or(1));
        self.threads.map_or(all, NonZeroU32::get)
    }
}

/// Asks, and prints the answers.
///
/// # Errors
/// Options (exit 2), no such model (2, 3, 8), storage (5), the machine (6), pictures (4). When one of
/// several prompts cannot be answered the others are; the first such failure is returned at last.
pub(crate) async fn run(args: &GenerateArgs, output: &Output) -> Result<(), Failure> {
    args.sampling().check()?;
    let asked = prompts::collect(args)?;
    let found = source::find(&args.model, args.stage.as_deref()).await?;
    output.note(&found.words);
    let opening = Opening {
        model: found.source,
        device: args.device.clone(),
        threads: args.threads(),
        batch: args.batch.get(),
    };
    let mut talk = Talk::begin(
        &opening,
        asked.iter().map(|one| one.prompt.clone()).collect(),
    )?;
    let mut answers = Answers::new(&asked, args.json || output.is_json(), output);
    while let Some(event) = talk.next()? {
        answers.take(event)?;
        if answers.are_complete() {
            break;
        }
    }
    answers.finish()
}
