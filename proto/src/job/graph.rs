//! What builds on what: the graph of stages.

use super::{Job, Stage};

impl Job {
    /// The stage of this name.
    #[must_use]
    pub fn stage(&self, name: &str) -> Option<&Stage> {
        self.stages.iter().find(|stage| stage.name == name)
    }

    /// A stage and all stages that it builds on, oldest first; none where the job has no such stage.
    #[must_use]
    pub fn ancestry(&self, name: &str) -> Vec<&Stage> {
        let mut all: Vec<&Stage> = Vec::new();
        let Some(stage) = self.stage(name) else {
            return all;
        };
        for parent in &stage.from {
            for ancestor in self.ancestry(parent) {
                if all.iter().all(|known| known.name != ancestor.name) {
                    all.push(ancestor);
                }
            }
        }
        all.push(stage);
        all
    }

    /// The stage that brings the language model on which the stage called `name` builds.
    #[must_use]
    pub fn base_of(&self, name: &str) -> Option<&Stage> {
        let ancestry = self.ancestry(name).into_iter();
        ancestry.rev().find(|stage| stage.kind.is_base())
    }
}
