//! `mks2 generate`: asks a model that a run has trained, or one that was published.
//!
//! | module | what |
//! |---|---|
//! | [`prompts`] | what is asked: options, pictures, files of prompts |
//! | [`show`] | answers as text or JSON, in the order of the prompts |

mod prompts;
mod show;

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use mks2_proto::failure::Failure;
use mks2_proto::generate::{Ask, Event, Sampling, What};
use tokio::sync::Semaphore;

use crate::engine::{Asking, ModelArgs, Started};
use crate::output::Output;
use prompts::Asked;
use show::Answers;

const EXAMPLES: &str = "\
Examples:
  mks2 generate runs/emoji --prompt \"What color is the fox?\"
      The model of the run's last stage, or of the one that its evaluation calls mks2.
  mks2 generate models/Qwen2.5-7B-Instruct --chat --prompt \"Why is the sky blue?\"
      The same, asked in its chat template.
  mks2 generate runs/emoji --stage memory --image fox.png
      What the memory stage says of a picture: its caption.
  mks2 generate models/Llama-2-7b-hf --prompt \"Once upon\" --temperature 0.8 --top-p 0.95 --max-tokens 100
      A published language model, as Hugging Face ships it.
  mks2 generate runs/emoji --prompts questions.jsonl --json > answers.jsonl
      One prompt a line, {\"prompt\": \"...\", \"image\": \"FILE\"}; one answer a line, in the same order.

The likeliest tokens are taken unless --temperature is given. An experts stage is asked as it was trained:
with the question in its template, closed as there.";

/// Prompts that are with the program, for each that it answers: one is there when another one is done.
const AHEAD: usize = 2;

/// Options of `generate`.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    model: ModelArgs,
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
    /// Ask a published model as the user of a dialogue, by its chat template
    #[arg(long, conflicts_with = "raw")]
    chat: bool,
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

    fn what(&self, text: String) -> What {
        match self.raw {
            true => What::Raw(text),
            false => What::Text(text),
        }
    }
}

/// Asks, and prints the answers.
///
/// # Errors
/// Options (exit 2), no such model (2, 3, 8), storage (5), the machine (6), pictures (4). When one of
/// several prompts cannot be answered the others are; the first such failure is returned at last.
pub(crate) async fn run(args: &GenerateArgs, output: &Output) -> Result<(), Failure> {
    args.sampling().check()?;
    let mut asked = prompts::collect(args)?;
    let Started {
        asking,
        answers: mut said,
        folder,
    } = args.model.start(output).await?;
    if args.chat {
        prompts::in_dialogues(&mut asked, folder.as_ref()).await?;
    }
    let asked = Arc::new(asked);
    let room = Arc::new(Semaphore::new(AHEAD * args.model.batch()));
    let mut asks = tokio::spawn(ask(Arc::clone(&asked), asking, Arc::clone(&room)));
    let mut answers = Answers::new(&asked, args.json || output.is_json(), output);
    let mut is_asking = true;
    while !answers.are_complete() {
        let event = tokio::select! {
            event = said.next() => event?,
            ended = &mut asks, if is_asking => {
                is_asking = false;
                // A picture that was there may be gone.
                ended.unwrap_or(Ok(()))?;
                continue;
            }
        };
        let Some(event) = event else {
            let why = "it ended before it had answered everything";
            return Err(Failure::internal("the program that computes is gone", why));
        };
        if matches!(event, Event::Done { .. } | Event::Refused { .. }) {
            room.add_permits(1);
        }
        answers.take(event)?;
    }
    answers.finish()
}

/// Asks one prompt after the other, as there is room. The program reads as it answers: whoever wrote all
/// before reading could wait for ever.
async fn ask(asked: Arc<Vec<Asked>>, asking: Asking, room: Arc<Semaphore>) -> Result<(), Failure> {
    for one in asked.iter() {
        match room.acquire().await {
            Ok(place) => place.forget(),
            Err(_) => return Ok(()),
        }
        asking.ask(&Ask::Prompt(one.whole()?)).await?;
    }
    Ok(())
}
