//! Watches what a run writes, as it is written: lines of the metrics, records of the journal, and the
//! weights of checkpoints while they are there.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mks2_coordinator::journal::{Entry, Record};
use mks2_proto::failure::Failure;
use serde_json::Value;

use super::story::{Commit, Note, Story};

/// Fields of a line of the metrics that depend on the weights.
const BITS: [&str; 6] = [
    "loss",
    "loss_caption",
    "loss_retrieval",
    "loss_language",
    "loss_contrastive",
    "grad_norm",
];

/// A run directory on this machine, and how far it was read.
#[derive(Debug)]
pub(super) struct Observer {
    folder: PathBuf,
    began: Instant,
    /// The same moment on the clock of the journal's records, milliseconds since 1970.
    began_ms: u64,
    read_bytes: u64,
    record: u64,
    bits: BTreeMap<u64, String>,
}

impl Observer {
    /// Watches from now on; times are counted from now.
    pub(super) fn new(folder: &Path) -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            folder: folder.to_owned(),
            began: Instant::now(),
            began_ms: u64::try_from(wall.unwrap_or_default().as_millis()).unwrap_or_default(),
            read_bytes: 0,
            record: 1,
            bits: BTreeMap::new(),
        }
    }

    pub(super) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Takes in what is new. What is not whole yet comes the next time.
    ///
    /// # Errors
    /// The run directory cannot be read.
    pub(super) fn look(&mut self, story: &mut Story) -> Result<(), Failure> {
        let seen = self.records(story).and_then(|()| self.lines(story));
        seen.map_err(|error| {
            let what = format!("the run in {} cannot be watched", self.folder.display());
            Failure::io(what, error)
        })
    }

    /// All lines that are there at the end, by step.
    ///
    /// # Errors
    /// The run directory cannot be read.
    pub(super) fn finish(&mut self, story: &mut Story) -> Result<(), Failure> {
        self.look(story)?;
        let path = self.folder.join("metrics.jsonl");
        let text = std::fs::read_to_string(&path)
            .map_err(|error| Failure::io(format!("{} cannot be read", path.display()), error))?;
        story.lines.clear();
        for line in text.lines() {
            let line: Option<Value> = serde_json::from_str(line).ok();
            if let Some(step) = line.and_then(|line| line["step"].as_u64()) {
                *story.lines.entry(step).or_default() += 1;
            }
        }
        Ok(())
    }

    fn records(&mut self, story: &mut Story) -> std::io::Result<()> {
        loop {
            let name = format!("{:020}.json", self.record);
            let Some(bytes) = read(&self.folder.join("journal").join(name))? else {
                return Ok(());
            };
            // It may be half written.
            let Ok(record) = serde_json::from_slice::<Record>(&bytes) else {
                return Ok(());
            };
            self.record += 1;
            if let Entry::CheckpointCommitted { checkpoint, .. } = &record.entry {
                let manifest = read(&self.folder.join(&checkpoint.manifest_path))?;
                let manifest = manifest.and_then(|m| serde_json::from_slice::<Value>(&m).ok());
                let digest = manifest.as_ref().and_then(|m| m["weights_digest"].as_str());
                let digest = digest.map(|digest| (checkpoint.step, digest.to_owned()));
                story.weights.extend(digest);
            }
            story.notes.push(Note {
                at: Duration::from_millis(record.at_ms.saturating_sub(self.began_ms)),
                entry: record.entry,
            });
        }
    }

    fn lines(&mut self, story: &mut Story) -> std::io::Result<()> {
        let mut file = match File::open(self.folder.join("metrics.jsonl")) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            file => file?,
        };
        if file.metadata()?.len() < self.read_bytes {
            // It was cut back: what follows is computed again.
            self.read_bytes = 0;
        }
        file.seek(SeekFrom::Start(self.read_bytes))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n');
        let whole = whole.map_or(0, |end| end + 1);
        self.read_bytes += whole as u64;
        let (seen, known) = (self.now(), story.commits.len());
        for line in bytes[..whole].split(|byte| *byte == b'\n') {
            if let Ok(line) = serde_json::from_slice::<Value>(line) {
                let commit = self.line(seen, &line, story);
                story.commits.extend(commit);
            }
        }
        date_back(&mut story.commits, known);
        Ok(())
    }

    /// The step of a line, unless it is known.
    fn line(&mut self, seen: Duration, line: &Value, story: &mut Story) -> Option<Commit> {
        let number = |name: &str| line[name].as_u64().unwrap_or_default();
        let step = number("step");
        let values = BITS.iter().map(|name| line[*name].to_string());
        let bits = values.collect::<Vec<_>>().join(" ");
        if let Some(before) = self.bits.get(&step) {
            if *before != bits {
                story.again_otherwise.insert(step);
            }
            return None;
        }
        self.bits.insert(step, bits.clone());
        Some(Commit {
            at: seen,
            took: Duration::try_from_secs_f64(line["step_seconds"].as_f64().unwrap_or_default())
                .unwrap_or_default(),
            seen,
            step,
            stage: line["stage"].as_str().unwrap_or_default().to_owned(),
            workers: u32::try_from(number("workers")).unwrap_or(u32::MAX),
            generation: number("generation"),
            bits,
        })
    }
}

