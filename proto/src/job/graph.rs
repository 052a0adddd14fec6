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
        let mut all = Vec::new();
        self.gather(name, &mut all);
        all
    }

    /// Adds a stage behind those that it builds on, each once.
    fn gather<'a>(&'a self, name: &str, all: &mut Vec<&'a Stage>) {
        let is_known = all.iter().any(|known| known.name == name);
        let Some(stage) = self.stage(name).filter(|_| !is_known) else {
            return;
        };
        for parent in &stage.from {
            self.gather(parent, all);
        }
        all.push(stage);
    }

    /// The stage that brings the language model on which the stage called `name` builds.
    #[must_use]
    pub fn base_of(&self, name: &str) -> Option<&Stage> {
        let ancestry = self.ancestry(name).into_iter();
        ancestry.rev().find(|stage| stage.kind.is_base())
    }
}
