//! Why a run ended: the first cause in time, with rank, host and log.
//!
//! A worker that reached the coordinator tells it its failure. One that did not (libtorch is
//! missing, it was killed while starting) leaves an exit code and the end of its log.

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::process::ExitStatus;

use mks2_proto::failure::{ExitCode, Failure};
use mks2_proto::job::Corpus;

use super::fleet::Worker;

/// How much of a log's end is read.
const TAIL_BYTES: u64 = 64 << 10;
/// Longest quotation from a log.
const QUOTE_CHARS: usize = 300;

/// How a process ended, in words: `it was killed by signal 9 (SIGKILL)`.
pub(crate) fn ending(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("it ended with exit code {code}"),
        (None, Some(9)) => {
            "it was killed by signal 9 (SIGKILL), by somebody or for want of memory".into()
        }
        (None, Some(number)) => match signal_name(number) {
            Some(name) => format!("it was killed by signal {number} ({name})"),
            None => format!("it was killed by signal {number}"),
        },
        (None, None) => "it ended".into(),
    }
}

fn signal_name(number: i32) -> Option<&'static str> {
    Some(match number {
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGHUP => "SIGHUP",
        libc::SIGILL => "SIGILL",
        libc::SIGINT => "SIGINT",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGTERM => "SIGTERM",
        _ => return None,
    })
}

/// The failure of a worker that ended before the coordinator knew it.
pub(crate) fn of_start(rank: u32, worker: &Worker, status: ExitStatus) -> Failure {
    let tail = tail(&worker.log, worker.log_start);
    let log = worker.log.display();
    let told = libtorch_missing(&tail)
        .or_else(|| three_lines(&tail))
        .or_else(|| event(&tail));
    let known = status
        .code()
        .and_then(|code| u32::try_from(code).ok())
        .map(ExitCode::from_code);
    match told {
        Some(mut failure) => {
            if failure.exit == ExitCode::Internal {
                failure.exit = known.unwrap_or(ExitCode::Internal);
            }
            failure.what = format!("{} could not start: {}", worker.member, failure.what);
            failure.why = format!("{} (rank {rank}, this machine, log {log})", failure.why);
            failure
        }
        None => Failure::new(
            known.unwrap_or(ExitCode::RunFailed),
            format!("{} ended before it joined the run", worker.member),
            format!(
                "{}; {} (rank {rank}, this machine)",
                ending(status),
                last_words(&tail)
            ),
            format!("read its log: {log}"),
        ),
    }
}

/// The failure of a coordinator of its own process that ended, or does not listen.
pub(crate) fn of_coordinator(log: &Path, ended: Option<ExitStatus>) -> Failure {
    let tail = tail(log, 0);
    let shown = log.display();
    let code = ended.and_then(|status| status.code());
    let known = code.and_then(|code| u32::try_from(code).ok());
    let exit = known.map_or(ExitCode::Internal, ExitCode::from_code);
    if let Some(mut failure) = three_lines(&tail) {
        failure.exit = exit;
        failure.why = format!("{} (log {shown})", failure.why);
        return failure;
    }
    let how = ended.map_or_else(|| "it does not listen".to_owned(), ending);
    Failure::new(
        exit,
        "the coordinator ended too early",
        format!("{how}; {}", last_words(&tail)),
        format!("read its log: {shown}"),
    )
}

/// Adds to a failure that the coordinator tells where the log of its worker is.
pub(crate) fn with_log(mut failure: Failure, workers: &[Worker]) -> Failure {
    let named = workers
        .iter()
        .find(|worker| mentions(&failure, worker.member.as_str()));
    if let Some(worker) = named {
        let death = worker
            .exit
            .filter(|status| worker.unprompted && status.code().is_none());
        // The coordinator may have told it already.
        let death = death
            .map(ending)
            .filter(|death| !failure.why.contains(death))
            .map(|death| format!("; {death}"))
            .unwrap_or_default();
        failure.why = format!("{}{death} (log {})", failure.why, worker.log.display());
    } else if let Some(folder) = workers.first().and_then(|worker| worker.log.parent()) {
        failure.why = format!("{} (logs {})", failure.why, folder.display());
    }
    failure
}

/// The rank of a member among the workers of this launcher.
pub(crate) fn rank_of(member: &str, workers: &[Worker]) -> Option<u32> {
    let rank = workers
        .iter()
        .position(|worker| worker.member.as_str() == member)?;
    u32::try_from(rank).ok()
}

/// Names the corpus of the job whose URL stands in the failure.
pub(crate) fn with_corpus(mut failure: Failure, data: &BTreeMap<String, Corpus>) -> Failure {
    let about = data.iter().filter(|(_, corpus)| {
        let url = mks2_dataset::store::shown(&corpus.url);
        failure.what.contains(&url) || failure.why.contains(&url)
    });
    // One URL may begin like another one.
    let about = about.max_by_key(|(_, corpus)| corpus.url.len());
    if let Some((name, _)) = about {
        failure.what = format!("corpus '{name}': {}", failure.what);
    }
    failure
}

/// The member's name stands in the failure, and is not the beginning of a longer one.
fn mentions(failure: &Failure, member: &str) -> bool {
    [&failure.what, &failure.why].iter().any(|text| {
        text.match_indices(member).any(|(at, _)| {
            !text[at + member.len()..].starts_with(|next: char| next.is_ascii_digit())
        })
    })
}

/// The end of a log, from `start` on.
fn tail(log: &Path, start: u64) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(
            start.max(length.saturating_sub(TAIL_BYTES)),
        ))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read()
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

