//! A stage before its first step: what it trains and reads, from initial values or a checkpoint;
//! and what is done to its weights after the last one.

use std::sync::Arc;

use mks2_dataset::reader::Corpus;
use mks2_proto::failure::Failure;
use mks2_proto::job::{MemoryStage, Stage, StageKind};
use mks2_proto::params::{ParamSpec, trained_by};
use mks2_proto::v1::{CheckpointRef, Phase};
use tch::{Device, Tensor};
use tracing::{info, warn};

use super::Run;
use crate::checkpoint::{Checkpoint, Expected, Facts, Kind, Table};
use crate::device::made_with;
use crate::evaluate::picture_of;
use crate::exact::Reducer;
use crate::flat::{Buffer, FlatLayout, FlatState};
use crate::lineage::{self, StageResult};
use crate::model::{Vision, VisionFeatures, Weights};
use crate::objective::kept::{Keep, KeptFeatures};
use crate::pixels::to_pixels;
use crate::replica::Replica;
use crate::saver::{BUFFERS, REDUCER, TOKENIZER, table_of};
use crate::text::TextEncoder;
use crate::train::Progress;
use crate::{pretrained, vocabulary, whiten};

/// Pictures of each corpus that the strength of the features' directions is measured on.
const WHITEN_ROWS: u64 = 2048;
/// The weight that makes the global image feature.
const PROJECTION: &str = "visual_projection.weight";

/// What a training stage needs beside its objective.
pub(super) struct Prepared {
    pub(super) encoder: Arc<TextEncoder>,
    pub(super) table: Arc<Table>,
    pub(super) replica: Replica,
    pub(super) weights: Weights,
    pub(super) leaves: Vec<Tensor>,
}

impl Run {
    /// Loads what a finished stage has left.
    pub(super) fn recall(&mut self, stage: &Stage, from: &CheckpointRef) -> Result<(), Failure> {
        let kinds = [Kind::Weights, Kind::Tokenizer];
        let checkpoint = self.read(stage, from, &kinds)?;
        info!(
            stage = stage.name,
            step = from.step as i64,
            "stage was finished before"
        );
        let about = (&self.job, stage);
        let result = StageResult::of(&checkpoint, about, &self.lineage)?;
        self.lineage.insert(&stage.name, result);
        Ok(())
    }

    /// Where a `memory` stage keeps features of pictures, if it does.
    pub(super) fn kept_features(&self, stage: &Stage) -> Result<Option<KeptFeatures>, Failure> {
        let keeps = |settings: &MemoryStage| settings.keep_features;
        if !stage.memory.as_ref().is_some_and(keeps) {
            return Ok(None);
        }
        let (_, corpora) = self.sources().plan(stage)?;
        let manifests = corpora.iter().map(Corpus::manifest);
        let mut hasher = blake3::Hasher::new();
        for part in [
            &self.run_url,
            &self.session.welcome().run_id,
            &self.config_digest,
            &stage.name,
            &made_with(self.device),
            &self.bases(stage)?.to_hex().to_string(),
        ] {
            hasher.update(part.as_bytes()).update(b"\n");
        }
        for manifest in manifests.clone() {
            hasher.update(manifest.digest().as_bytes()).update(b"\n");
        }
        let keep = Keep {
            key: hasher.finalize(),
            width: VisionFeatures::numbers(&self.job.model.vision),
            rows: manifests.map(|manifest| manifest.rows).collect(),
            is_cautious: self.job.audit.every_steps > 0,
        };
        KeptFeatures::open(&keep).map(Some).or_else(|error| {
            warn!(
                %error,
                "features of pictures cannot be kept, and are computed again for each step"
            );
            Ok(None)
        })
    }

    /// Reads the models of a `pretrained` stage or the memory of an `attach` stage, unless they are there.
    pub(super) fn take_brought(&mut self, stage: &Stage) -> Result<(), Failure> {
        if self.lineage.stage(&stage.name).is_ok() {
            return Ok(());
        }
        self.session.set_phase(Phase::Starting, 0);
        let result = self
            .lineage
            .brought((&self.job, stage), self.device, &self.runtime)?;
        self.lineage.insert(&stage.name, result);
        Ok(())
    }

    pub(super) fn read(
        &self,
        stage: &Stage,
        from: &CheckpointRef,
        kinds: &[Kind],
    ) -> Result<Checkpoint, Failure> {
        let expected = Expected {
            model: None,
            seed: Some(self.job.seed),
            corpora: Some(self.corpus_digests(stage)),
            bases: Some(self.lineage.digests(&stage.from)?),
        };
        let digest = Some(from.manifest_digest.as_str()).filter(|digest| !digest.is_empty());
        let store = self.saver.store();
        Ok(self
            .runtime
            .block_on(store.load(&from.manifest_path, digest, &expected, kinds))?)
    }

