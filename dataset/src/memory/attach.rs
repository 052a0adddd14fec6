//! A memory held against the job that attaches it, before anything large is read.

use std::collections::BTreeMap;

use mks2_proto::job::{Attach, Job, Stage, StageKind};
use mks2_proto::params::{ParamSpec, frozen_by};

use super::card::{Group, Shape, name_in_job};
use super::{Artefact, MemoryError, Result};

/// The memory of an `attach` stage: of the id that the job pins, of the shape that it says, and with all
/// of its parts there. Which language model it belongs to is known to [`check_base`].
///
/// # Errors
/// When there is none, it is damaged, or it is not what the job says.
pub async fn open(job: &Job, stage: &Stage) -> Result<Artefact> {
    let settings = stage.attach.clone().unwrap_or_default();
    let artefact = Artefact::open(&settings.memory).await?;
    check_id(&artefact, stage, &settings)?;
    check_seed(&artefact, job, stage)?;
    check_shape(&artefact, job, stage)?;
    if settings.bridge {
        check_bridge(&artefact, job, stage)?;
    }
    artefact.check_sizes().await?;
    Ok(artefact)
}

/// Groups of parts that a stage brings.
#[must_use]
pub fn groups(settings: &Attach) -> &'static [Group] {
    match settings.bridge {
        true => &Group::ALL,
        false => &[Group::Memory],
    }
}

/// Whether a memory was stored beside the language model that `stage` has left, whose weights have
/// `digest`.
///
/// # Errors
/// [`MemoryError::OtherBase`].
pub fn check_base(artefact: &Artefact, stage: &str, digest: &str) -> Result<()> {
    let wanted = &artefact.card.base.digest;
    if wanted == digest {
        return Ok(());
    }
    Err(other_base(
        artefact,
        format!("its weights have digest {wanted}, those of stage '{stage}' {digest}"),
    ))
}

fn other_base(artefact: &Artefact, difference: String) -> MemoryError {
    MemoryError::OtherBase {
        location: artefact.location().to_owned(),
        difference,
    }
}

fn check_id(artefact: &Artefact, stage: &Stage, settings: &Attach) -> Result<()> {
    match &settings.id {
        Some(wanted) if *wanted != artefact.id => Err(MemoryError::OtherId {
            location: artefact.location().to_owned(),
            stage: stage.name.clone(),
            found: artefact.id.clone(),
            wanted: wanted.clone(),
        }),
        _ => Ok(()),
    }
}

/// A bootstrap stage with another seed makes another language model: to say so now saves its training.
fn check_seed(artefact: &Artefact, job: &Job, stage: &Stage) -> Result<()> {
    let card = &artefact.card;
    let trained = |base: &Stage| base.kind == StageKind::Bootstrap;
    let is_trained = job.base_of(&stage.name).is_some_and(trained);
    if !is_trained || card.base.kind != StageKind::Bootstrap || card.seed == job.seed {
        return Ok(());
    }
    Err(other_base(
        artefact,
        format!(
            "it was trained with seed {}, the job has {}",
            card.seed, job.seed
        ),
    ))
}

fn check_shape(artefact: &Artefact, job: &Job, stage: &Stage) -> Result<()> {
    let (theirs, ours) = (artefact.card.shape, Shape::of(&job.model, &stage.name));
    let body = |shape: Shape| {
        let Shape {
            layers,
            hidden_size,
            ..
        } = shape;
        format!("{layers} blocks of width {hidden_size}")
    };
    if body(theirs) != body(ours) {
        let (theirs, ours) = (body(theirs), body(ours));
        return Err(other_base(
            artefact,
            format!("it has {theirs}, that of the job {ours}"),
        ));
    }
    if theirs == ours {
        return Ok(());
    }
    let words = |shape: Shape| format!("{} and {} wide", shape.form_name(), shape.width);
    Err(MemoryError::OtherShape {
        location: artefact.location().to_owned(),
        stage: stage.name.clone(),
        found: words(theirs),
        said: words(ours),
        table: table(theirs),
    })
}

/// A shape as a job file has it.
#[must_use]
pub fn table(shape: Shape) -> String {
    format!(
        "{{ width = {}, form = \"{}\" }}",
        shape.width,
        shape.form_name()
    )
}

/// What was trained beside the memory has the tensors that the job's model wants.
fn check_bridge(artefact: &Artefact, job: &Job, stage: &Stage) -> Result<()> {
    let mut found: BTreeMap<String, &[usize]> = BTreeMap::new();
    for (_, entry) in artefact.card.entries() {
        found.insert(name_in_job(&stage.name, &entry.name), &entry.shape);
    }
    let difference = |spec: &ParamSpec| match found.remove(&spec.name) {
        Some(shape) if shape == spec.shape => None,
        Some(shape) => Some(format!(
            "'{}' is {shape:?} there, and {:?} in the job",
            spec.name, spec.shape
        )),
        None => Some(format!("'{}' is not there", spec.name)),
    };
    let specs = frozen_by(&job.model, job.tokenizer.vocab_size, stage);
    let first = specs.iter().find_map(difference);
    let first = first.or_else(|| {
        let name = found.keys().next()?;
        Some(format!("the job has no '{name}'"))
    });
    match first {
        None => Ok(()),
        Some(difference) => Err(MemoryError::OtherBridge {
            location: artefact.location().to_owned(),
            stage: stage.name.clone(),
            difference,
        }),
    }
}
