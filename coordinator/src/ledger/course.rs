//! The course of a job: its training stages on the line of global steps.

use mks2_proto::job::Job;

/// All steps of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Course {
    /// Lanes of the job.
    pub lanes: u32,
    /// The job's seed.
    pub seed: u64,
    /// The stages that train, in order.
    pub legs: Vec<Leg>,
}

/// One stage that trains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leg {
    /// Name of the stage.
    pub name: String,
    /// Stages that it starts from.
    pub from: Vec<String>,
    /// Steps of the run before it.
    pub before: u64,
    /// Its steps.
    pub steps: u64,
    /// Samples of a step over all lanes.
    pub batch: u64,
    /// Corpora that it reads, in the order of the plan's sources.
    pub corpora: Vec<String>,
}

impl Leg {
    /// Its last step, counted over the run.
    #[must_use]
    pub fn last_step(&self) -> u64 {
        self.before + self.steps
    }
}

impl Course {
    /// The course of a job.
    #[must_use]
    pub fn of(job: &Job) -> Self {
        let mut before = 0;
        let mut legs = Vec::new();
        for stage in &job.stages {
            if stage.kind.trains() {
                legs.push(Leg {
                    name: stage.name.clone(),
                    from: stage.from.clone(),
                    before,
                    steps: stage.steps,
                    batch: u64::from(stage.batch_size),
                    corpora: stage.data.iter().map(|data| data.corpus.clone()).collect(),
                });
            }
            before += stage.steps;
        }
        Self {
            lanes: job.lanes,
            seed: job.seed,
            legs,
        }
    }

    /// Steps of all stages.
    #[must_use]
    pub fn total_steps(&self) -> u64 {
        self.legs.last().map_or(0, Leg::last_step)
    }

    /// The stage of a step, counted from 1 over the run.
    #[must_use]
    pub fn leg_of(&self, step: u64) -> Option<&Leg> {
        self.legs
            .iter()
            .find(|leg| leg.before < step && step <= leg.last_step())
    }

    /// Whether what `stage` trains builds on what `base` trained: it is the same stage, or starts
    /// from one that does.
    #[must_use]
    pub fn builds_on(&self, stage: &str, base: &str) -> bool {
        // Stages stand behind those that they start from, so one look back at each is enough.
        let mut builders = vec![base];
        for leg in &self.legs {
            if leg
                .from
                .iter()
                .any(|from| builders.contains(&from.as_str()))
            {
                builders.push(&leg.name);
            }
        }
        builders.contains(&stage)
    }
}
