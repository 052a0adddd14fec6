//! What `mks2 train` refuses before it trains: three lines and the right exit code.

use std::net::TcpListener;
use std::process::Command;

use crate::rights;
use crate::support::{Ended, JOB, Place, SLEEPER};

/// A worker where none should come to be started; the run ends soon if it is.
const NEVER_STARTED: &str = "exit 1";

fn refused(mut command: Command, code: i32, words: &[&str]) {
    Ended::from(command.output().expect("runs")).refused(code, words);
}

#[test]
fn a_missing_worker_program_is_an_environment_failure() {
    let place = Place::new();
    let mut command = place.mks2(&["train", "job.toml", "--run", "run"]);
    command.env("MKS2_WORKER", place.path("no-such-worker"));
    refused(
        command,
        6,
        &[
            "no-such-worker",
            "MKS2_WORKER",
            "cargo build -p mks2-worker",
        ],
    );
}

#[test]
fn a_worker_that_cannot_be_executed_is_an_environment_failure() {
    let place = Place::new();
    let mut command = place.mks2(&["train", "job.toml", "--run", "run"]);
    command.env("MKS2_WORKER", place.path("job.toml"));
    refused(
        command,
        6,
        &["cannot be started", "cargo build -p mks2-worker"],
    );
}

#[test]
fn a_missing_libtorch_is_told_with_its_cure() {
    let loader = "echo 'mks2-worker: error while loading shared libraries: libtorch_cpu.so: \
        cannot open shared object file: No such file or directory' >&2; exit 127";
    let place = Place::new();
    let words = [
        "libtorch cannot be loaded",
        "libtorch_cpu.so",
        "worker-0.log",
        "xtask setup",
    ];
    refused(place.train(loader, &[]), 6, &words);
}

#[test]
fn the_words_of_a_worker_that_cannot_start_are_shown() {
    let script = "echo 'error: cuda cannot be used' >&2; echo '  why: this machine has none' >&2; \
        echo '  fix: set device = \"cpu\"' >&2; exit 6";
    let place = Place::new();
    refused(
        place.train(script, &[]),
        6,
        &["cuda cannot be used", "device = \"cpu\"", "rank 0"],
    );
}

#[test]
fn a_worker_that_dies_silently_is_named_with_its_log() {
    let place = Place::new();
    let words = ["worker-1", "signal 9", "logs/worker-1.log"];
    let script = "[ $RANK = 1 ] && kill -9 $$; exec sleep 600";
    refused(place.train(script, &["--workers", "2"]), 7, &words);
}

#[test]
fn more_workers_than_lanes_are_refused() {
    let place = Place::new();
    refused(
        place.train(SLEEPER, &["--workers", "5"]),
        3,
        &["5 workers", "4 lanes"],
    );
}

#[test]
fn lanes_that_do_not_divide_the_batch_are_refused() {
    let place = Place::with_job(&JOB.replace("lanes = 4", "lanes = 3"));
    let words = [
        "stage.bootstrap.batch_size = 16",
        "lanes = 3 does not divide",
        "15 or 18",
    ];
    refused(place.train(SLEEPER, &[]), 3, &words);
}

#[test]
fn a_missing_corpus_is_refused() {
    let place = Place::with_job(&JOB.replace("corpora/emoji", "corpora/nowhere"));
    refused(
        place.train(SLEEPER, &[]),
        4,
        &["corpora/nowhere", "mks2 data import"],
    );
}

#[test]
fn an_empty_corpus_is_refused() {
    let place = Place::new();
    place.write_corpus("emoji", 0);
    refused(place.train(SLEEPER, &[]), 4, &["corpora/emoji"]);
}

#[test]
fn a_run_directory_that_cannot_be_made_is_refused() {
    let place = Place::new();
    let mut command = place.train(SLEEPER, &[]);
    command.args(["--set", "seed=1"]);
    place.write("run", "a file in the way");
    refused(command, 5, &["run", "cannot be"]);
}

#[test]
fn a_taken_port_is_an_environment_failure() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let place = Place::new();
    let words = [address.as_str(), "another program", "port 0"];
    refused(place.train(SLEEPER, &["--listen", &address]), 6, &words);
}

#[test]
fn a_full_disk_is_a_storage_failure() {
    // A mount namespace lets root have a file system of its own, a user namespace anybody. Where a
    // machine gives neither, a limit of the process refuses the write, at least.
    let as_root = ["--mount", "--propagation", "private"];
    let as_anybody = [["--user", "--map-root-user"].as_slice(), &as_root].concat();
    let full = on_a_full_disk(&as_anybody).or_else(|| on_a_full_disk(&as_root));
    match full {
        Some(ended) => ended.refused(5, &["no space left"]),
        None => {
            println!("no mount namespace here: a limit of file sizes takes the full disk's place");
            within_a_limit(1).refused(5, &["too large", "ulimit -f"]);
        }
    }
}

/// `mks2 train` where the run directory is a file system that is full from the start; none if the
/// machine gives no namespace for it.
fn on_a_full_disk(namespaces: &[&str]) -> Option<Ended> {
    let place = Place::new();
    std::fs::create_dir(place.path("run")).expect("made");
    let script = "mount -t tmpfs -o size=16k,nr_inodes=64 none run && touch mounted || exit 99; \
         head -c 16384 /dev/zero > run/filler; exec \"$0\" train job.toml --run run";
    let mut command = Command::new("unshare");
    command.args(namespaces).args(["sh", "-c", script]);
    let ended = in_a_shell(command, &place).ok()?;
    place.path("mounted").exists().then_some(ended)
}

#[test]
fn a_limit_of_file_sizes_is_a_storage_failure() {
    // No byte may be written: the first file fails, the lock of the run directory.
    within_a_limit(0).refused(5, &["run", "too large"]);
    // The lock and the journal fit, the job file does not.
    within_a_limit(1).refused(5, &["config.resolved.toml", "too large", "ulimit -f"]);
}

/// `mks2 train` of which no file may grow beyond so many blocks of 512 bytes.
fn within_a_limit(blocks: u32) -> Ended {
    let place = Place::new();
    // The signal would kill the program before it could say anything.
    let script = format!(
        "ulimit -f {blocks} && trap '' XFSZ || exit 99; exec \"$0\" train job.toml --run run"
    );
    let mut command = Command::new("sh");
    command.args(["-c", &script]);
    in_a_shell(command, &place).expect("sh runs")
}

/// Runs a shell whose `$0` is `mks2`, to its end.
fn in_a_shell(mut shell: Command, place: &Place) -> std::io::Result<Ended> {
    place.settle(&mut shell);
    shell
        .arg(env!("CARGO_BIN_EXE_mks2"))
        .env("MKS2_WORKER", place.worker(NEVER_STARTED));
    let ended = Ended::from(shell.output()?);
    assert!(!ended.err.contains("panicked"), "{}", ended.err);
    Ok(ended)
}

#[test]
fn a_run_directory_without_the_right_to_write_is_refused() {
    let place = Place::new();
    let worker = place.worker(NEVER_STARTED);
    for (run, what) in [
        ("locked/run", "cannot be made"),
        ("locked", "cannot be written"),
    ] {
        let mut command = rights::mks2_beside_locked(&place.path("."));
        place.settle(&mut command);
        command
            .args(["train", "job.toml", "--run", run])
            .env("MKS2_WORKER", &worker);
        refused(
            command,
            5,
            &[run, what, "permission denied", "the right to it"],
        );
    }
}
