//! `mks2 memory export`: the last checkpoint of a memory stage becomes a memory that others can attach.

use mks2_dataset::checkpoint::{Kind, Manifest, read_part};
use mks2_dataset::memory::card::{
    Base, Card, Group, Shape, VERSION, check_name, check_text, place_of,
};
use mks2_dataset::memory::write::{Writer, Written};
use mks2_dataset::memory::{Part, Tensor};
use mks2_proto::failure::Failure;
use mks2_proto::job::Stage;

use super::run::Run;
use super::{ExportArgs, tell};
use crate::output::Output;

/// Exports a memory.
///
/// # Errors
/// No such run, an unfinished stage, another memory in the place (exit 2), storage (5), a damaged
/// checkpoint (8).
pub(super) async fn run(args: &ExportArgs, output: &Output) -> Result<(), Failure> {
    check(args)?;
    let run = Run::open(&args.run)
        .await?
        .ok_or_else(|| no_run(&args.run))?;
    let stage = run.stage(args.stage.as_deref())?;
    let written = export(&run, stage, args).await?;
    tell(&written, args.json, output).await
}

/// What will stand on the card is looked at before anything is written.
fn check(args: &ExportArgs) -> Result<(), Failure> {
    let name = args.name.as_deref().map_or(Ok(()), check_name);
    let license = args.license.as_deref().map_or(Ok(()), check_text);
    let refused = |option: &str, why| {
        let what = format!("{option} cannot stand on the card of a memory");
        Failure::usage(what, why, "give a short text of one line")
    };
    name.map_err(|why| refused("--name", why))?;
    license.map_err(|why| refused("--license", why))
}

async fn export(run: &Run, stage: &Stage, args: &ExportArgs) -> Result<Written, Failure> {
    let last = run.last_of(&stage.name)?;
    let manifest = run.manifest(last).await?;
    let (base, digest) = run.base_of(stage).await?;
    let losses = run.losses(last.step).await?;
    let mut writer = Writer::open(&args.out).await?;
    weights(run, stage, &manifest, &mut writer).await?;
    let describe = |parts: Vec<Part>| Card {
        version: VERSION,
        name: args.name.clone().unwrap_or_else(|| stage.name.clone()),
        license: args.license.clone(),
        shape: Shape::of(&run.job.model, &stage.name),
        base: Base {
            digest,
            kind: base.kind,
        },
        corpora: manifest.facts.corpora.clone(),
        rows: manifest.facts.samples,
        steps: manifest.facts.stage_step,
        seed: manifest.facts.seed,
        losses,
        made_with: manifest.facts.made_with.clone(),
        parts,
    };
    Ok(writer.finish(describe).await?)
}

/// Hands the trained weights of a checkpoint to the writer.
async fn weights(
    run: &Run,
    stage: &Stage,
    manifest: &Manifest,
    writer: &mut Writer,
) -> Result<(), Failure> {
    let is_trained = |part: &&mks2_dataset::checkpoint::Part| {
        part.tensors.iter().any(|entry| entry.kind == Kind::Weights)
    };
    for part in manifest.parts.iter().filter(is_trained) {
        let tensors = read_part(&*run.place.store, &run.place.root, part.clone()).await?;
        for ((kind, name), tensor) in tensors {
            if kind != Kind::Weights {
                continue;
            }
            let (group, name) = place_of(&stage.name, &name).ok_or_else(|| unknown(&name))?;
            let tensor = Tensor {
                name,
                shape: tensor.shape,
                data: tensor.data,
            };
            writer.add(group, tensor).await?;
        }
    }
    Ok(())
}

fn unknown(name: &str) -> Failure {
    let groups = Group::ALL.map(Group::name).join(", ");
    Failure::internal(
        "the memory cannot be exported",
        format!("its stage has trained '{name}', which is none of {groups}"),
    )
}

fn no_run(named: &str) -> Failure {
    Failure::usage(
        format!("there is no run at {}", mks2_dataset::store::shown(named)),
        "there is no config.resolved.toml in it",
        "give the directory that was given to `mks2 train --run`",
    )
}
