//! What a stage trains for: the losses of one step over the global batch, lane by lane.
//!
//! A step has two halves, since a contrastive loss looks at the whole global batch:
//!
//! ```text
//! lane     samples of one lane -> its inputs, and its Share of the global batch
//!          (counts of tokens, features that other lanes compare themselves with)
//! global   all lanes' shares, in lane order, the same on every worker
//! loss     inputs of one lane + global -> a scalar whose gradients, summed over lanes, are
//!          those of the loss over the global batch (P5)
//! ```
//!
//! An objective is single-device text: it knows lanes, never ranks.

pub mod bootstrap;
pub mod experts;
pub mod kept;
pub mod memory;

use mks2_dataset::loader::Sample;
use mks2_proto::failure::Failure;
use tch::{Device, Kind, Tensor};

use crate::model::{Tape, losses};
use crate::text::{Draw, TextEncoder, Tokens};

/// What one lane tells all others.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Share {
    /// Numbers that are summed over lanes.
    pub counts: Vec<f64>,
    /// Features of the lane's samples, row-major; the same length for every lane.
    pub features: Vec<f32>,
}

/// The loss of one lane.
pub struct LaneLoss<'m> {
    /// Scalar to take gradients of.
    pub loss: Tensor,
    /// What takes them.
    pub tape: Tape<'m>,
    /// Sums that become the step's [`Losses`] once added over lanes.
    pub sums: Vec<f64>,
}

impl LaneLoss<'_> {
    /// The loss's gradients at `leaves`; undefined where a leaf has no part in it.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn gradients(self, leaves: &[Tensor]) -> Result<Vec<Tensor>, Failure> {
        let gradients = self.tape.gradients(&self.loss, leaves);
        gradients.map_err(|e| Failure::internal("the backward pass failed", e.to_string()))
    }
}

/// The losses of a step over its global batch, as in `metrics.jsonl`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Losses {
    /// The sum that was trained on.
    pub total: f64,
    /// Captioning, per token.
    pub caption: Option<f64>,
    /// Text-to-image retrieval, per sample.
    pub retrieval: Option<f64>,
    /// Next token of a bootstrap text or of an answer, per token.
    pub language: Option<f64>,
    /// The bootstrap CLIP's symmetric loss, per sample.
    pub contrastive: Option<f64>,
    /// Tokens with a loss in this step.
    pub tokens: u64,
}

/// Where in a stage an input belongs.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Seed of the job.
    pub seed: u64,
    /// Step within the stage, from 0.
    pub step: u64,
}

impl Place {
    /// The source of chance of one row for one purpose.
    pub fn draw(self, row: u64, purpose: u64) -> Draw {
        Draw {
            seed: self.seed,
            step: self.step,
            row,
            purpose,
        }
    }
}

/// The losses of a stage; see the module's header.
pub trait Objective {
    /// Inputs of one lane, kept from `lane` to `loss`.
    type Lane;
    /// What is computed once from all lanes' shares.
    type Global;

    /// Inputs and share of one lane.
    ///
    /// # Errors
    /// When a row lacks a field that a template names, or a picture that the stage needs.
    fn lane(&self, place: Place, samples: &[Sample]) -> Result<(Self::Lane, Share), Failure>;

    /// What all lanes' losses need; `shares` are in lane order.
    ///
    /// # Errors
    /// When libtorch refuses.
    fn global(&self, shares: &[Share]) -> Result<Self::Global, Failure>;

    /// The loss of lane number `lane`.
    ///
    /// # Errors
    /// When libtorch refuses.
    fn loss(
        &self,
        lane: u32,
        inputs: &Self::Lane,
        global: &Self::Global,
    ) -> Result<LaneLoss<'_>, Failure>;

    /// The losses of the step from the lanes' sums, added in lane order.
    fn losses(&self, sums: &[f64], global: &Self::Global) -> Losses;

    /// The members' copies of all weights were alike just now.
    fn compared(&self) {}
}

/// Token rows of a lane as tensors.
pub struct TokenBatch {
    /// `[b, t]`, int64.
    pub ids_bt: Tensor,
    /// `[b, n]`, int64: positions with a loss, filled up with 0.
    pub positions_bn: Tensor,
    /// `[b, n]`, int64: what each of these predicts; ignored where filled up.
    pub labels_bn: Tensor,
    /// `[b, 1]`, int64: position of the end token.
    pub end_b1: Tensor,
    /// Positions with a loss.
    pub targets: usize,
}

impl TokenBatch {
    /// Stacks rows of equal length on `device`.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn new(rows: &[Tokens], device: Device) -> Result<Self, Failure> {
        let stack = |of: fn(&Tokens) -> &[i64]| {
            let values: Vec<i64> = rows
                .iter()
                .flat_map(|row| of(row).iter().copied())
                .collect();
            Tensor::from_slice(&values)
                .view([rows.len() as i64, -1])
                .to_device(device)
        };
        let ends: Vec<i64> = rows.iter().map(|row| row.end as i64).collect();
        let labelled = losses::labelled(&stack(|row| &row.labels))?;
        Ok(Self {
            ids_bt: stack(|row| &row.ids),
            positions_bn: labelled.positions_bn,
            labels_bn: labelled.labels_bn,
            end_b1: Tensor::from_slice(&ends).unsqueeze(1).to_device(device),
            targets: rows.iter().map(Tokens::targets).sum(),
        })
    }

    /// One text per sample, chosen from `templates` by chance.
    pub fn of_texts(
        samples: &[Sample],
        templates: &[String],
        encoder: &TextEncoder,
        place: Place,
        purpose: u64,
        device: Device,
    ) -> Result<Self, Failure> {
        let rows = samples.iter().map(|sample| {
            let draw = place.draw(sample.row.index, purpose);
            encoder.sentence(&crate::text::choose_text(templates, &sample.row, draw)?)
        });
        Self::new(&rows.collect::<Result<Vec<_>, Failure>>()?, device)
    }
}

/// The pictures of a lane's samples.
pub(crate) fn pictures(samples: &[Sample]) -> Result<Vec<&[u8]>, Failure> {
    samples
        .iter()
        .map(|sample| {
            sample.pixels.as_deref().ok_or_else(|| {
                Failure::data(
                    format!(
                        "row {} ({}) has no picture",
                        sample.row.index, sample.row.key
                    ),
                    "this stage trains on pictures",
                    "leave the corpus with text-only rows out of the stage's [[stage.data]]",
                )
            })
        })
        .collect()
}

/// The values of a tensor, in row-major order.
pub(crate) fn to_floats(tensor: &Tensor) -> Result<Vec<f32>, Failure> {
    let flat = tensor
        .detach()
        .to_kind(Kind::Float)
        .to_device(Device::Cpu)
        .contiguous()
        .view([-1]);
    Vec::<f32>::try_from(&flat)
        .map_err(|e| Failure::internal("features could not be read from libtorch", e.to_string()))
}

/// All lanes' features as one matrix `[lanes * b, width]`.
pub(crate) fn gathered(shares: &[Share], width: i64, device: Device) -> Tensor {
    let values: Vec<f32> = shares
        .iter()
        .flat_map(|share| share.features.iter().copied())
        .collect();
    Tensor::from_slice(&values)
        .view([-1, width])
        .to_device(device)
}

/// Sum over lanes, in lane order, of one count.
pub(crate) fn total(shares: &[Share], count: usize) -> f64 {
    shares.iter().map(|share| share.counts[count]).sum()
}
