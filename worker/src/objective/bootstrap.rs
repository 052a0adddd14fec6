//! A start without pretrained weights: a small language model on the corpus' texts and a small
//! CLIP on its pairs, both from scratch, in one stage.
//!
//! A CLIP of few pairs learns what their texts have in common and little else: its image feature
//! differs in few directions. A second contrastive loss between two shifted views of each picture
//! (Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations")
//! makes it tell single pictures apart.
//!
//! CLIP's loss compares every text with every picture of the global batch, and both sides are
//! trained. Each lane's features are therefore computed twice (Gao et al. 2021, "Scaling Deep
//! Contrastive Learning Batch Size under Memory Limited Setup"): once without a graph, to be
//! shared; then again with one, to carry back the gradient that the global loss has at them.

use mks2_dataset::loader::Sample;
use mks2_proto::failure::Failure;
use mks2_proto::job::{Bootstrap, Job, Recompute, Stage};
use tch::{Device, Kind, Tensor, no_grad};

use super::{
    LaneLoss, Losses, Objective, Place, Share, TokenBatch, gathered, pictures, to_floats, total,
};
use crate::model::{Decoder, Pass, Read, SecondHalves, Tape, TextTower, Vision, Weights, losses};
use crate::pixels::{shifted, to_pixels};
use crate::text::TextEncoder;

const LANGUAGE: u64 = 1;
const CLIP: u64 = 2;
const SHIFT: u64 = 3;
/// Shifts draw twice each, so the second view's purpose leaves one number free.
const SECOND_SHIFT: u64 = 5;

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
    recompute: Recompute,
}

/// Inputs of one lane.
pub struct Lane {
    /// Texts of the language model.
    pub texts: TokenBatch,
    /// Texts of the CLIP.
    pub names: TokenBatch,
    /// Pictures as the encoder wants them.
    pub pixels_bcyx: Tensor,
    /// The same pictures, shifted otherwise; where the stage compares views.
    pub second_bcyx: Option<Tensor>,
}

/// Features of a lane: texts, pictures, and the pictures' second views where there are any.
type Features = Vec<Tensor>;

/// What all lanes share: the global contrastive losses and their gradients at the features.
pub struct Global {
    tokens: f64,
    contrastive: f64,
    views: f64,
    grads_me: Features,
    grad_logit_scale: Tensor,
}

fn no_text_tower() -> Failure {
    Failure::settings(
        "model.text_tower is missing",
        "a bootstrap stage trains a small CLIP, which has a text side",
        "add [model.text_tower]",
    )
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
        let vocab = encoder.vocab_size();
        let features = job.model.vision.projection_dim;
        let tower = job.model.text_tower.as_ref().ok_or_else(no_text_tower)?;
        Ok(Self {
            settings: stage.bootstrap.clone().unwrap_or_default(),
            encoder,
            decoder: Decoder::new(&job.model.decoder, vocab, weights)?,
            vision: Vision::new(&job.model.vision, weights)?,
            tower: TextTower::new(tower, features, vocab, weights)?,
            side: job.model.vision.image_size as usize,
            feature_width: i64::from(features),
            device,
            recompute: job.recompute,
        })
    }

    /// Features of a lane, `[b, e]` each.
    fn features(&self, lane: &Lane) -> Result<Features, Failure> {
        let ends_b = lane.names.end_b1.squeeze_dim(1);
        let mut features = vec![self.tower.forward(&lane.names.ids_bt, &ends_b)?];
        let views = std::iter::once(&lane.pixels_bcyx).chain(&lane.second_bcyx);
        for pixels_bcyx in views {
            features.push(self.vision.forward(pixels_bcyx)?.global_be);
        }
        Ok(features)
    }

    /// What all lanes must know of one.
    ///
    /// # Errors
    /// When a shape does not fit.
    pub fn share(&self, lane: &Lane) -> Result<Share, Failure> {
        let features = no_grad(|| self.features(lane))?;
        Ok(Share {
            counts: vec![lane.texts.targets as f64],
            features: to_floats(&Tensor::cat(&features, 1))?,
        })
    }

    fn has_views(&self) -> bool {
        self.settings.view_weight > 0.0
    }

    fn pixels(&self, place: Place, samples: &[Sample], purpose: u64) -> Result<Tensor, Failure> {
        let pictures = pictures(samples)?;
        let moved: Vec<Vec<u8>> = pictures
            .iter()
            .zip(samples)
            .map(|(picture, sample)| {
                shifted(
                    picture,
                    self.side,
                    self.settings.shift,
                    place.draw(sample.row.index, purpose),
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
            pixels_bcyx: self.pixels(place, samples, SHIFT)?,
            second_bcyx: match self.has_views() {
                true => Some(self.pixels(place, samples, SECOND_SHIFT)?),
                false => None,
            },
        };
        let share = self.share(&lane)?;
        Ok((lane, share))
    }

    fn global(&self, shares: &[Share]) -> Result<Global, Failure> {
        let width = self.feature_width;
        let parts = 2 + i64::from(self.has_views());
        let all_mf = gathered(shares, parts * width, self.device);
        let part = |number: i64| all_mf.narrow(1, number * width, width);
        let clip = losses::clip(&part(0), &part(1), self.tower.logit_scale());
        let mut grads_me = vec![clip.grad_text_me, clip.grad_images_me];
        let mut views = 0.0;
        if self.has_views() {
            let weight = self.settings.view_weight;
            let scale = -self.settings.view_temperature.ln();
            let scale = Tensor::full([0_i64; 0], scale, (Kind::Float, self.device));
            let pairs = losses::clip(&part(1), &part(2), &scale);
            views = weight * pairs.loss.double_value(&[]);
            grads_me[1] += pairs.grad_text_me * weight;
            grads_me.push(pairs.grad_images_me * weight);
        }
        Ok(Global {
            tokens: total(shares, 0),
            contrastive: clip.loss.double_value(&[]),
            views,
            grads_me,
            grad_logit_scale: clip.grad_logit_scale,
        })
    }

    fn loss(&self, number: u32, lane: &Lane, global: &Global) -> Result<LaneLoss<'_>, Failure> {
        let tape = Tape::default();
        let pass = Pass::new(SecondHalves::Mlp)
            .reading(Read::At(&lane.texts.positions_bn))
            .onto((self.recompute == Recompute::Blocks).then_some(&tape));
        let states = self
            .decoder
            .forward(&self.decoder.embed(&lane.texts.ids_bt)?, &pass)?;
        let (language, _) =
            losses::next_token(&self.decoder, &states.last_bnd, &lane.texts.labels_bn)?;
        let rows = lane.names.ids_bt.size()[0];
        let first_row = i64::from(number) * rows;
        let mut carried = Tensor::zeros([0_i64; 0], (Kind::Float, self.device));
        for (features_be, grad_me) in self.features(lane)?.iter().zip(&global.grads_me) {
            carried += (features_be * grad_me.narrow(0, first_row, rows)).sum(Kind::Float);
        }
        if number == 0 {
            // One lane alone carries the gradient of what all lanes share.
            carried += self.tower.logit_scale() * &global.grad_logit_scale;
        }
        let sums = vec![language.double_value(&[])];
        Ok(LaneLoss {
            loss: language / global.tokens + carried,
            tape,
            sums,
        })
    }

    fn losses(&self, sums: &[f64], global: &Global) -> Losses {
        let language = sums[0] / global.tokens;
        Losses {
            total: language + global.contrastive + global.views,
            language: Some(language),
            contrastive: Some(global.contrastive),
            tokens: global.tokens as u64,
            ..Losses::default()
        }
    }
}
