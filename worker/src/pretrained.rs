//! A `pretrained` stage: it trains nothing, and takes the language model, the visual encoder and maybe a
//! Q-Former from where they were published. Every worker reads them by itself.

use mks2_dataset::pretrained::adapter::Adapter;
use mks2_dataset::pretrained::base::Base;
use mks2_dataset::store;
use mks2_proto::failure::Failure;
use mks2_proto::job::{self, Job, Precision, Pretrained};
use tch::Device;
use tokio::runtime::Handle;
use tracing::info;

use crate::lineage::StageResult;
use crate::objective::to_floats;
use crate::text::TextEncoder;

mod files;
mod read;

use read::weights_with_digest;
pub(crate) use read::{Hashed, digest, weights};

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
    let place = (job.precision, device);
    let (mut all, decoder) = weights_with_digest(&base.decoder, place, runtime)?;
    let (eyes, vision) = weights_with_digest(&base.vision, place, runtime)?;
    all.extend(eyes);
    let mut hasher = blake3::Hasher::new();
    hasher.update(decoder.as_bytes()).update(vision.as_bytes());
    if let Some(part) = &base.q_former {
        let (queries, q_former) = weights_with_digest(part, place, runtime)?;
        all.extend(queries);
        hasher.update(q_former.as_bytes());
    }
    hasher.update(&base.tokenizer.json);
    let around = format!("{:?} {}", encoder.opening(), encoder.end());
    hasher.update(around.as_bytes());
    if let Some(space_before) = base.tokenizer.overrides.space_before {
        hasher.update(format!("{space_before:?}").as_bytes());
    }
    let weights_digest = hasher.finalize().to_hex().to_string();
    info!(
        decoder = stage.decoder,
        vision = stage.vision,
        q_former = stage.q_former,
        weights_digest,
        "pretrained models read"
    );
    Ok(StageResult {
        weights: all,
        weights_digest,
        encoder: Some(encoder.into()),
    })
}

/// Values that the adapters of an `experts` stage start from, by the names of its parameters; none where
/// they start from nothing.
///
/// # Errors
/// When the folder that the stage names holds other adapters, by their shape or their id, or cannot be read.
pub(crate) fn adapter(
    model: &job::Model,
    settings: &job::Experts,
    runtime: &Handle,
) -> Result<Vec<(String, Vec<f32>)>, Failure> {
    let Some(url) = &settings.adapter else {
        return Ok(Vec::new());
    };
    let Adapter { part, parameters } = runtime.block_on(Adapter::open(url, model, settings))?;
    let (values, digest) =
        weights_with_digest(&part, (Precision::default(), Device::Cpu), runtime)?;
    let id = digest.to_hex();
    if let Some(wanted) = settings
        .adapter_id
        .as_ref()
        .filter(|wanted| *wanted != id.as_str())
    {
        return Err(Failure::checkpoint(
            "the adapters cannot be taken in",
            format!(
                "those in {} have the id {id}, and adapter_id is {wanted}",
                store::shown(url)
            ),
            "name the folder of the adapters that you want, or correct adapter_id of the stage",
        ));
    }
    info!(url, id = %id, "adapters read");
    let named = parameters.into_iter().zip(&part.specs);
    named
        .map(|(parameter, spec)| Ok((parameter, to_floats(&values.get(&spec.name)?)?)))
        .collect()
}

#[cfg(test)]
mod tests;
