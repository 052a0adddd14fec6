//! A `pretrained` stage: it trains nothing, and takes the language model and the visual encoder from
//! where they were published. Every worker reads them by itself.

use futures::{StreamExt, TryStreamExt, stream};
use mks2_dataset::pretrained::base::{Base, Part};
use mks2_dataset::pretrained::tensors::Place;
use mks2_proto::failure::Failure;
use mks2_proto::job::{Job, Pretrained};
use safetensors::Dtype;
use tch::{Device, Kind, Tensor};
use tokio::runtime::Handle;
use tracing::info;

use crate::lineage::StageResult;
use crate::model::Weights;
use crate::text::TextEncoder;

/// Tensors that are read before they are needed.
const AHEAD: usize = 2;

/// Reads what the stage names.
///
/// # Errors
/// When a folder is not whole, is not what the job says, or cannot be read.
pub(crate) fn load(
    job: &Job,
    stage: &Pretrained,
    device: Device,
    runtime: &Handle,
) -> Result<StageResult, Failure> {
    let base = runtime.block_on(Base::open(job, stage))?;
    let encoder = TextEncoder::pretrained(
        &base.tokenizer,
        job.tokenizer.vocab_size,
        job.model.decoder.max_text_tokens as usize,
    )?;
    let mut hasher = blake3::Hasher::new();
    let mut reader = Reader {
        weights: Weights::new(),
        hasher: Some(&mut hasher),
        device,
    };
    runtime.block_on(reader.take(&base.decoder))?;
    runtime.block_on(reader.take(&base.vision))?;
    let weights = reader.weights;
    hasher.update(&base.tokenizer.json);
    let around = format!("{:?} {}", encoder.opening(), encoder.end());
    hasher.update(around.as_bytes());
    let weights_digest = hasher.finalize().to_hex().to_string();
    info!(
        decoder = stage.decoder,
        vision = stage.vision,
        weights_digest,
        "pretrained models read"
    );
    Ok(StageResult {
        weights,
        weights_digest,
        encoder: Some(encoder.into()),
    })
}

/// The weights of one model alone.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn part(part: &Part, device: Device, runtime: &Handle) -> Result<Weights, Failure> {
    let mut reader = Reader {
        weights: Weights::new(),
        hasher: None,
        device,
    };
    runtime.block_on(reader.take(part))?;
    Ok(reader.weights)
}

/// Reads tensors, and makes one digest of all where that is wanted.
struct Reader<'a> {
    weights: Weights,
    /// blake3 of the name, type, shape and bytes of each tensor in the order of their names, first of
    /// the language model and then of the visual encoder, of the tokenizer's file, and of the tokens
    /// around a text.
    hasher: Option<&'a mut blake3::Hasher>,
    device: Device,
}

impl Reader<'_> {
    async fn take(&mut self, part: &Part) -> Result<(), Failure> {
        let mut names: Vec<&str> = part.specs.iter().map(|spec| spec.name.as_str()).collect();
        names.sort_unstable();
        let reads = names.into_iter().map(async |name| {
            let (place, bytes) = part.tensors.read(name).await?;
            Ok::<_, Failure>((name, place, bytes))
        });
        let mut reads = stream::iter(reads).buffered(AHEAD);
        while let Some((name, place, bytes)) = reads.try_next().await? {
            if let Some(hasher) = &mut self.hasher {
                let about = format!("{name} {:?} {:?}\n", place.dtype, place.shape);
                hasher.update(about.as_bytes()).update(&bytes);
            }
            let tensor = floats(name, place, &bytes)?;
            self.weights
                .insert_frozen(name, &tensor.to_device(self.device));
        }
        Ok(())
    }
}

/// A tensor in fp32.
fn floats(name: &str, place: &Place, bytes: &[u8]) -> Result<Tensor, Failure> {
    let kind = match place.dtype {
        Dtype::F32 => Kind::Float,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        other => {
            return Err(Failure::checkpoint(
                "the pretrained model cannot be used",
                format!("tensor '{name}' in {} is of type {other:?}", place.file),
                "supported are F32, F16 and BF16: save the model in one of these",
            ));
        }
    };
    let shape: Vec<i64> = place.shape.iter().map(|size| *size as i64).collect();
    Ok(Tensor::from_data_size(bytes, &shape, kind).to_kind(Kind::Float))
}

#[cfg(test)]
mod tests;
