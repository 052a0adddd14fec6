//! Models for other programs: the hidden `mks2-worker export`, which `mks2` orders from over standard
//! input and output (see [`mks2_proto::export`]).
//!
//! ```text
//! order ──► trained: the model ──► assemble: its tensors under the names of a folder
//!             ├─ hf     config.json, tokenizer, modeling_mks2.py; shards: safetensors
//!             └─ peft   adapter_config.json, adapter_model.safetensors
//! ```

mod assemble;
mod fold;
mod hf;
mod peft;
mod shards;

use std::fs;
use std::io::{BufRead, Write};
use std::path::Path;

use mks2_proto::export::{Form, Order, Told, Written};
use mks2_proto::failure::Failure;
use mks2_proto::generate::{Source, Words};
use serde_json::Value;
use tch::Device;

use crate::app::io_runtime;
use crate::device;
use crate::dispatch::check_libtorch;
use crate::generate::{parse, tell, unheard};
use crate::trained::{OfRun, TrainedModel};

/// Writes what the line of `input` orders, and tells it.
///
/// # Errors
/// When the model cannot be read or written, or nobody reads the output.
pub fn run(mut input: impl BufRead, output: &mut impl Write) -> Result<(), Failure> {
    let ended = tch::no_grad(|| {
        check_libtorch()?;
        let mut line = String::new();
        input.read_line(&mut line).map_err(unheard)?;
        let order: Order = parse(&line)?;
        device::prepare(order.threads);
        fill(&order)
    });
    match ended {
        Ok(written) => tell(output, &[Told::Written(written)]),
        Err(failure) => {
            let why = Words::from(&failure);
            // Nobody may be there to read it.
            let _ = tell(output, &[Told::Failed { why }]);
            Err(failure)
        }
    }
}

fn fill(order: &Order) -> Result<Written, Failure> {
    let Source::Run {
        job_toml,
        url,
        stage,
        trained,
    } = &order.model
    else {
        return Err(Failure::usage(
            "there is nothing to export",
            "it is the folder of a model already",
            "name the directory of a run",
        ));
    };
    let named = OfRun {
        job_toml,
        url,
        stage,
        trained,
    };
    let runtime = io_runtime()?;
    let model = TrainedModel::of_run(&named, Device::Cpu, runtime.handle())?;
    let folder = Path::new(&order.folder);
    match &order.form {
        Form::Hf {
            dtype,
            max_shard_bytes,
            merge,
        } => hf::write(&model, *merge, (*dtype, *max_shard_bytes), folder),
        Form::Peft => peft::write(&model, stage, folder),
    }
}

/// Writes a file.
fn put(folder: &Path, name: &str, bytes: &[u8]) -> Result<(), Failure> {
    let path = folder.join(name);
    fs::write(&path, bytes).map_err(|error| unwritten(&path, error))
}

/// Writes a file of JSON.
fn put_json(folder: &Path, name: &str, value: &Value) -> Result<(), Failure> {
    put(folder, name, format!("{value:#}\n").as_bytes())
}

fn unwritten(path: &Path, error: std::io::Error) -> Failure {
    Failure::io(format!("{} cannot be written", path.display()), error)
}
