//! Stage 2, multimodal knowledge collaboration: adapters and routers learn to answer, the loss
//! being the cross-entropy of the answer's tokens.

use mks2_dataset::loader::Sample;
use mks2_dataset::row::render;
use mks2_proto::failure::Failure;
use mks2_proto::job::{self, Job, Recompute, Stage};
use tch::{Device, Kind, Tensor};

use super::{LaneLoss, Losses, Objective, Place, Share, TokenBatch, total};
use crate::eyes::Eyes;
use crate::model::{Decoder, Experts, Memory, Pass, Read, SecondHalves, Tape, Weights, losses};
use crate::text::TextEncoder;

/// The loss of an `experts` stage.
pub struct ExpertsObjective<'a> {
    settings: job::Experts,
    encoder: &'a TextEncoder,
    decoder: Decoder,
    experts: Experts,
    eyes: Option<Eyes>,
    device: Device,
    recompute: Recompute,
}

/// Inputs of one lane.
pub struct Lane {
    dialogues: TokenBatch,
    /// Soft tokens `[b, p, d]` and which rows have a picture `[b]`, in a stage with pictures.
    soft: Option<(Tensor, Vec<bool>)>,
    /// Seed of the adapters' dropout in this lane and step.
    dropout_seed: i64,
}

/// Keeps the adapters' dropout apart from other draws.
const DROPOUT: u64 = 4;

/// What all lanes share: the answers' tokens in the step.
pub struct Global {
    tokens: f64,
}

impl<'a> ExpertsObjective<'a> {
    /// The objective of `stage`, over `weights` that hold what it trains and what it reads.
    pub fn new(
        job: &Job,
        stage: &Stage,
        encoder: &'a TextEncoder,
        weights: &Weights,
        device: Device,
    ) -> Result<Self, Failure> {
        let settings = stage.experts.clone().unwrap_or_default();
        let eyes = match settings.pictures {
            true => Some(Eyes::new(&job.model, weights)?),
            false => None,
        };
        let decoder = Decoder::new(&job.model.decoder, encoder.vocab_size(), weights)?;
        let experts = experts(job, &settings, weights)?;
        Ok(Self {
            settings,
            encoder,
            decoder,
            experts,
            eyes,
            device,
            recompute: job.recompute,
        })
    }
}

/// The mixture of an `experts` stage over `weights`, its memories shuffled where that is asked for.
///
/// # Errors
/// If a weight is missing or has another shape.
pub fn experts(job: &Job, settings: &job::Experts, weights: &Weights) -> Result<Experts, Failure> {
    let memories = settings.memories.iter().map(|name| {
        let memory = Memory::new(&job.model, name, weights)?;
        Ok(if settings.shuffle_memory {
            memory.shuffled(job.seed, weights)
        } else {
            memory
        })
    });
    let memories = memories.collect::<Result<Vec<_>, Failure>>()?;
    Ok(Experts::new(&job.model, settings, &memories, weights)?)
}

/// Soft tokens of every sample; those of a sample without picture are computed from an empty one and
/// masked later, so that shapes do not depend on the data.
fn look(eyes: &Eyes, samples: &[Sample], device: Device) -> Result<(Tensor, Vec<bool>), Failure> {
    let side = eyes.side() as usize;
    let blank = vec![255u8; 3 * side * side];
    let pictures = samples.iter().map(|sample| sample.pixels.as_deref());
    let seen = pictures.clone().map(|picture| picture.is_some());
    let seen = seen.collect();
    let pictures: Vec<&[u8]> = pictures.map(|picture| picture.unwrap_or(&blank)).collect();
    Ok((eyes.look(&pictures, device)?, seen))
}

/// `[b, p + t]`, true where a key is real: image tokens of rows without picture are not.
fn real_keys(seen: &[bool], image_tokens: i64, text_tokens: i64, device: Device) -> Tensor {
    let rows: Vec<Tensor> = seen
        .iter()
        .map(|&seen| {
            let image = Tensor::full([image_tokens], i64::from(seen), (Kind::Int64, device));
            let text = Tensor::ones([text_tokens], (Kind::Int64, device));
            Tensor::cat(&[image, text], 0)
        })
        .collect();
    Tensor::stack(&rows, 0).to_kind(Kind::Bool)
}

impl Objective for ExpertsObjective<'_> {
    type Lane = Lane;
    type Global = Global;

    fn lane(&self, place: Place, samples: &[Sample]) -> Result<(Lane, Share), Failure> {
        let rows = samples.iter().map(|sample| {
            let question = render(&self.settings.question, &sample.row)?;
            let answer = render(&self.settings.answer, &sample.row)?;
            self.encoder
                .dialogue(&question, &answer, self.settings.answer_after_end)
        });
        let rows = rows.collect::<Result<Vec<_>, Failure>>()?;
        let dialogues = TokenBatch::new(&rows, self.device)?;
        let soft = self
            .eyes
            .as_ref()
            .map(|eyes| look(eyes, samples, self.device))
            .transpose()?;
        let share = Share {
            counts: vec![dialogues.targets as f64],
            features: Vec::new(),
        };
        let first_row = samples.first().map_or(0, |sample| sample.row.index);
        let dropout_seed = place.draw(first_row, DROPOUT).below(i64::MAX as u64) as i64;
        Ok((
            Lane {
                dialogues,
                soft,
                dropout_seed,
            },
            share,
        ))
    }

    fn global(&self, shares: &[Share]) -> Result<Global, Failure> {
        Ok(Global {
            tokens: total(shares, 0),
        })
    }

    fn loss(&self, _: u32, lane: &Lane, global: &Global) -> Result<LaneLoss<'_>, Failure> {
        let tape = Tape::default();
        let drops = self.settings.lora_dropout > 0.0;
        let base = Pass::new(SecondHalves::Experts(&self.experts))
            .dropping(drops.then_some(lane.dropout_seed))
            .onto((self.recompute == Recompute::Blocks).then_some(&tape));
        let text_btd = self.decoder.embed(&lane.dialogues.ids_bt)?;
        let states = match &lane.soft {
            None => {
                let pass = base.reading(Read::At(&lane.dialogues.positions_bn));
                self.decoder.forward(&text_btd, &pass)?
            }
            Some((soft_bpd, seen)) => {
                let (p, t) = (soft_bpd.size()[1], text_btd.size()[1]);
                let keys_bt = real_keys(seen, p, t, self.device);
                let positions_bn = &lane.dialogues.positions_bn + p;
                let pass = base.keys(&keys_bt).reading(Read::At(&positions_bn));
                self.decoder
                    .forward(&Tensor::cat(&[soft_bpd, &text_btd], 1), &pass)?
            }
        };
        let (sum, _) =
            losses::next_token(&self.decoder, &states.last_bnd, &lane.dialogues.labels_bn)?;
        Ok(LaneLoss {
            sums: vec![sum.double_value(&[])],
            loss: sum / global.tokens,
            tape,
        })
    }

    fn losses(&self, sums: &[f64], global: &Global) -> Losses {
        let loss = sums[0] / global.tokens;
        Losses {
            total: loss,
            language: Some(loss),
            tokens: global.tokens as u64,
            ..Losses::default()
        }
    }
}
