//! What is written into the journal.

use std::collections::BTreeMap;

use mks2_proto::ids::{Generation, Incarnation, MemberId, RunId, Term};
use serde::{Deserialize, Serialize};

use crate::books::Books;
use crate::state::{Abortion, Checkpoint};

/// A decision. Steps are none: they follow from the plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Entry {
    /// A coordinator takes office; whoever held it before is fenced by this record's number.
    TermTaken,
    /// The run directory belongs to this run of this job.
    RunCreated {
        /// The run.
        run_id: RunId,
        /// The job's name.
        job_name: String,
        /// blake3 of the job.
        job_digest: String,
        /// Digests of the corpora's manifests, by name.
        corpora: BTreeMap<String, String>,
        /// The program that created it.
        program_version: String,
    },
    /// A generation is agreed on.
    GenerationFormed {
        /// Its number.
        generation: Generation,
        /// Its members, in the order of ranks.
        members: Vec<GenerationMember>,
        /// Steps that were committed when it was formed.
        #[serde(default)]
        after_step: u64,
        /// Members of the generation before that were lost.
        #[serde(default)]
        lost: Vec<MemberId>,
        /// Members of the generation before that were let go.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        left: Vec<MemberId>,
        /// Members that were not in the generation before, unless it is the first one of a start.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        joined: Vec<MemberId>,
    },
    /// A checkpoint counts. With `final`, its stage has ended.
    CheckpointCommitted {
        /// The checkpoint.
        checkpoint: Checkpoint,
        /// Steps of those that the retention policy let go.
        released: Vec<u64>,
    },
    /// The run was taken back to a checkpoint; what came after it is void.
    RunRewound {
        /// Step of the checkpoint; 0: the beginning.
        to_step: u64,
        /// Steps of the checkpoints that are void.
        dropped: Vec<u64>,
        /// Members whose copies of the state differed from the others', if that is why.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        lost: Vec<MemberId>,
    },
    /// Somebody asked the run to stop.
    StopRequested {
        /// Why.
        reason: String,
    },
    /// It stopped.
    RunStopped {
        /// The last step.
        step: u64,
    },
    /// The job is done.
    RunFinished {
        /// The last step.
        step: u64,
    },
    /// It failed.
    RunFailed {
        /// What happened.
        what: String,
        /// Why.
        why: String,
        /// The member that was lost.
        lost: Option<MemberId>,
    },
}

/// A member in [`Entry::GenerationFormed`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationMember {
    /// Who.
    pub member: MemberId,
    /// Which process.
    pub incarnation: Incarnation,
    /// Its machine.
    pub host: String,
    /// Where its data plane listens.
    #[serde(default)]
    pub data_address: String,
    /// The lanes that it holds, ascending.
    pub lanes: Vec<u32>,
}

impl Entry {
    /// The record of a failure.
    #[must_use]
    pub fn failed(abortion: &Abortion) -> Self {
        Self::RunFailed {
            what: abortion.failure.what.clone(),
            why: abortion.failure.why.clone(),
            lost: abortion.lost.clone(),
        }
    }
}

/// One numbered object of the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its number, from 1, as in its name.
    pub number: u64,
    /// The term of its writer.
    pub term: Term,
    /// The process that wrote it: tells our own record from a rival's after a lost answer.
    pub writer: Incarnation,
    /// Milliseconds since 1970 on the writer's clock; for people only.
    pub at_ms: u64,
    /// The digest of the record before; empty for the first.
    pub previous: String,
    /// Where the run's time had gone by then.
    #[serde(default, skip_serializing_if = "Books::is_empty")]
    pub books: Books,
    /// The decision.
    pub entry: Entry,
    /// blake3 in hex of this record as compact JSON with an empty digest.
    pub digest: String,
}

impl Record {
    /// The digest that the record should have.
    ///
    /// # Errors
    /// Never for records that were made or read by this program.
    pub fn expected_digest(&self) -> Result<String, serde_json::Error> {
        let blank = Self {
            digest: String::new(),
            ..self.clone()
        };
        Ok(blake3::hash(&serde_json::to_vec(&blank)?)
            .to_hex()
            .to_string())
    }

    /// The record with its digest.
    ///
    /// # Errors
    /// As [`Record::expected_digest`].
    pub fn sealed(mut self) -> Result<Self, serde_json::Error> {
        self.digest = self.expected_digest()?;
        Ok(self)
    }
}
