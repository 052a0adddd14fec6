//! The books of a run of the sample job: killed once, a worker lost once, finished.

use std::{collections::BTreeMap, sync::LazyLock};

use mks2_proto::{
    ids::{Generation, Incarnation, MemberId, RunId, Term},
    job::{Job, load},
};

use crate::{
    journal::{Entry, GenerationMember, History, Raw, Record, Snapshot},
    ledger::Books,
    state::Checkpoint,
};

pub(super) const LANES: u32 = 4;
pub(super) const TOTAL: u64 = 90;
/// Name, steps before, last step and samples of a step.
const STAGES: [(&str, u64, u64, u64); 3] = [
    ("bootstrap", 0, 40, 16),
    ("memory", 40, 70, 16),
    ("with-memory", 70, 90, 8),
];

/// Step, generation, stage, samples, workers.
pub(super) type Line = (u64, u64, String, u64, u32);

#[derive(Clone)]
pub(super) struct Book {
    pub(super) records: Vec<Record>,
    pub(super) lines: Vec<Line>,
}

pub(super) fn job() -> Job {
    static JOB: LazyLock<Job> = LazyLock::new(|| {
        load::parse(include_str!("../../../../proto/src/job/sample.toml")).expect("a job")
    });
    JOB.clone()
}

pub(super) fn id(name: &str) -> MemberId {
    MemberId::new(name).expect("good")
}

fn stage_of(step: u64) -> (&'static str, u64, u64, u64) {
    let found = STAGES.into_iter().find(|stage| step <= stage.2);
    found.expect("a step of the job")
}

/// A generation of members with their lanes.
fn formed(number: u64, after_step: u64, members: &[(&str, &[u32])], lost: &[&str]) -> Entry {
    let member = |(name, lanes): &(&str, &[u32])| GenerationMember {
        member: id(name),
        incarnation: Incarnation(7),
        host: "here".into(),
        data_address: "127.0.0.1:9000".into(),
        lanes: lanes.to_vec(),
    };
    Entry::GenerationFormed {
        generation: Generation(number),
        members: members.iter().map(member).collect(),
        after_step,
        lost: lost.iter().map(|name| id(name)).collect(),
        left: Vec::new(),
        joined: Vec::new(),
    }
}

pub(super) fn checkpoint(step: u64) -> Checkpoint {
    let (stage, _, last, _) = stage_of(step);
    Checkpoint {
        step,
        stage: stage.into(),
        is_final: step == last,
        manifest_path: format!("checkpoints/step-{step:08}/manifest.json"),
        manifest_digest: format!("{step:064x}"),
        uncompared: false,
    }
}

fn committed(step: u64, released: &[u64]) -> Entry {
    Entry::CheckpointCommitted {
        checkpoint: checkpoint(step),
        released: released.to_vec(),
    }
}

fn created(job_digest: String) -> Entry {
    Entry::RunCreated {
        run_id: RunId::new("sample-1").expect("good"),
        job_name: "sample".into(),
        job_digest,
        corpora: BTreeMap::from([("emoji".into(), "e".into()), ("colors".into(), "c".into())]),
        program_version: "0".into(),
    }
}

fn record(term: u64, entry: Entry) -> Record {
    Record {
        number: 0,
        term: Term(term),
        writer: Incarnation(term),
        at_ms: 1_000,
        previous: String::new(),
        entry,
        books: crate::books::Books::default(),
        digest: String::new(),
    }
}

impl Book {
    /// Two workers; one is lost in step 31; everything is killed after the checkpoint of step 40
    /// and begins again from it.
    pub(super) fn finished() -> Self {
        static BOOK: LazyLock<Book> = LazyLock::new(Book::written);
        BOOK.clone()
    }

    fn written() -> Self {
        let both: &[(&str, &[u32])] = &[("worker-0", &[0, 1]), ("worker-1", &[2, 3])];
        let apart: &[(&str, &[u32])] = &[("worker-0", &[0, 2]), ("worker-1", &[1, 3])];
        let entries = [
            (1, Entry::TermTaken),
            (1, created(load::digest(&job()).expect("encoded"))),
            (1, formed(1, 0, both, &[])),
            (1, committed(20, &[])),
            (
                1,
                formed(2, 30, &[("worker-0", &[0, 1, 2, 3])], &["worker-1"]),
            ),
            (1, committed(40, &[20])),
            (2, Entry::TermTaken),
            (2, formed(3, 40, apart, &[])),
            (2, committed(60, &[])),
            (2, committed(70, &[])),
            (2, committed(90, &[])),
            (2, Entry::RunFinished { step: TOTAL }),
        ];
        let line = |step| {
            let (generation, workers) = match step {
                ..=30 => (1, 2),
                31..=40 => (2, 1),
                _ => (3, 2),
            };
            let (stage, before, _, batch) = stage_of(step);
            (
                step,
                generation,
                stage.to_owned(),
                (step - before) * batch,
                workers,
            )
        };
        let mut book = Self {
            records: entries.map(|(term, entry)| record(term, entry)).to_vec(),
            lines: (1..=TOTAL).map(line).collect(),
        };
        book.reseal();
        book
    }

