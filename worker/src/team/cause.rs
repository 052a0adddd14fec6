//! Why a generation cannot go on, and how the coordinator is told.

use std::fmt;

use mks2_proto::failure::Failure;
use tracing::warn;

use crate::audit::Difference;
use crate::collectives::CollectiveError;
use crate::session::{Assignment, Session};

/// Why a generation cannot go on.
#[derive(Debug)]
pub enum Cause {
    /// A collective failed.
    Failed(CollectiveError),
    /// The members' copies of the state are not alike.
    Differ(Difference),
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(error) => error.fmt(f),
            Self::Differ(difference) => difference.fmt(f),
        }
    }
}

impl From<Cause> for Failure {
    fn from(cause: Cause) -> Self {
        match cause {
            Cause::Failed(error) => error.into(),
            Cause::Differ(difference) => Self::run_failed(
                "the workers do not hold the same state of training",
                difference.to_string(),
                "run the same command again: it resumes from the latest checkpoint",
            ),
        }
    }
}

impl Cause {
    /// Tells the coordinator why the generation of `before` is over.
    pub(super) fn report(self, session: &Session, before: &Assignment) -> Result<(), Failure> {
        let generation = before.generation;
        warn!(generation = generation as i64, why = %self, "the generation cannot go on");
        let member = |rank: usize| before.members.get(rank);
        match self {
            Self::Failed(error) => {
                let blamed = error.rank().and_then(member);
                let blamed = blamed.map_or("", String::as_str);
                session.peer_lost(generation, blamed, &error.to_string())
            }
            Self::Differ(difference) => {
                let odd = difference.odd.iter().filter_map(|rank| member(*rank));
                let odd = odd.cloned().collect();
                session.replicas_differ(generation, &difference, odd)
            }
        }
    }
}
