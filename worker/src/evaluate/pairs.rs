//! Retrieval and captioning over all pairs of a corpus, with the memory in the MLP's place.

use mks2_dataset::row::{Row, render};
use mks2_proto::failure::Failure;
use mks2_proto::job::MemoryStage;
use serde::Serialize;
use tch::{Kind, Tensor};

use super::Evaluator;
use super::recall::{Recall, recall};
use crate::collectives::Collective;
use crate::model::{
    Bridge, Decoder, Memory, Pass, Read, RetrievalHeads, SecondHalves, Vision, losses,
};
use crate::objective::{Share, TokenBatch, to_floats};
use crate::pixels::to_pixels;
use crate::team::Setback;
use crate::text::TextEncoder;

/// Caption loss per token over the whole corpus.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct CaptionLoss {
    /// With the picture's soft tokens before the caption.
    pub loss: f64,
    /// The caption alone.
    pub loss_without_image: f64,
}

/// Features and losses of all pairs.
pub struct Pairs {
    /// The rows, in the order of the corpus.
    pub rows: Vec<Row>,
    /// Texts in the retrieval space, unit rows `[n, s]`.
    pub texts_ns: Tensor,
    /// Pictures in the retrieval space, unit rows `[n, s]`.
    pub images_ns: Tensor,
    /// Caption losses.
    pub caption: CaptionLoss,
}

/// The memory stage's model.
pub(super) struct Reader {
    pub(super) encoder: std::sync::Arc<TextEncoder>,
    pub(super) settings: MemoryStage,
    pub(super) decoder: Decoder,
    pub(super) vision: Vision,
    pub(super) bridge: Bridge,
    pub(super) memory: Memory,
    heads: RetrievalHeads,
}

impl Reader {
    pub(super) fn new(evaluator: &Evaluator, stage: &str) -> Result<Self, Failure> {
        let encoder = evaluator.encoder(stage)?;
        let weights = evaluator.weights(stage)?;
        let model = &evaluator.job.model;
        let settings = evaluator
            .job
            .stages
            .iter()
            .find(|other| other.name == stage);
        Ok(Self {
            settings: settings
                .and_then(|stage| stage.memory.clone())
                .unwrap_or_default(),
            decoder: Decoder::new(&model.decoder, encoder.vocab_size(), &weights)?,
            vision: Vision::new(&model.vision, &weights)?,
            bridge: Bridge::new(model, &weights)?,
            memory: Memory::new(model, stage, &weights)?,
            heads: RetrievalHeads::new(model, &weights)?,
            encoder,
        })
    }

    /// The caption of a row, as the stage was trained on it.
    pub(super) fn caption(&self, row: &Row) -> Result<String, Failure> {
        let template = self
            .settings
            .captions
            .first()
            .map_or("{caption}", String::as_str);
        Ok(render(template, row)?)
    }
}

impl Pairs {
    /// Measures all rows of `corpus` with the memory of `stage`.
    pub(super) fn measure(
        evaluator: &Evaluator,
        stage: &str,
        corpus: &str,
        collective: &mut dyn Collective,
    ) -> Result<Self, Setback> {
        let reader = Reader::new(evaluator, stage)?;
        let rows = evaluator.rows(corpus)?;
        let shares = evaluator.in_blocks(&rows, collective, |block| {
            measure_block(evaluator, &reader, block)
        })?;
        let width = i64::from(evaluator.job.model.retrieval.dim);
        let features: Vec<f32> = shares
            .iter()
            .flat_map(|share| share.features.iter().copied())
            .collect();
        let both_nf = Tensor::from_slice(&features).view([-1, 2 * width]);
        let sum = |at: usize| shares.iter().map(|share| share.counts[at]).sum::<f64>();
        let caption = CaptionLoss {
            loss: sum(0) / sum(2),
            loss_without_image: sum(1) / sum(2),
        };
        let texts_ns = both_nf.narrow(1, 0, width).contiguous();
        let images_ns = both_nf.narrow(1, width, width).contiguous();
        Ok(Self {
            rows,
            texts_ns,
            images_ns,
            caption,
        })
    }

    /// Recall of every text among all pictures.
    pub fn recall(&self) -> Recall {
        recall(&self.texts_ns, &self.images_ns)
    }
}

fn measure_block(evaluator: &Evaluator, reader: &Reader, rows: &[Row]) -> Result<Share, Failure> {
    let device = evaluator.device;
    let pictures = rows
        .iter()
        .map(|row| evaluator.picture(row))
        .collect::<Result<Vec<_>, _>>()?;
    let pictures: Vec<&[u8]> = pictures.iter().map(Vec::as_slice).collect();
    let side = evaluator.job.model.vision.image_size as usize;
    let seen = reader.vision.forward(&to_pixels(&pictures, side, device))?;

    let query = evaluator
        .settings
        .retrieval_text
        .as_deref()
        .unwrap_or("{caption}");
    let sentences = |of: &dyn Fn(&Row) -> Result<String, Failure>| {
        let rows = rows.iter().map(|row| reader.encoder.sentence(&of(row)?));
        TokenBatch::new(&rows.collect::<Result<Vec<_>, Failure>>()?, device)
    };
    let queries = sentences(&|row| Ok(render(query, row)?))?;
    let halves = SecondHalves::Memory(&reader.memory);
    let pass = Pass::new(halves).reading(Read::At(&queries.end_b1));
    let states = reader
        .decoder
        .forward(&reader.decoder.embed(&queries.ids_bt)?, &pass)?;
    let head = reader.heads.last();
    let texts_bs = head.text(&states.last_bnd.squeeze_dim(1));
    let features = to_floats(&Tensor::cat(&[texts_bs, head.images(&seen.global_be)], 1))?;

    let captions = sentences(&|row| reader.caption(row))?;
    let text_btd = reader.decoder.embed(&captions.ids_bt)?;
    let soft_bpd = reader.bridge.forward(&seen.patches_bpv)?;
    let with_btd = Tensor::cat(&[&soft_bpd, &text_btd], 1);
    let loss = |h_btd: &Tensor, before: i64| -> Result<f64, Failure> {
        let positions_bn = &captions.positions_bn + before;
        let states = reader
            .decoder
            .forward(h_btd, &Pass::new(halves).reading(Read::At(&positions_bn)))?;
        let (sum, _) = losses::next_token(&reader.decoder, &states.last_bnd, &captions.labels_bn)?;
        Ok(sum.to_kind(Kind::Double).double_value(&[]))
    };
    let counts = vec![
        loss(&with_btd, soft_bpd.size()[1])?,
        loss(&text_btd, 0)?,
        captions.targets as f64,
    ];
    Ok(Share { counts, features })
}