/// Steps that were seen within less than half the time that they took were made one after the other
/// while no coordinator wrote them down, and lie as far apart as they took. All but the first `known`
/// are new.
fn date_back(commits: &mut [Commit], known: usize) {
    for new in known..commits.len() {
        for behind in (1..=new).rev() {
            let [.., before, commit] = &mut commits[..=behind] else {
                break;
            };
            if commit.at.saturating_sub(before.at) >= commit.took / 2 {
                break;
            }
            before.at = commit.at.saturating_sub(commit.took);
        }
    }
}

/// The bytes of a file; none: it is not there.
fn read(path: &Path) -> std::io::Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The machine's load over the last minute.
pub(super) fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let first = text.split_whitespace().next();
    first.and_then(|load| load.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn lines_are_seen_once_and_what_is_computed_again_is_compared() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("metrics.jsonl");
        let line = |step: u64, loss: f64| {
            format!(
                "{{\"step\":{step},\"stage\":\"a\",\"loss\":{loss},\"workers\":2,\"generation\":1}}\n"
            )
        };
        let write = |text: &str| std::fs::write(&path, text).expect("written");
        let (mut observer, mut story) = (Observer::new(folder.path()), Story::default());
        observer.look(&mut story).expect("nothing yet");
        write(&(line(1, 0.5) + &line(2, 0.4)));
        observer.look(&mut story).expect("read");
        let mut file = std::fs::OpenOptions::new().append(true).open(&path);
        let file = file.as_mut().expect("open");
        file.write_all(b"{\"step\":3,").expect("written");
        observer.look(&mut story).expect("read");
        assert_eq!(story.commits.len(), 2);
        // Cut back to the first step, and gone on with.
        write(&line(1, 0.5));
        observer.look(&mut story).expect("read");
        write(&(line(1, 0.5) + &line(2, 0.45) + &line(3, 0.3)));
        observer.finish(&mut story).expect("read");
        let steps: Vec<u64> = story.commits.iter().map(|commit| commit.step).collect();
        assert_eq!(steps, [1, 2, 3]);
        assert!(story.again_otherwise.contains(&2));
        assert_eq!(story.lines.values().sum::<u32>(), 3);
    }

    #[test]
    fn steps_that_are_seen_at_once_were_made_one_after_the_other() {
        let at = |millis: u64| Duration::from_millis(millis);
        let commit = |step: u64, millis: u64, took: u64| Commit {
            at: at(millis),
            took: at(took),
            seen: at(millis),
            step,
            stage: "a".into(),
            workers: 2,
            generation: 1,
            bits: String::new(),
        };
        let dated = |commits: &[Commit]| commits.iter().map(|c| c.at).collect::<Vec<_>>();
        let mut commits = vec![
            commit(1, 500, 400),
            commit(2, 2000, 400),
            commit(3, 2000, 400),
        ];
        date_back(&mut commits, 1);
        assert_eq!(dated(&commits), [500, 1600, 2000].map(at));
        // The others of them are seen a moment later, and the next step soon after those.
        commits.extend([commit(4, 2010, 250), commit(5, 2110, 250)]);
        date_back(&mut commits, 3);
        assert_eq!(dated(&commits), [500, 1360, 1610, 1860, 2110].map(at));
        assert_eq!(commits[1].seen, at(2000));
        // What comes at its time stays.
        commits.push(commit(6, 2340, 240));
        date_back(&mut commits, 5);
        assert_eq!(dated(&commits)[4..], [2110, 2340].map(at));
    }
}
