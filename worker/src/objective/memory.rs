//! Stage 1, visual information storage: `L = L_c + L_t2i` (paper, section "Visual Information
//! Storage"), trained into the modular visual memory of every block.

use mks2_dataset::loader::Sample;
use mks2_proto::failure::Failure;
use mks2_proto::job::{Job, MemoryStage, Recompute, Stage};
use tch::{Device, Kind, Tensor, no_grad};

use super::kept::KeptFeatures;
use super::{
    LaneLoss, Losses, Objective, Place, Share, TokenBatch, gathered, pictures, to_floats, total,
};
use crate::model::{
    Bridge, Decoder, Memory, Pass, Read, RetrievalHeads, SecondHalves, Tape, Vision,
    VisionFeatures, Weights, losses,
};
use crate::pixels::to_pixels;
use crate::text::TextEncoder;

const CAPTION: u64 = 1;
const RETRIEVAL: u64 = 2;

/// The losses of a `memory` stage.
pub struct MemoryObjective<'a> {
    settings: MemoryStage,
    encoder: &'a TextEncoder,
    decoder: Decoder,
    vision: Vision,
    bridge: Bridge,
    memory: Memory,
    heads: RetrievalHeads,
    side: usize,
    feature_width: i64,
    batch: f64,
    device: Device,
    recompute: Recompute,
    /// What the encoder has made of pictures, if the stage keeps it.
    kept: Option<KeptFeatures>,
}

/// Inputs of one lane.
pub struct Lane {
    captions: TokenBatch,
    queries: TokenBatch,
    /// Frozen patch features of the captioned samples, `[b, p, v]`.
    patches_bpv: Tensor,
}

/// What all lanes share.
pub struct Global {
    caption_tokens: f64,
    /// Global features of all pictures of the step, `[m, e]`, in lane order.
    images_me: Tensor,
}

impl<'a> MemoryObjective<'a> {
    /// The objective of `stage`, over `weights` that hold what it trains and what it reads. Features
    /// of pictures are computed anew for each step, unless they are [`keeping`](Self::keeping).
    pub fn new(
        job: &Job,
        stage: &Stage,
        encoder: &'a TextEncoder,
        weights: &Weights,
        device: Device,
    ) -> Result<Self, Failure> {
        Ok(Self {
            settings: stage.memory.clone().unwrap_or_default(),
            encoder,
            decoder: Decoder::new(&job.model.decoder, encoder.vocab_size(), weights)?,
            vision: Vision::new(&job.model.vision, weights)?,
            bridge: Bridge::new(&job.model, weights)?,
            memory: Memory::new(&job.model, &stage.name, weights)?,
            heads: RetrievalHeads::new(&job.model, weights)?,
            side: job.model.vision.image_size as usize,
            feature_width: i64::from(job.model.vision.projection_dim),
            batch: f64::from(stage.batch_size),
            device,
            recompute: job.recompute,
            kept: None,
        })
    }

    /// Features are looked up in `kept` from now on.
    #[must_use]
    pub fn keeping(self, kept: Option<KeptFeatures>) -> Self {
        Self { kept, ..self }
    }

    /// Features of the frozen encoder.
    fn look(&self, samples: &[Sample]) -> Result<VisionFeatures, Failure> {
        let forward = |pictures: &[&[u8]]| {
            let pixels_bcyx = to_pixels(pictures, self.side, self.device);
            no_grad(|| self.vision.forward(&pixels_bcyx))
        };
        let pictures = pictures(samples)?;
        let Some(kept) = &self.kept else {
            return Ok(forward(&pictures)?);
        };
        // One picture at a time: its bits must not depend on which others were new with it.
        let mut features = Vec::new();
        for (picture, sample) in pictures.iter().zip(samples) {
            match kept.get(sample.at) {
                Some(known) => features.extend(known),
                None => {
                    let new = forward(std::slice::from_ref(picture))?;
                    let values = to_floats(&new.pack())?;
                    kept.put(sample.at, &values);
                    features.extend(values);
                }
            }
        }
        let all_bf = Tensor::from_slice(&features)
            .view([samples.len() as i64, -1])
            .to_device(self.device);
        Ok(self.vision.unpack(&all_bf))
    }

