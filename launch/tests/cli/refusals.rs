//! What `mks2 train` refuses before it trains: three lines and the right exit code.

use std::net::TcpListener;
use std::process::Command;

use crate::support::{Ended, JOB, Place, SLEEPER};

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
    // A file system of its own that is full from the start, in a namespace of its own.
    let place = Place::new();
    std::fs::create_dir(place.path("run")).expect("made");
    let worker = place.worker(SLEEPER);
    let script = format!(
        "mount -t tmpfs -o size=16k,nr_inodes=64 none run || exit 99; \
         head -c 16384 /dev/zero > run/filler; exec {} train job.toml --run run",
        env!("CARGO_BIN_EXE_mks2"),
    );
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script]);
    command
        .current_dir(place.path("."))
        .env("MKS2_WORKER", worker);
    match command.output() {
        Ok(output) if output.status.code() == Some(5) => {
            Ended::from(output).refused(5, &["no space left"]);
        }
        Ok(output) if matches!(output.status.code(), Some(1 | 99)) => {
            let words = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(
                words.contains("unshare") || words.contains("mount"),
                "{words}"
            );
            println!(
                "not tested: this machine gives no mount namespace ({})",
                words.trim()
            );
        }
        Ok(output) => panic!(
            "{:?}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        ),
        Err(error) => println!("not tested: there is no unshare here ({error})"),
    }
}