    /// Buffers and leaves of a stage, from a checkpoint or from initial values; empty ones for a
    /// newcomer.
    pub(super) fn layout(
        &self,
        stage: &Stage,
        from: Option<&Checkpoint>,
    ) -> Result<Prepared, Failure> {
        let encoder = self.encoder(stage, from)?;
        let specs = trained_by(&self.job.model, encoder.vocab_size(), stage);
        let layout = Arc::new(FlatLayout::new(&specs)?);
        let table = table_of(&layout)?;
        let state = FlatState::new(Arc::clone(&layout), self.device)?;
        let (reduction, lanes) = (self.job.reduction, self.job.lanes);
        let reducer = Reducer::new(Arc::clone(&layout), reduction, lanes, self.device)?;
        let mut replica = Replica::new(state, reducer);
        match from {
            // A newcomer gets the state from the others.
            None if self.invitation.is_some() => {}
            None => self.initialise(stage, &specs, &mut replica.state)?,
            Some(checkpoint) => {
                fill(&mut replica.state, checkpoint, &table)?;
                if let Some(exponents) = checkpoint.tensor(Kind::State, REDUCER) {
                    replica.reducer.load_state(&exponents.data)?;
                }
                replica.progress = progress_of(&checkpoint.manifest.facts);
            }
        }
        let weights = self.lineage.weights(&self.base(stage)?)?;
        let mut weights = weights.computing_in((self.job.precision, self.device));
        let leaves = lineage::leaves(&mut weights, &replica.state)?;
        Ok(Prepared {
            encoder,
            table,
            replica,
            weights,
            leaves,
        })
    }

    /// Initial values of what a stage trains.
    fn initialise(
        &self,
        stage: &Stage,
        specs: &[ParamSpec],
        state: &mut FlatState,
    ) -> Result<(), Failure> {
        for spec in specs {
            let values = spec.initial_values(self.job.seed);
            state.load(Buffer::Weights, &spec.name, &values)?;
        }
        let Some(settings) = &stage.experts else {
            return Ok(());
        };
        for (name, values) in pretrained::adapter(&self.job.model, settings, &self.runtime)? {
            state.load(Buffer::Weights, &name, &values)?;
        }
        Ok(())
    }

    /// Evens out the directions of the image features that a bootstrap stage has trained, if the
    /// stage asks for it. Every worker computes the same by itself, after the stage's last step.
    pub(super) fn even_out(&self, stage: &Stage, state: &FlatState) -> Result<(), Failure> {
        let power = stage.bootstrap.as_ref().map_or(0.0, |b| b.whiten);
        if stage.kind != StageKind::Bootstrap || power <= 0.0 {
            return Ok(());
        }
        let weights = lineage::frozen(state)?;
        let vision = Vision::new(&self.job.model.vision, &weights)?;
        let side = self.job.model.vision.image_size;
        let mut features = Vec::new();
        self.sources().first_rows(stage, WHITEN_ROWS, |rows| {
            let pictures = rows.iter().map(|row| picture_of(row, side));
            let pictures = pictures.collect::<Result<Vec<_>, _>>()?;
            let pictures: Vec<&[u8]> = pictures.iter().map(Vec::as_slice).collect();
            let pixels = to_pixels(&pictures, side as usize, self.device);
            features.push(tch::no_grad(|| vision.forward(&pixels))?.global_be);
            Ok(())
        })?;
        let features_ne = Tensor::cat(&features, 0).to_device(Device::Cpu);
        let projection_ev = weights.get(PROJECTION)?.to_device(Device::Cpu);
        let evened = whiten::evened(&projection_ev, &features_ne, power)?;
        let evened_ev = Tensor::from_slice(&evened).view_as(&projection_ev);
        state.wait_for_readers();
        tch::no_grad(|| {
            state
                .view(PROJECTION)
                .map(|mut view| view.copy_(&evened_ev))
        })?;
        Ok(())
    }

    /// The tokenizer of a stage that trains: a bootstrap stage makes it, the others inherit it.
    fn encoder(
        &self,
        stage: &Stage,
        from: Option<&Checkpoint>,
    ) -> Result<Arc<TextEncoder>, Failure> {
        if stage.kind != StageKind::Bootstrap {
            return self.lineage.encoder(&self.base(stage)?);
        }
        if let Some(file) =
            from.and_then(|checkpoint| checkpoint.tensor(Kind::Tokenizer, TOKENIZER))
        {
            let max_tokens = self.job.model.decoder.max_text_tokens as usize;
            return Ok(Arc::new(TextEncoder::from_json(&file.data, max_tokens)?));
        }
        let encoder = vocabulary::tokenizer(self.sources(), stage, &self.run_url)?;
        Ok(Arc::new(encoder))
    }
}

fn fill(state: &mut FlatState, checkpoint: &Checkpoint, table: &Table) -> Result<(), Failure> {
    let mut flat = vec![0f32; state.layout().total()];
    for (buffer, kind) in BUFFERS {
        if checkpoint.tensors(kind).next().is_none() {
            continue;
        }
        checkpoint.fill(kind, table, &mut flat)?;
        state.load_all(buffer, &flat)?;
    }
    Ok(())
}

fn progress_of(facts: &Facts) -> Progress {
    Progress {
        step: facts.stage_step,
        samples: facts.samples,
        tokens: facts.tokens,
        seconds: facts.seconds,
        loss: facts.loss,
    }
}
