//! What the journal's records add up to.

use std::collections::{BTreeMap, HashSet};

use mks2_proto::ids::{Generation, RunId, Term};
use serde::{Deserialize, Serialize};

use super::{Entry, Record, record::GenerationMember};
use crate::books::Books;
use crate::state::Checkpoints;

/// The run that a directory belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The run.
    pub run_id: RunId,
    /// The job's name.
    pub job_name: String,
    /// blake3 of the job.
    pub job_digest: String,
    /// Digests of the corpora's manifests, by name.
    pub corpora: BTreeMap<String, String>,
}

/// How the last term ended, if it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// On request.
    Stopped,
    /// The job is done.
    Finished,
    /// By a failure.
    Failed,
}

/// A generation that no record has ended: its members may be alive, whoever coordinated them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Working {
    /// Its number.
    pub generation: Generation,
    /// Its members, in the order of ranks.
    pub members: Vec<GenerationMember>,
    /// Steps that were committed when it was formed.
    pub after_step: u64,
    /// Why the run was asked to stop, if it was.
    pub stop: Option<String>,
}

impl Working {
    /// The request to stop, for the generation that follows: it was meant for those who are left,
    /// not for processes that have started since.
    fn stop_for(self, members: &[GenerationMember]) -> Option<String> {
        let before = self.members.iter().map(|known| known.incarnation);
        let before: HashSet<_> = before.collect();
        let was_there = |member: &GenerationMember| before.contains(&member.incarnation);
        if members.iter().all(was_there) {
            self.stop
        } else {
            None
        }
    }
}

/// The sum of all records up to one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// The run, once it was created.
    pub origin: Option<Origin>,
    /// The last term.
    pub term: Term,
    /// The last generation.
    pub generation: Generation,
    /// The checkpoints that count.
    pub checkpoints: Checkpoints,
    /// How the last term that worked in the run ended.
    pub ending: Option<Ending>,
    /// The generation at work.
    #[serde(default)]
    pub working: Option<Working>,
    /// Where the run's time has gone.
    #[serde(default)]
    pub books: Books,
}

impl History {
    /// Adds a record.
    pub fn fold(&mut self, record: &Record) {
        self.term = record.term;
        self.books.clone_from(&record.books);
        match &record.entry {
            // A finished run stays finished until somebody works in it again.
            Entry::TermTaken if self.ending == Some(Ending::Finished) => {}
            Entry::TermTaken => self.ending = None,
            Entry::RunCreated {
                run_id,
                job_name,
                job_digest,
                corpora,
                ..
            } => {
                self.origin = Some(Origin {
                    run_id: run_id.clone(),
                    job_name: job_name.clone(),
                    job_digest: job_digest.clone(),
                    corpora: corpora.clone(),
                });
                self.ending = None;
                self.working = None;
                self.books = Books::default();
            }
            Entry::GenerationFormed {
                generation,
                members,
                after_step,
                ..
            } => {
                let before = self.working.take();
                self.generation = *generation;
                self.ending = None;
                self.working = Some(Working {
                    generation: *generation,
                    members: members.clone(),
                    after_step: *after_step,
                    stop: before.and_then(|before| before.stop_for(members)),
                });
            }
            Entry::CheckpointCommitted {
                checkpoint,
                released,
            } => {
                self.checkpoints.insert(checkpoint.clone());
                self.checkpoints.remove(released);
            }
            Entry::RunRewound { dropped, .. } => {
                self.checkpoints.remove(dropped);
                self.ending = None;
                self.working = None;
            }
            Entry::StopRequested { reason } => {
                if let Some(working) = &mut self.working {
                    working.stop = Some(reason.clone());
                }
            }
            Entry::RunStopped { .. } => self.end(Ending::Stopped),
            Entry::RunFinished { .. } => self.end(Ending::Finished),
            Entry::RunFailed { .. } => self.end(Ending::Failed),
        }
    }

    fn end(&mut self, ending: Ending) {
        self.ending = Some(ending);
        self.working = None;
    }

    /// Why a record cannot follow: terms and generations only grow, a term begins with its
    /// record, and a run gives way to another only while it has no checkpoint.
    #[must_use]
    pub fn objection(&self, record: &Record) -> Option<String> {
        let takes_term = matches!(record.entry, Entry::TermTaken);
        let due = if takes_term {
            Term(self.term.0 + 1)
        } else {
            self.term
        };
        if record.term != due {
            return Some(format!(
                "it is of term {}, where term {due} was due",
                record.term
            ));
        }
        match &record.entry {
            Entry::RunCreated { .. } if self.checkpoints.latest().is_some() => {
                Some("it creates another run over checkpoints".to_owned())
            }
            Entry::GenerationFormed { generation, .. } if *generation <= self.generation => {
                Some(format!(
                    "its generation {generation} is not after {}",
                    self.generation
                ))
            }
            _ => None,
        }
    }
}
