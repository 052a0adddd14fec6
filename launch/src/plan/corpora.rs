//! What the manifests of a job's corpora say, as far as they are there.

use std::time::Duration;

use mks2_dataset::reader::Corpus;
use mks2_proto::failure::Failure;
use mks2_proto::job::Job;
use serde::Serialize;

use crate::train::used_corpora;

/// A plan is quick: a store that does not answer in this time is left alone.
const LIMIT: Duration = Duration::from_secs(10);

/// A corpus as it is now.
#[derive(Clone, Debug, Serialize)]
pub(super) struct CorpusFacts {
    pub(super) name: String,
    pub(super) url: String,
    /// Rows; absent: it cannot be read.
    pub(super) rows: Option<u64>,
    /// Bytes of all shards: what a pass reads.
    pub(super) bytes: Option<u64>,
    /// Why it cannot be read.
    pub(super) problem: Option<String>,
}

/// Looks at every corpus that the stages use.
pub(super) async fn look_at(job: &Job) -> Vec<CorpusFacts> {
    let mut facts = Vec::new();
    for name in used_corpora(job) {
        let Some(corpus) = job.data.get(name) else {
            continue;
        };
        facts.push(one(name, &corpus.url).await);
    }
    facts
}

async fn one(name: &str, url: &str) -> CorpusFacts {
    let blank = CorpusFacts {
        name: name.to_owned(),
        url: mks2_dataset::store::shown(url),
        rows: None,
        bytes: None,
        problem: None,
    };
    match tokio::time::timeout(LIMIT, Corpus::open(url)).await {
        Ok(Ok(corpus)) => {
            let bytes = corpus
                .manifest()
                .shards
                .iter()
                .map(|shard| shard.bytes)
                .sum();
            CorpusFacts {
                rows: Some(corpus.rows()),
                bytes: Some(bytes),
                ..blank
            }
        }
        Ok(Err(error)) => CorpusFacts {
            problem: Some(Failure::from(error).why),
            ..blank
        },
        Err(_) => {
            let problem = format!("no answer within {} s", LIMIT.as_secs());
            CorpusFacts {
                problem: Some(problem),
                ..blank
            }
        }
    }
}
