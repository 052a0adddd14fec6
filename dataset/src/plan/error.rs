//! Why a plan can not be made.

use mks2_proto::failure::Failure;

/// Numbers that no plan can be made from.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// No corpus was given.
    #[error("stage {stage} has no data")]
    NoSources {
        /// Name of the stage.
        stage: String,
    },
    /// A corpus without rows.
    #[error("corpus number {source_index} of stage {stage} has no rows")]
    EmptyCorpus {
        /// Name of the stage.
        stage: String,
        /// Index among the stage's sources.
        source_index: usize,
    },
    /// A manifest that says 0 rows to a group.
    #[error("corpus number {source_index} of stage {stage} has row groups of 0 rows")]
    EmptyGroups {
        /// Name of the stage.
        stage: String,
        /// Index among the stage's sources.
        source_index: usize,
    },
    /// A weight that is not a positive, finite number.
    #[error(
        "weight {weight} of corpus number {source_index} of stage {stage} is not a positive number"
    )]
    Weight {
        /// Name of the stage.
        stage: String,
        /// Index among the stage's sources.
        source_index: usize,
        /// The weight.
        weight: f64,
    },
    /// More sources than a row reference can name.
    #[error("stage {stage} has {count} sources, at most {} are possible", u16::MAX)]
    TooManySources {
        /// Name of the stage.
        stage: String,
        /// How many there are.
        count: usize,
    },
    /// No lanes, or microbatches without samples.
    #[error("stage {stage} has {lanes} lanes with {microbatch} samples each")]
    NothingToDo {
        /// Name of the stage.
        stage: String,
        /// Lanes.
        lanes: u32,
        /// Samples of a lane in a step.
        microbatch: u32,
    },
}

impl From<PlanError> for Failure {
    fn from(error: PlanError) -> Self {
        let what = "the order of the training samples cannot be planned";
        let why = error.to_string();
        match error {
            PlanError::NoSources { .. } => {
                Self::settings(what, why, "add a [[stage.data]] table that names a corpus")
            }
            PlanError::EmptyCorpus { .. } => Self::data(
                what,
                why,
                "look at the corpus' quarantine.jsonl, then import it again: \
                 mks2 data import SOURCE... --out URL",
            ),
            PlanError::EmptyGroups { .. } => Self::data(
                what,
                why,
                "the corpus' manifest.json is damaged; import it again: \
                 mks2 data import SOURCE... --out URL",
            ),
            PlanError::Weight { .. } => Self::settings(
                what,
                why,
                "give the source a weight above 0, for example 1.0",
            ),
            PlanError::TooManySources { .. } => {
                Self::settings(what, why, "import the sources into fewer corpora")
            }
            PlanError::NothingToDo { .. } => Self::settings(
                what,
                why,
                "set lanes and the stage's batch_size to 1 or more, batch_size a multiple of lanes",
            ),
        }
    }
}
