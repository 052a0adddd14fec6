//! What finished stages have left: their weights, digests and tokenizer.

use std::collections::BTreeMap;
use std::sync::Arc;

use mks2_proto::failure::Failure;
use mks2_proto::job::{Job, Stage, StageKind};
use mks2_proto::params::trained_by;
use tch::{Device, Tensor};
use tokio::runtime::Handle;

use crate::checkpoint::{Checkpoint, Kind};
use crate::evaluate::ancestry;
use crate::flat::{FlatLayout, FlatState};
use crate::model::Weights;
use crate::saver::{TOKENIZER, table_of};
use crate::text::TextEncoder;
use crate::{attached, pretrained};

/// The weights of `state`, frozen; they share its memory.
pub(crate) fn frozen(state: &FlatState) -> Result<Weights, Failure> {
    let mut weights = Weights::new();
    for span in state.layout().spans() {
        weights.insert_frozen(&span.name, &state.view(&span.name)?);
    }
    Ok(weights)
}

/// Adds the weights of `state` to be trained, sharing its memory; gives them as leaves, in the order
/// of the layout.
pub(crate) fn leaves(weights: &mut Weights, state: &FlatState) -> Result<Vec<Tensor>, Failure> {
    let spans = state.layout().spans();
    let mut leaves = Vec::with_capacity(spans.len());
    for span in spans {
        weights.insert_trained(&span.name, &state.view(&span.name)?);
        leaves.push(weights.get(&span.name)?);
    }
    Ok(leaves)
}

/// The result of one training stage.
#[derive(Clone)]
pub struct StageResult {
    /// What it trained, frozen. Published models are where they are computed from, in the job's precision,
    /// since all that follows reads them; what else a stage leaves is kept on the host in fp32.
    pub weights: Weights,
    /// blake3 of these weights in name order; of pretrained ones see [`pretrained`](crate::pretrained), of
    /// an attached memory its id.
    pub weights_digest: String,
    /// The tokenizer that it brings.
    pub encoder: Option<Arc<TextEncoder>>,
}

impl StageResult {
    /// What a stage has left, from its checkpoint; `before` holds the stages that it builds on.
    ///
    /// # Errors
    /// When the checkpoint is of another model than the job's.
    pub(crate) fn of(
        checkpoint: &Checkpoint,
        (job, stage): (&Job, &Stage),
        before: &Lineage,
    ) -> Result<Self, Failure> {
        let max_tokens = job.model.decoder.max_text_tokens as usize;
        let tokenizer = checkpoint.tensor(Kind::Tokenizer, TOKENIZER);
        let encoder = tokenizer.map(|file| TextEncoder::from_json(&file.data, max_tokens));
        let encoder = encoder.transpose()?.map(Arc::new);
        let vocab_size = match &encoder {
            Some(encoder) => encoder.vocab_size(),
            None => {
                let mut names = ancestry(job, &stage.name)?;
                names.pop();
                before.encoder(&names)?.vocab_size()
            }
        };
        let specs = trained_by(&job.model, vocab_size, stage);
        let table = table_of(&FlatLayout::new(&specs)?)?;
        checkpoint.check_model(Kind::Weights, &table)?;
        let mut weights = Weights::new();
        for (name, tensor) in checkpoint.tensors(Kind::Weights) {
            let shape: Vec<i64> = tensor.shape.iter().map(|size| *size as i64).collect();
            let values = Tensor::from_data_size(&tensor.data, &shape, tch::Kind::Float);
            weights.insert_frozen(name, &values);
        }
        Ok(Self {
            weights: weights.kept(),
            weights_digest: checkpoint.manifest.weights_digest.clone(),
            encoder,
        })
    }
}

/// Results of stages by name.
#[derive(Default)]
pub struct Lineage {
    stages: BTreeMap<String, StageResult>,
}

impl Lineage {
    /// Keeps the result of a stage.
    pub fn insert(&mut self, stage: &str, result: StageResult) {
        self.stages.insert(stage.to_owned(), result);
    }

    /// What a stage brings from elsewhere, to stand behind these: published models, or a memory.
    ///
    /// # Errors
    /// When it is not whole, not what the job says, or belongs to other models than those before it.
    pub(crate) fn brought(
        &self,
        (job, stage): (&Job, &Stage),
        device: Device,
        runtime: &Handle,
    ) -> Result<StageResult, Failure> {
        match stage.kind {
            StageKind::Attach => attached::load((job, stage), self, runtime),
            _ => {
                let models = stage.pretrained.clone().unwrap_or_default();
                pretrained::load(job, &models, device, runtime)
            }
        }
    }

    /// The result of one stage.
    ///
    /// # Errors
    /// When the stage has not run.
    pub fn stage(&self, name: &str) -> Result<&StageResult, Failure> {
        self.stages.get(name).ok_or_else(|| {
            Failure::settings(
                format!("stage '{name}' has left no result"),
                "a stage can only start from one that stands before it in the job file",
                "put the stages into the order in which they build on each other",
            )
        })
    }

    /// All weights that a stage which starts `from` these stages reads, where they are kept; later ones win.
    ///
    /// # Errors
    /// When one of them has not run.
    pub fn weights(&self, from: &[String]) -> Result<Weights, Failure> {
        let mut all = Weights::new();
        for name in from {
            all.extend(self.stage(name)?.weights.clone());
        }
        Ok(all)
    }

    /// Digests of the stages in `from`, by name.
    ///
    /// # Errors
    /// When one of them has not run.
    pub fn digests(&self, from: &[String]) -> Result<BTreeMap<String, String>, Failure> {
        from.iter()
            .map(|name| Ok((name.clone(), self.stage(name)?.weights_digest.clone())))
            .collect()
    }

    /// The tokenizer of the stages in `from`.
    ///
    /// # Errors
    /// When none of them brings one.
    pub fn encoder(&self, from: &[String]) -> Result<Arc<TextEncoder>, Failure> {
        for name in from {
            if let Some(encoder) = &self.stage(name)?.encoder {
                return Ok(Arc::clone(encoder));
            }
        }
        Err(Failure::settings(
            "a stage has no tokenizer",
            format!(
                "none of the stages it starts from ({}) brings one",
                from.join(", ")
            ),
            "name a bootstrap or pretrained stage in its `from`",
        ))
    }

    /// blake3 of the weights of several stages together, in name order, as fp32 little endian:
    /// one digest for a whole model.
    ///
    /// # Errors
    /// When a stage has not run or a weight can not be read.
    pub fn digest(&self, stages: &[String]) -> Result<String, Failure> {
        let weights = self.weights(stages)?;
        let mut hasher = blake3::Hasher::new();
        for name in weights.names() {
            let tensor = weights.get(name)?.to_device(Device::Cpu);
            for value in crate::objective::to_floats(&tensor)? {
                hasher.update(&value.to_le_bytes());
            }
        }
        Ok(hasher.finalize().to_hex().to_string())
    }
}