    /// The same run until its first checkpoint, one more of step 40, and back to the first.
    pub(super) fn rewound() -> Self {
        let mut book = Self::finished();
        book.records.truncate(4);
        let alone: &[(&str, &[u32])] = &[("worker-0", &[0, 1, 2, 3])];
        let back = Entry::RunRewound {
            to_step: 20,
            dropped: vec![40],
            lost: Vec::new(),
        };
        let later = [
            record(1, committed(40, &[])),
            record(2, Entry::TermTaken),
            record(2, back),
            record(2, formed(2, 20, alone, &[])),
        ];
        book.records.extend(later);
        book.reseal();
        book.lines.truncate(25);
        for line in &mut book.lines[20..] {
            (line.1, line.4) = (2, 1);
        }
        book
    }

    /// The beginning of a run in a directory in which another job came to no checkpoint.
    pub(super) fn after_another_job() -> Self {
        let mut book = Self::finished();
        book.records.truncate(3);
        book.records[1].entry = created("another".into());
        let digest = load::digest(&job()).expect("encoded");
        let alone: &[(&str, &[u32])] = &[("worker-0", &[0, 1, 2, 3])];
        let later = [
            record(2, Entry::TermTaken),
            record(2, created(digest)),
            record(2, formed(2, 0, alone, &[])),
        ];
        book.records.extend(later);
        book.reseal();
        book.lines.truncate(5);
        for line in &mut book.lines {
            (line.1, line.4) = (2, 1);
        }
        book
    }

    /// Numbers the records and makes the chain whole.
    pub(super) fn reseal(&mut self) {
        let mut last = String::new();
        for (number, record) in (1..).zip(&mut self.records) {
            record.number = number;
            record.previous = last;
            *record = record.clone().sealed().expect("sealed");
            last = record.digest.clone();
        }
    }

    /// Changes entries and makes the chain whole.
    pub(super) fn change(&mut self, change: impl Fn(&mut Entry)) {
        let before = self.records.clone();
        self.records
            .iter_mut()
            .for_each(|record| change(&mut record.entry));
        assert_ne!(self.records, before, "there is no such record");
        self.reseal();
    }

    pub(super) fn line(&mut self, step: u64) -> &mut Line {
        let line = self.lines.iter_mut().find(|line| line.0 == step);
        line.expect("a line")
    }

    /// Numbers of lines that may be there behind these records.
    pub(super) fn possible_lines(&self) -> Vec<u64> {
        let mut lines = vec![0];
        for record in &self.records {
            match &record.entry {
                Entry::GenerationFormed { after_step, .. } => {
                    lines = vec![*after_step, after_step + 5]
                }
                Entry::CheckpointCommitted { checkpoint, .. } => {
                    // After that of step 40 nobody went on in this generation.
                    let more = if [40, TOTAL].contains(&checkpoint.step) {
                        0
                    } else {
                        5
                    };
                    lines = vec![checkpoint.step, checkpoint.step + more];
                }
                Entry::TermTaken if record.number > 1 => lines = vec![40],
                _ => {}
            }
        }
        lines
    }

    pub(super) fn raw(&self) -> Raw {
        let bytes = |record: &Record| serde_json::to_vec(record).expect("encoded").into();
        let records = self
            .records
            .iter()
            .map(|record| (record.number, bytes(record)));
        Raw {
            records: records.collect(),
            snapshots: BTreeMap::new(),
        }
    }

    pub(super) fn raw_with_snapshot(&self, number: u64) -> Raw {
        let mut raw = self.raw();
        let mut history = History::default();
        let covered = &self.records[..usize::try_from(number).expect("small")];
        covered.iter().for_each(|record| history.fold(record));
        let mut snapshot = Snapshot {
            number,
            last: covered.last().expect("records").digest.clone(),
            history,
            digest: String::new(),
        };
        snapshot.digest = snapshot.expected_digest().expect("encoded");
        let bytes = serde_json::to_vec(&snapshot).expect("encoded");
        raw.snapshots.insert(number, bytes.into());
        raw
    }

    pub(super) fn metrics(&self) -> Vec<u8> {
        let line = |(step, generation, stage, samples, workers): &Line| {
            let line = serde_json::json!({
                "step": step, "epoch": 0.5, "stage": stage, "loss": 1.5, "samples": samples,
                "workers": workers, "generation": generation,
            });
            format!("{line}\n")
        };
        self.lines.iter().map(line).collect::<String>().into_bytes()
    }

    pub(super) fn read(&self) -> Books {
        self.read_with(&self.raw())
    }

    pub(super) fn read_with(&self, raw: &Raw) -> Books {
        Books::read(&job(), raw, &self.metrics()).expect("a job that can be encoded")
    }
}
