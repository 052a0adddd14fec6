//! A run whose coordinator is not known here: what its journal says. That an unfinished run is at
//! rest can not be known from here: a coordinator elsewhere may be at work in the same directory.

use mks2_coordinator::journal::{self, Ending, History, Place};
use mks2_dataset::store;
use mks2_proto::failure::Failure;
use serde_json::{Value, json};

use crate::goodput;
use crate::train::located;

/// The end of a run's journal.
#[derive(Clone, Debug)]
pub(super) struct Resting {
    location: String,
    history: History,
    has_report: bool,
}

impl Resting {
    /// Reads the journal of a run directory.
    ///
    /// # Errors
    /// No run there (exit 2), a damaged journal or storage (5).
    pub(super) async fn read(location: &str) -> Result<Self, Failure> {
        let shown = store::shown(location);
        let nothing = || {
            Failure::usage(
                format!("there is no run at {shown}"),
                "its journal is missing or empty",
                "name a run directory, or the address of a coordinator as HOST:PORT",
            )
        };
        if store::local_path(location).is_some_and(|folder| !folder.is_dir()) {
            return Err(nothing());
        }
        let (place, root) = store::open(location)?;
        let report = root.clone().join("report.json");
        let has_report = store::size(&*place, &report).await?.is_some();
        let replayed = journal::replay(Place { store: place, root }).await;
        let replayed = replayed.map_err(|error| located(error.into(), location))?;
        let history = replayed.history;
        if history.origin.is_none() {
            return Err(nothing());
        }
        Ok(Self {
            location: shown,
            history,
            has_report,
        })
    }

    fn state(&self) -> &'static str {
        match self.history.ending {
            Some(Ending::Finished) => "finished",
            Some(Ending::Stopped) => "stopped",
            Some(Ending::Failed) => "failed",
            None if self.has_report => "finished",
            None => "unfinished",
        }
    }

    fn state_words(&self) -> String {
        match self.state() {
            "unfinished" => "not finished; no coordinator of this machine trains in it".to_owned(),
            state => format!("{state}, nobody trains in it"),
        }
    }

    pub(super) fn text(&self) -> String {
        let mut lines = Vec::new();
        if let Some(origin) = &self.history.origin {
            lines.push(format!(
                "run         {} (job '{}')",
                origin.run_id, origin.job_name
            ));
        }
        lines.push(format!("directory   {}", self.location));
        lines.push(format!("state       {}", self.state_words()));
        lines.push(match self.history.checkpoints.latest() {
            Some(latest) => format!("checkpoint  step {} (stage {})", latest.step, latest.stage),
            None => "checkpoint  none".into(),
        });
        let time = goodput::words(&self.history.books.run());
        if !time.is_empty() {
            lines.push(format!("time        {time}"));
        }
        if self.has_report {
            lines.push(format!(
                "report      {}/report.html",
                self.location.trim_end_matches('/')
            ));
        }
        if self.state() == "unfinished" {
            lines.push(
                "ask first   mks2 status HOST:PORT, if a coordinator elsewhere may train in it"
                    .into(),
            );
        }
        if self.state() != "finished" {
            lines.push(format!(
                "go on       mks2 train JOB --run {}",
                self.location
            ));
        }
        lines.join("\n")
    }

    pub(super) fn json(&self) -> Value {
        let origin = self.history.origin.as_ref();
        json!({
            "live": false,
            "run_id": origin.map(|origin| origin.run_id.to_string()),
            "job": origin.map(|origin| &origin.job_name),
            "run_url": self.location,
            "state": self.state(),
            "term": self.history.term.0,
            "generation": self.history.generation.0,
            "goodput": goodput::of_run(&self.history.books),
            "checkpoint": self.history.checkpoints.latest().map(|latest| json!({
                "step": latest.step, "stage": latest.stage, "final": latest.is_final,
            })),
        })
    }
}
