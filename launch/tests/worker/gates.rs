//! Gates in the way of a worker: it waits before each of its steps until the coordinator asks for a border, since
//! somebody comes or leaves, or until the test lets it go on.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::lab::Lab;

/// How long anything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(300);

/// Gates before the steps of a worker, which it reaches with its loading.
pub(crate) struct Gates {
    folder: PathBuf,
    mishaps: Vec<String>,
}

impl Gates {
    /// Closed gates before some steps of a run.
    pub(crate) fn new(
        lab: &Lab,
        run: &str,
        member: &str,
        steps: impl IntoIterator<Item = u64>,
    ) -> Self {
        let folder = lab.path(&format!("{run}-gates"));
        std::fs::create_dir_all(&folder).expect("a folder");
        let hold = |step| format!("hold@loading@{step}@{member}");
        let mishaps = steps.into_iter().map(hold).collect();
        Self { folder, mishaps }
    }

    /// Puts them into the environment, behind other mishaps.
    pub(crate) fn shut(&self, command: &mut Command, others: &str) {
        let others = Some(others).filter(|others| !others.is_empty());
        let mishaps = others
            .into_iter()
            .chain(self.mishaps.iter().map(String::as_str));
        let mishaps: Vec<_> = mishaps.collect();
        command.env("MKS2_TEST_MISHAP", mishaps.join(","));
        command.env("MKS2_TEST_GATES", &self.folder);
    }

    /// Waits until it is so, while the worker does a step only where somebody comes or leaves behind it.
    #[track_caller]
    pub(crate) fn until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !is_so() {
            assert!(Instant::now() < deadline, "not in {LIMIT:?}: {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Lets the worker go on from one step to the next gate.
    pub(crate) fn open(&self, step: u64) {
        self.open_named(&step.to_string());
    }

    /// Lets the worker go on to the end.
    pub(crate) fn open_all(self) {
        drop(self);
    }

    fn open_named(&self, gate: &str) {
        std::fs::write(self.folder.join(gate), "").expect("opened");
    }
}

impl Drop for Gates {
    /// Also where the test has failed: nobody is held for ever.
    fn drop(&mut self) {
        self.open_named("all");
    }
}
