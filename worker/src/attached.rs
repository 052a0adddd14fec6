//! An `attach` stage: it trains nothing, and takes a memory that another run has stored beside the same
//! language model. Every worker reads it by itself.

use futures::TryStreamExt;
use mks2_dataset::memory::{self, Artefact, attach, card};
use mks2_proto::failure::Failure;
use mks2_proto::job::{Job, Stage};
use tch::{Kind, Tensor};
use tokio::runtime::Handle;
use tracing::info;

use crate::lineage::{Lineage, StageResult};
use crate::model::Weights;

/// Reads the memory that `stage` names; `before` holds the language model that it belongs to.
///
/// # Errors
/// When it is not whole, is not what the job says, or was stored beside another language model.
pub(crate) fn load(
    (job, stage): (&Job, &Stage),
    before: &Lineage,
    runtime: &Handle,
) -> Result<StageResult, Failure> {
    let artefact = runtime.block_on(attach::open(job, stage))?;
    let base = job.base_of(&stage.name).ok_or_else(|| {
        Failure::settings(
            format!("stage '{}' has no language model", stage.name),
            "none of the stages it starts from brings one",
            "name a bootstrap or pretrained stage in its `from`",
        )
    })?;
    let digest = &before.stage(&base.name)?.weights_digest;
    attach::check_base(&artefact, &base.name, digest)?;
    let weights = runtime.block_on(read(&artefact, stage))?;
    info!(
        stage = stage.name,
        memory = artefact.card.name,
        id = artefact.id,
        "memory attached"
    );
    Ok(StageResult {
        weights,
        // Of the very memory that it brings: later checkpoints name it as what they build on.
        weights_digest: artefact.id,
        encoder: None,
    })
}

async fn read(artefact: &Artefact, stage: &Stage) -> memory::Result<Weights> {
    let settings = stage.attach.clone().unwrap_or_default();
    let mut weights = Weights::new();
    for group in attach::groups(&settings) {
        let mut tensors = std::pin::pin!(artefact.tensors_of(*group));
        while let Some(tensor) = tensors.try_next().await? {
            let shape: Vec<i64> = tensor.shape.iter().map(|size| *size as i64).collect();
            let values = Tensor::from_data_size(&tensor.data, &shape, Kind::Float);
            let name = card::name_in_job(&stage.name, &tensor.name);
            weights.insert_frozen(&name, &values);
        }
    }
    Ok(weights.kept())
}
