//! `mks2 export`: what a run has trained, for the tools that others have.
//!
//! ```text
//! find the run ─► a folder beside the target ─► the worker's program fills it ─► renamed to the target
//! ```

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use mks2_dataset::store;
use mks2_proto::export::{self, Form, Order, Told, Written};
use mks2_proto::failure::Failure;
use mks2_proto::generate::Source;
use serde_json::json;

use crate::beside::Place;
use crate::engine;
use crate::output::Output;
use crate::train::signals::Signals;
use crate::units::{bytes, plural, short, size};

const HF_EXAMPLES: &str = "\
Examples:
  mks2 export hf runs/emoji --out emoji-mks2
      The model of the run's last stage, or of the one that its evaluation calls mks2.
  mks2 export hf runs/emoji --stage lora --merge --dtype bf16 --out emoji-lora
      Adapters folded into their matrices, numbers of half the size.
  python -c \"from transformers import AutoModelForCausalLM as M; \\
      print(M.from_pretrained('emoji-mks2', trust_remote_code=True))\"
  mks2 generate emoji-mks2 --prompt \"What color is the fox?\"

A bootstrap or pretrained stage becomes a plain Llama, Mistral or Qwen2. Memory and experts stages come with
modeling_mks2.py, which transformers 5 loads with trust_remote_code=True.";

const PEFT_EXAMPLES: &str = "\
Examples:
  mks2 export peft runs/emoji --stage lora --out emoji-adapter
  mks2 export hf runs/emoji --stage bootstrap --out emoji-base
  python -c \"from transformers import AutoModelForCausalLM as M; from peft import PeftModel; \\
      print(PeftModel.from_pretrained(M.from_pretrained('emoji-base'), 'emoji-adapter'))\"

The id that is printed is a digest of all tensors: with it as experts.adapter_id, a job takes these adapters and no others.

The answers are those of a stage without memories. With memories the router and the memories are missing from
them: write the whole model with mks2 export hf.";

/// What can be written.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum ExportCommand {
    /// Write a model as a folder that transformers loads
    #[command(after_help = HF_EXAMPLES)]
    Hf(HfArgs),
    /// Write the language model's adapters of an experts stage for PEFT
    #[command(after_help = PEFT_EXAMPLES)]
    Peft(PeftArgs),
}

/// Which model, and where to.
#[derive(Clone, Debug, Args)]
struct FromTo {
    /// The run directory: a path or any object store URL
    #[arg(value_name = "RUN")]
    run: String,
    /// The folder to write, on this machine; it must not exist, or be empty
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// The stage [default: what the run's evaluation calls mks2, or else the last one that is finished]
    #[arg(long, value_name = "NAME")]
    stage: Option<String>,
    /// Threads [default: all]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroU32>,
}

/// `mks2 export hf`
#[derive(Clone, Debug, Args)]
pub(crate) struct HfArgs {
    #[command(flatten)]
    from_to: FromTo,
    /// Type of the numbers
    #[arg(long, value_enum, default_value_t = Dtype::Fp32, value_name = "TYPE")]
    dtype: Dtype,
    /// Largest file with tensors; a larger tensor has one of its own
    #[arg(long, default_value = "5GB", value_name = "SIZE", value_parser = size)]
    max_shard_size: u64,
    /// Fold low-rank adapters into their matrices: W + alpha / r B A
    #[arg(long)]
    merge: bool,
}

/// `mks2 export peft`
#[derive(Clone, Debug, Args)]
pub(crate) struct PeftArgs {
    #[command(flatten)]
    from_to: FromTo,
}

/// Types of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Dtype {
    /// As they were trained
    Fp32,
    /// Rounded
    Bf16,
}

impl From<Dtype> for export::Dtype {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::Fp32 => Self::Fp32,
            Dtype::Bf16 => Self::Bf16,
        }
    }
}

/// Writes a model.
///
/// # Errors
/// No such run or stage, a target that is there (exit 2), storage (5), no program (6), a checkpoint that
/// is damaged (8).
pub(crate) async fn run(command: ExportCommand, output: &Output) -> Result<(), Failure> {
    let (from_to, form) = match command {
        ExportCommand::Hf(args) => {
            let form = Form::Hf {
                dtype: args.dtype.into(),
                max_shard_bytes: args.max_shard_size,
                merge: args.merge,
            };
            (args.from_to, form)
        }
        ExportCommand::Peft(args) => (args.from_to, Form::Peft),
    };
    let place = place(&from_to.out)?;
    let found = engine::find(&from_to.run, from_to.stage.as_deref()).await?;
    if matches!(found.source, Source::Folder { .. }) {
        return Err(Failure::usage(
            format!("there is no run at {}", store::shown(&from_to.run)),
            "there is no config.resolved.toml in it",
            "name the directory of a run; a published model needs no export",
        ));
    }
    output.note(&found.words);
    let mut signals = Signals::listen()?;
    let beside = place.begin()?;
    let order = Order {
        model: found.source,
        form,
        folder: beside.path().display().to_string(),
        threads: engine::threads(from_to.threads),
    };
    let told = tokio::select! {
        told = engine::order(&order) => told?,
        by = signals.next() => return Err(Failure::stopped(
            "the export was stopped",
            format!("{by} ended it; nothing was written"),
            "run it again",
        )),
    };
    let written = match told {
        Told::Written(written) => written,
        Told::Failed { why } => return Err(why.into()),
    };
    let folder = beside.finish()?;
    show(&written, &folder, output);
    Ok(())
}

fn show(written: &Written, folder: &Path, output: &Output) {
    let folder = folder.display();
    if output.is_json() {
        let found = json!({
            "folder": folder.to_string(), "what": written.what, "parameters": written.parameters,
            "bytes": written.bytes, "files": written.files, "id": written.id, "without": written.without,
        });
        return output.result(&found.to_string());
    }
    let parameters = short(written.parameters);
    let files = plural(written.files, "file");
    output.result(&format!(
        "{folder}: {}, {} parameters, {} in {files}",
        written.what,
        parameters.trim(),
        bytes(written.bytes)
    ));
    if let Some(id) = &written.id {
        output.result(&format!("id {id}"));
    }
    if let Some(without) = &written.without {
        output.note(&format!("it is without {without}"));
    }
}

/// The place that was named, on this machine.
fn place(named: &Path) -> Result<Place, Failure> {
    let text = named.to_string_lossy();
    let path = store::local_path(&text).ok_or_else(|| {
        Failure::usage(
            format!("{} is no folder of this machine", store::shown(&text)),
            "a model appears there as a whole, which an object store cannot do with several files",
            "write it to a local folder, and copy that with the tools of the store",
        )
    })?;
    Place::free(&path)
}