/// The dynamic loader's complaint.
fn libtorch_missing(tail: &str) -> Option<Failure> {
    let line = tail.lines().rev().find(|line| {
        line.contains("error while loading shared libraries") || line.contains("undefined symbol")
    })?;
    let reason = line.split_once(": ").map_or(line, |(_, reason)| reason);
    Some(Failure::environment(
        "libtorch cannot be loaded",
        shortened(reason),
        "run `cargo xtask setup` and build again, or set LIBTORCH to a libtorch 2.11.0",
    ))
}

/// A failure printed as three lines.
fn three_lines(tail: &str) -> Option<Failure> {
    let lines: Vec<&str> = tail.lines().collect();
    lines.windows(3).rev().find_map(|window| {
        Some(Failure::new(
            ExitCode::Internal,
            shortened(window[0].trim().strip_prefix("error: ")?),
            shortened(window[1].trim().strip_prefix("why: ")?),
            shortened(window[2].trim().strip_prefix("fix: ")?),
        ))
    })
}

/// A failure logged as an event with the fields `why` and `fix`, as text or JSON.
fn event(tail: &str) -> Option<Failure> {
    tail.lines()
        .rev()
        .find_map(|line| json_event(line).or_else(|| text_event(line)))
}

fn text_event(line: &str) -> Option<Failure> {
    let (_, rest) = line.split_once("ERROR")?;
    let (what, rest) = rest.split_once(" why=")?;
    let (why, rest) = rest.split_once(" fix=")?;
    let cure = rest.split_once(" exit=").map_or(rest, |(cure, _)| cure);
    let what = what.split_once(": ").map_or(what, |(_, what)| what);
    Some(Failure::new(
        ExitCode::Internal,
        shortened(what),
        shortened(why),
        shortened(cure),
    ))
}

fn json_event(line: &str) -> Option<Failure> {
    let value: serde_json::Value = serde_json::from_str(line).ok()?;
    let fields = value.get("fields").unwrap_or(&value);
    let text = |name: &str| {
        fields
            .get(name)
            .and_then(serde_json::Value::as_str)
            .map(shortened)
    };
    let (what, why, cure) = (text("message")?, text("why")?, text("fix")?);
    Some(Failure::new(ExitCode::Internal, what, why, cure))
}

fn last_words(tail: &str) -> String {
    match tail.lines().rev().find(|line| !line.trim().is_empty()) {
        Some(line) => format!("its last words: {}", shortened(line)),
        None => "its log is empty".into(),
    }
}

fn shortened(text: &str) -> String {
    let text = text.trim();
    match text.char_indices().nth(QUOTE_CHARS) {
        Some((cut, _)) => format!("{} ...", &text[..cut]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use mks2_proto::ids::MemberId;

    use super::*;

    fn failure_of(log_text: &str, raw_status: i32) -> Failure {
        let folder = tempfile::tempdir().expect("a folder");
        let log = folder.path().join("worker-1.log");
        std::fs::write(&log, log_text).expect("written");
        let member = MemberId::new("worker-1").expect("good");
        let worker = Worker {
            pid: 1,
            member,
            log,
            log_start: 0,
            exit: None,
            unprompted: true,
        };
        of_start(1, &worker, ExitStatus::from_raw(raw_status))
    }

    #[test]
    fn a_missing_libtorch_is_an_environment_failure_with_its_cure() {
        let log = "mks2-worker: error while loading shared libraries: libtorch_cpu.so: cannot \
            open shared object file: No such file or directory\n";
        let failure = failure_of(log, 127 << 8);
        assert_eq!(failure.exit.code(), 6);
        assert!(failure.why.contains("libtorch_cpu.so") && failure.why.contains("worker-1.log"));
        assert!(failure.cure.contains("cargo xtask setup"), "{failure}");
    }

    #[test]
    fn the_workers_own_words_are_kept() {
        let lines =
            "noise\nerror: no such device\n  why: this machine has no CUDA\n  fix: use cpu\n";
        let failure = failure_of(lines, 6 << 8);
        assert_eq!((failure.exit.code(), failure.cure.as_str()), (6, "use cpu"));
        assert!(
            failure
                .what
                .contains("worker-1 could not start: no such device"),
            "{failure}"
        );
        let text = "2026 ERROR mks2_worker: no such device why=no CUDA here fix=use cpu exit=6\n";
        assert_eq!(failure_of(text, 6 << 8).cure, "use cpu");
        let json = r#"{"level":"ERROR","fields":{"message":"m","why":"w","fix":"f","exit":3}}"#;
        assert_eq!(failure_of(json, 3 << 8).exit.code(), 3);
    }

    #[test]
    fn a_silent_death_is_told_by_its_signal() {
        let failure = failure_of("", 11);
        assert!(failure.why.contains("signal 11 (SIGSEGV)"), "{failure}");
        assert!(failure.why.contains("its log is empty"), "{failure}");
        assert_eq!(failure.exit.code(), 7);
    }

    #[test]
    fn a_corpus_is_called_by_its_name() {
        let corpus = Corpus {
            url: "/data/emoji".into(),
        };
        let data = BTreeMap::from([("pictures".to_owned(), corpus)]);
        let failure = Failure::data("the corpus at /data/emoji is not whole", "why", "cure");
        let named = with_corpus(failure, &data);
        assert_eq!(
            named.what,
            "corpus 'pictures': the corpus at /data/emoji is not whole"
        );
        let other = with_corpus(Failure::data("another thing", "why", "cure"), &data);
        assert_eq!(other.what, "another thing");
    }

    #[test]
    fn a_name_is_not_found_in_a_longer_one() {
        let failure = Failure::run_failed("worker-11 was lost", "why", "cure");
        assert!(mentions(&failure, "worker-11"));
        assert!(!mentions(&failure, "worker-1"));
    }
}
