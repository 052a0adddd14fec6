//! The tokenizer that a stage trains, kept in the run directory from the first worker on that has
//! trained it: later ones start sooner, and a large corpus is not read once more by each of them.
//!
//! ```text
//! <run>/tokenizers/<blake3 of what it is trained on>      blake3 of the rest in hex, then tokenizer.json
//! ```
//!
//! Every worker can train it by itself and gets the same. So it is only made use of: where it is
//! missing, damaged, or the store has trouble, it is trained again.

use std::time::Duration;

use bytes::Bytes;
use mks2_dataset::store;
use mks2_proto::failure::Failure;
use mks2_proto::job::Stage;
use object_store::ObjectStore;
use object_store::path::Path;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::sources::Sources;
use crate::text::TextEncoder;

const FOLDER: &str = "tokenizers";
/// No worker waits longer for what it can make by itself.
const PATIENCE: Duration = Duration::from_secs(5);
/// Characters of a digest.
const HEX: usize = 2 * blake3::OUT_LEN;

/// The tokenizer of a bootstrap stage, from the run directory or from its corpora.
///
/// # Errors
/// When the corpora cannot be read, or give none.
pub(crate) fn tokenizer(
    sources: Sources<'_>,
    stage: &Stage,
    run_url: &str,
) -> Result<TextEncoder, Failure> {
    let max_tokens = sources.job.model.decoder.max_text_tokens as usize;
    let (place, root) = store::open(run_url)?;
    let path = store::under(&root, &format!("{FOLDER}/{}", key(sources, stage)?))?;
    let kept = sources.runtime.block_on(read(&*place, &path));
    let kept = kept.and_then(|json| TextEncoder::from_json(&json, max_tokens).ok());
    if let Some(encoder) = kept {
        info!(
            entries = i64::from(encoder.vocab_size()),
            "tokenizer taken from the run"
        );
        return Ok(encoder);
    }
    let texts = sources.tokenizer_texts(stage)?;
    let vocab_size = sources.job.tokenizer.vocab_size as usize;
    let encoder = TextEncoder::train(&texts, vocab_size, max_tokens)?;
    info!(
        texts = texts.len() as i64,
        entries = i64::from(encoder.vocab_size()),
        "tokenizer trained"
    );
    let file = sealed(&encoder.to_json()?);
    sources.runtime.block_on(keep(&*place, &path, file));
    Ok(encoder)
}

/// Digest of everything that the tokenizer depends on.
fn key(sources: Sources<'_>, stage: &Stage) -> Result<String, Failure> {
    let mut corpora = Vec::new();
    for source in &stage.data {
        corpora.push(sources.corpus(&source.corpus)?.manifest().digest());
    }
    let settings = stage.bootstrap.clone().unwrap_or_default();
    let trained_on = serde_json::json!({
        "program": env!("CARGO_PKG_VERSION"),
        "corpora": corpora,
        "texts": settings.texts,
        "clip_texts": settings.clip_texts,
        "sample_rows": sources.job.tokenizer.sample_rows,
        "vocab_size": sources.job.tokenizer.vocab_size,
    });
    Ok(blake3::hash(trained_on.to_string().as_bytes())
        .to_hex()
        .to_string())
}

/// The file at `path`, where it is there and whole.
async fn read(place: &dyn ObjectStore, path: &Path) -> Option<Bytes> {
    match timeout(PATIENCE, store::get_if_there(place, path)).await {
        Ok(Ok(file)) => return opened(&file?),
        Ok(Err(error)) => warn!(%error, "the run's tokenizer cannot be read, and is trained again"),
        Err(_) => warn!("the store does not answer, and the run's tokenizer is trained again"),
    }
    None
}

/// Keeps the file for later workers.
async fn keep(place: &dyn ObjectStore, path: &Path, file: Bytes) {
    match timeout(PATIENCE, store::put(place, path, file)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            warn!(%error, "the tokenizer is not kept; the next worker trains it again")
        }
        Err(_) => warn!("the store does not answer; the next worker trains the tokenizer again"),
    }
}

fn sealed(json: &[u8]) -> Bytes {
    let digest = blake3::hash(json).to_hex();
    [digest.as_bytes(), json].concat().into()
}

fn opened(file: &Bytes) -> Option<Bytes> {
    let (digest, json) = file.split_at_checked(HEX)?;
    let found = blake3::hash(json).to_hex();
    let is_whole = found.as_bytes() == digest;
    if !is_whole {
        warn!("the run's tokenizer is damaged, and is trained again");
    }
    is_whole.then(|| file.slice(HEX..))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_file_is_not_used() {
        let file = sealed(b"{\"version\": \"1.0\"}");
        assert_eq!(
            opened(&file).as_deref(),
            Some(&b"{\"version\": \"1.0\"}"[..])
        );
        for at in 0..file.len() {
            let mut damaged = file.to_vec();
            damaged[at] ^= 1;
            assert_eq!(opened(&damaged.into()), None, "byte {at}");
            assert_eq!(opened(&file.slice(..at)), None, "{at} bytes");
        }
    }
}
