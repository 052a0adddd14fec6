//! A start without pretrained weights: a small language model on the corpus' texts and a small
//! CLIP on its pairs, both from scratch, in one stage.
//!
//! CLIP's loss compares every text with every picture of the global batch, and both sides are
//! trained. Each lane's features are therefore computed twice (Gao et al. 2021, "Scaling Deep
//! Contrastive Learning Batch Size under Memory Limited Setup"): once without a graph, to be
//! shared; then again with one, to carry back the gradient that the global loss has at them.

use mks2_dataset::loader::Sample;
use mks2_proto::failure::Failure;
use mks2_proto::job::{Bootstrap, Job, Stage};
use tch::{Device, Kind, Tensor, no_grad};

use super::{
    LaneLoss, Losses, Objective, Place, Share, TokenBatch, gathered, pictures, to_floats, total,
};
use crate::model::{Decoder, Pass, Read, SecondHalves, TextTower, Vision, Weights, losses};
use crate::pixels::{shifted, to_pixels};
use crate::text::TextEncoder;

const LANGUAGE: u64 = 1;
const CLIP: u64 = 2;
const SHIFT: u64 = 3;

/// The losses of a `bootstrap` stage.
pub struct BootstrapObjective<'a> {
    settings: Bootstrap,
    encoder: &'a TextEncoder,
    decoder: Decoder,
    vision: Vision,
    tower: TextTower,
    side: usize,
    feature_width: i64,
    device: Device,
}

/// Inputs of one lane.
pub struct Lane {
    texts: TokenBatch,
    names: TokenBatch,
    pixels_bcyx: Tensor,
}

/// What all lanes share: the global contrastive loss and its gradients.
pub struct Global {
    tokens: f64,
    contrastive: f64,
    grad_images_me: Tensor,
    grad_texts_me: Tensor,
    grad_logit_scale: Tensor,
}

impl<'a> BootstrapObjective<'a> {
    /// The objective of `stage`, over `weights` that hold what it trains.
    pub fn new(
        job: &Job,
        stage: &Stage,
        encoder: &'a TextEncoder,
        weights: &Weights,
        device: Device,
    ) -> Result<Self, Failure> {
        Ok(Self {
            settings: stage.bootstrap.clone().unwrap_or_default(),
            encoder,
            decoder: Decoder::new(&job.model.decoder, encoder.vocab_size(), weights)?,
            vision: Vision::new(&job.model.vision, weights)?,
            tower: TextTower::new(&job.model, encoder.vocab_size(), weights)?,
            side: job.model.vision.image_size as usize,
            feature_width: i64::from(job.model.vision.projection_dim),
            device,
        })
    }

    /// Image and text features of a lane, both `[b, e]`.
    fn features(&self, lane: &Lane) -> Result<(Tensor, Tensor), Failure> {
        let images_be = self.vision.forward(&lane.pixels_bcyx)?.global_be;
        let texts_be = self
            .tower
            .forward(&lane.names.ids_bt, &lane.names.end_b1.squeeze_dim(1))?;
        Ok((images_be, texts_be))
    }

    fn pixels(&self, place: Place, samples: &[Sample]) -> Result<Tensor, Failure> {
        let pictures = pictures(samples)?;
        let moved: Vec<Vec<u8>> = pictures
            .iter()
            .zip(samples)
            .map(|(picture, sample)| {
                shifted(
                    picture,
                    self.side,
                    self.settings.shift,
                    place.draw(sample.row.index, SHIFT),
                )
            })
            .collect();
        let moved: Vec<&[u8]> = moved.iter().map(Vec::as_slice).collect();
        Ok(to_pixels(&moved, self.side, self.device))
    }
}

impl Objective for BootstrapObjective<'_> {
    type Lane = Lane;
    type Global = Global;

    fn lane(&self, place: Place, samples: &[Sample]) -> Result<(Lane, Share), Failure> {
        let texts = |templates, purpose| {
            TokenBatch::of_texts(
                samples,
                templates,
                self.encoder,
                place,
                purpose,
                self.device,
            )
        };
        let lane = Lane {
            texts: texts(&self.settings.texts, LANGUAGE)?,
            names: texts(&self.settings.clip_texts, CLIP)?,
            pixels_bcyx: self.pixels(place, samples)?,
        };
        let (images_be, texts_be) = no_grad(|| self.features(&lane))?;
        let features = to_floats(&Tensor::cat(&[images_be, texts_be], 1))?;
        let share = Share {
            counts: vec![lane.texts.targets as f64],
            features,
        };
        Ok((lane, share))
    }

    fn global(&self, shares: &[Share]) -> Result<Global, Failure> {
        let both_mf = gathered(shares, 2 * self.feature_width, self.device);
        let (images_me, texts_me) = (
            both_mf.narrow(1, 0, self.feature_width),
            both_mf.narrow(1, self.feature_width, self.feature_width),
        );
        let clip = losses::clip(&texts_me, &images_me, self.tower.logit_scale());
        Ok(Global {
            tokens: total(shares, 0),
            contrastive: clip.loss.double_value(&[]),
            grad_images_me: clip.grad_images_me,
            grad_texts_me: clip.grad_text_me,
            grad_logit_scale: clip.grad_logit_scale,
        })
    }

    fn loss(&self, number: u32, lane: &Lane, global: &Global) -> Result<LaneLoss, Failure> {
        let pass = Pass::new(SecondHalves::Mlp).reading(Read::At(&lane.texts.positions_bn));
        let states = self
            .decoder
            .forward(&self.decoder.embed(&lane.texts.ids_bt)?, &pass)?;
        let (language, _) =
            losses::next_token(&self.decoder, &states.last_bnd, &lane.texts.labels_bn)?;
        let (images_be, texts_be) = self.features(lane)?;
        let rows = images_be.size()[0];
        let own = |grad: &Tensor| grad.narrow(0, i64::from(number) * rows, rows);
        let mut carried = (images_be * own(&global.grad_images_me)).sum(Kind::Float)
            + (texts_be * own(&global.grad_texts_me)).sum(Kind::Float);
        if number == 0 {
            // One lane alone carries the gradient of what all lanes share.
            carried += self.tower.logit_scale() * &global.grad_logit_scale;
        }
        let sums = vec![language.double_value(&[])];
        Ok(LaneLoss {
            loss: language / global.tokens + carried,
            sums,
        })
    }

    fn losses(&self, sums: &[f64], global: &Global) -> Losses {
        let language = sums[0] / global.tokens;
        Losses {
            total: language + global.contrastive,
            language: Some(language),
            contrastive: Some(global.contrastive),
            tokens: global.tokens as u64,
            ..Losses::default()
        }
    }
}
