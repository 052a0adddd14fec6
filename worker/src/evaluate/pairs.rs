//! Retrieval and captioning over all pairs of a corpus, with the memory in the MLP's place.

use mks2_dataset::row::{Row, render};
use mks2_proto::failure::Failure;
use mks2_proto::job::MemoryStage;
use serde::Serialize;
use tch::{Kind, Tensor};

use super::Evaluator;
use super::recall::{Recall, recall};
use crate::collectives::Collective;
use crate::generate::Speaker;
use crate::model::{Pass, Read, losses};
use crate::objective::{Share, TokenBatch, to_floats};
use crate::team::Setback;

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

/// The memory stage's model, and how it was trained.
pub(super) struct Reader {
    pub(super) speaker: Speaker,
    settings: MemoryStage,
}

impl Reader {
    pub(super) fn new(evaluator: &Evaluator, stage: &str) -> Result<Self, Failure> {
        let settings = evaluator
            .job
            .stages
            .iter()
            .find(|other| other.name == stage);
        Ok(Self {
            settings: settings
                .and_then(|stage| stage.memory.clone())
                .unwrap_or_default(),
            speaker: evaluator.speaker(stage)?,
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
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn recall(&self) -> Result<Recall, Failure> {
        recall(&self.texts_ns, &self.images_ns)
    }
}

fn measure_block(evaluator: &Evaluator, reader: &Reader, rows: &[Row]) -> Result<Share, Failure> {
    let speaker = &reader.speaker;
    let pictures = rows
        .iter()
        .map(|row| evaluator.picture(row))
        .collect::<Result<Vec<_>, _>>()?;
    let pictures: Vec<&[u8]> = pictures.iter().map(Vec::as_slice).collect();
    let seen = speaker.eyes()?.see(&pictures, speaker.device)?;

    let query = evaluator
        .settings
        .retrieval_text
        .as_deref()
        .unwrap_or("{caption}");
    let queries = rows.iter().map(|row| render(query, row));
    let texts_bs = speaker.texts(&queries.collect::<Result<Vec<_>, _>>()?)?;
    let images_bs = speaker.head()?.images(&seen.global_be);
    let features = to_floats(&Tensor::cat(&[texts_bs, images_bs], 1))?;

    let captions = rows
        .iter()
        .map(|row| speaker.encoder.sentence(&reader.caption(row)?));
    let captions = captions.collect::<Result<Vec<_>, Failure>>()?;
    let captions = TokenBatch::new(&captions, speaker.device)?;
    let text_btd = speaker.decoder.embed(&captions.ids_bt)?;
    let soft_bpd = speaker.eyes()?.soft(&seen)?;
    let with_btd = Tensor::cat(&[&soft_bpd, &text_btd], 1);
    let loss = |h_btd: &Tensor, before: i64| -> Result<f64, Failure> {
        let positions_bn = &captions.positions_bn + before;
        let pass = Pass::new(speaker.halves()).reading(Read::At(&positions_bn));
        let states = speaker.decoder.forward(h_btd, &pass)?;
        let labels_bn = &captions.labels_bn;
        let (sum, _) = losses::next_token(&speaker.decoder, &states.last_bnd, labels_bn)?;
        Ok(sum.to_kind(Kind::Double).double_value(&[]))
    };
    let counts = vec![
        loss(&with_btd, soft_bpd.size()[1])?,
        loss(&text_btd, 0)?,
        captions.targets as f64,
    ];
    Ok(Share { counts, features })
}