    /// How many of a lane's samples are captioned.
    fn captioned(&self, samples: usize) -> usize {
        ((self.settings.caption_share * samples as f64).round() as usize).clamp(1, samples)
    }

    /// Sum of the captions' token losses, image tokens standing before the caption.
    fn caption_sum<'m>(&'m self, lane: &Lane, tape: Option<&Tape<'m>>) -> Result<Tensor, Failure> {
        let soft_bpd = self.bridge.forward(&lane.patches_bpv)?;
        let h_btd = Tensor::cat(&[&soft_bpd, &self.decoder.embed(&lane.captions.ids_bt)?], 1);
        let positions_bn = &lane.captions.positions_bn + soft_bpd.size()[1];
        let pass = Pass::new(SecondHalves::Memory(&self.memory))
            .reading(Read::At(&positions_bn))
            .onto(tape);
        let states = self.decoder.forward(&h_btd, &pass)?;
        Ok(losses::next_token(&self.decoder, &states.last_bnd, &lane.captions.labels_bn)?.0)
    }

    /// Sum of the retrieval losses of the lane's texts against all pictures of the step.
    fn retrieval_sum<'m>(
        &'m self,
        number: u32,
        (lane, global): (&Lane, &Global),
        tape: Option<&Tape<'m>>,
    ) -> Result<Tensor, Failure> {
        let pass = Pass::new(SecondHalves::Memory(&self.memory))
            .reading(Read::At(&lane.queries.end_b1))
            .after_blocks(self.heads.extra_blocks())
            .onto(tape);
        let states = self
            .decoder
            .forward(&self.decoder.embed(&lane.queries.ids_bt)?, &pass)?;
        let first_row = i64::from(number) * lane.queries.ids_bt.size()[0];
        Ok(self
            .heads
            .loss_rows(&states, &global.images_me, first_row)?)
    }
}

impl Objective for MemoryObjective<'_> {
    type Lane = Lane;
    type Global = Global;

    fn lane(&self, place: Place, samples: &[Sample]) -> Result<(Lane, Share), Failure> {
        let texts = |samples, templates, purpose| {
            TokenBatch::of_texts(
                samples,
                templates,
                self.encoder,
                place,
                purpose,
                self.device,
            )
        };
        let captioned = self.captioned(samples.len());
        let captions = texts(&samples[..captioned], &self.settings.captions, CAPTION)?;
        let queries = texts(samples, &self.settings.retrieval_texts, RETRIEVAL)?;
        let seen = self.look(samples)?;
        let share = Share {
            counts: vec![captions.targets as f64],
            features: to_floats(&seen.global_be)?,
        };
        let patches_bpv = seen.patches_bpv.narrow(0, 0, captioned as i64);
        Ok((
            Lane {
                captions,
                queries,
                patches_bpv,
            },
            share,
        ))
    }

    fn global(&self, shares: &[Share]) -> Result<Global, Failure> {
        let images_me = gathered(shares, self.feature_width, self.device);
        Ok(Global {
            caption_tokens: total(shares, 0),
            images_me,
        })
    }

    fn loss(&self, number: u32, lane: &Lane, global: &Global) -> Result<LaneLoss<'_>, Failure> {
        let tape = Tape::default();
        let onto = (self.recompute == Recompute::Blocks).then_some(&tape);
        let caption = self.caption_sum(lane, onto)?;
        let retrieval = self.retrieval_sum(number, (lane, global), onto)?;
        let sums = vec![caption.double_value(&[]), retrieval.double_value(&[])];
        let loss = caption * (self.settings.caption_weight / global.caption_tokens)
            + retrieval * (self.settings.retrieval_weight / self.batch);
        Ok(LaneLoss {
            loss: loss.to_kind(Kind::Float),
            tape,
            sums,
        })
    }

    fn compared(&self) {
        if let Some(kept) = &self.kept {
            kept.compared();
        }
    }

    fn losses(&self, sums: &[f64], global: &Global) -> Losses {
        let (caption, retrieval) = (sums[0] / global.caption_tokens, sums[1] / self.batch);
        Losses {
            total: self.settings.caption_weight * caption
                + self.settings.retrieval_weight * retrieval,
            caption: Some(caption),
            retrieval: Some(retrieval),
            tokens: global.caption_tokens as u64,
            ..Losses::default()
        }
    }
}
