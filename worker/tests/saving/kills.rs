//! A process that saves one checkpoint after the other is killed at random moments, again and again.
//! The last checkpoint that counts always loads and holds what it should, and the next process goes
//! on from it.

use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use mks2_proto::splitmix;

use crate::workshop::{Workshop, parts, strays, whole};

/// Where the process that is killed works.
const RUN: &str = "MKS2_TEST_SAVING";
/// It saves the end of a stage, and ends.
const LAST: &str = "MKS2_TEST_SAVING_LAST";
/// Kills that every run of the tests makes.
const SHARE: usize = 60;
/// The longest that a save is waited for.
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn a_share_of_the_kills_leaves_a_checkpoint_that_loads() {
    kill(SHARE);
}

#[test]
#[ignore = "takes minutes; CONTRIBUTING.md has the command"]
fn a_thousand_kills_leave_a_checkpoint_that_loads() {
    kill(1000);
}

/// The process that is killed: this test alone, started by the others.
#[test]
#[ignore = "started by the other tests"]
fn victim() {
    let Some(run) = std::env::var_os(RUN) else {
        return;
    };
    let run = Path::new(&run);
    let before = whole(run).map_or(0, |latest| latest.step);
    let mut workshop = Workshop::open(run, parts(run));
    let resumed = workshop.running.resumed_from.as_ref();
    assert_eq!(resumed.map_or(0, |from| from.step), before);
    let mut out = std::io::stdout();
    let mut say = |words: String| {
        let said = out.write_all(format!("\n{words}\n").as_bytes());
        said.and_then(|()| out.flush()).expect("said");
    };
    let is_last = std::env::var_os(LAST).is_some();
    for step in before + 1.. {
        say(format!("saving {step}"));
        workshop.save(step, is_last);
        workshop.saver.settle().expect("saved");
        say(format!("saved {step}"));
        if is_last {
            return;
        }
    }
}

/// One that works, and what it says.
struct Victim {
    process: Child,
    words: BufReader<ChildStdout>,
    /// The last step that it called saved.
    saved: u64,
}

impl Victim {
    fn start(run: &Path, is_last: bool) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["kills::victim", "--exact", "--ignored", "--nocapture"]);
        command.env(RUN, run).stdout(Stdio::piped());
        command.stderr(File::create(run.with_extension("log")).expect("a log"));
        if is_last {
            command.env(LAST, "1");
        }
        let mut process = command.spawn().expect("started");
        let words = BufReader::new(process.stdout.take().expect("piped"));
        Self {
            process,
            words,
            saved: 0,
        }
    }

    /// The next thing that it says; none when it has ended.
    fn next(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            if self.words.read_line(&mut line).expect("read") == 0 {
                return None;
            }
            let line = line.trim_end();
            if let Some(step) = line.strip_prefix("saved ") {
                self.saved = step.parse().expect("a step");
            }
            if line.starts_with("sav") {
                return Some(line.to_owned());
            }
        }
    }

    /// Ends it in the midst of its work, and hears its last words.
    fn kill(mut self) -> u64 {
        self.process.kill().expect("killed");
        while self.next().is_some() {}
        self.process.wait().expect("reaped");
        self.saved
    }
}

#[expect(clippy::print_stdout, reason = "what was met belongs to the test")]
fn kill(count: usize) {
    let mut chance = Chance::new();
    let folder = tempfile::tempdir().expect("a folder");
    let run = folder.path().join("run");
    std::fs::create_dir(&run).expect("a folder");
    let (mut typical, mut last, mut with_strays) = (Duration::from_millis(100), 0, 0);
    for number in 1..=count {
        let mut victim = Victim::start(&run, false);
        let log = || std::fs::read_to_string(run.with_extension("log")).unwrap_or_default();
        // In the midst of its first, second or third save.
        for _ in 0..2 * chance.below(3) + 1 {
            let began = Instant::now();
            let said = victim.next();
            let said = said.unwrap_or_else(|| panic!("it has ended by itself:\n{}", log()));
            if said.starts_with("saved") {
                typical = (typical * 7 + began.elapsed()) / 8;
            }
            assert!(began.elapsed() < LIMIT, "it hangs");
        }
        let share = chance.below(1300) as u32;
        std::thread::sleep(typical * share / 1000);
        let saved = victim.kill();
        let latest = whole(&run).map_or(0, |latest| latest.step);
        assert!(latest >= saved, "kill {number}: what was saved is lost");
        assert!(latest >= last, "kill {number}: step {last} is lost");
        last = latest;
        with_strays += usize::from(run.join("objects").exists() && strays(&run) > 0);
    }
    println!("{count} kills, {last} checkpoints, {with_strays} uploads cut; a save {typical:?}");
    let mut survivor = Victim::start(&run, true);
    while survivor.next().is_some() {}
    assert!(survivor.process.wait().expect("ended").success());
    let latest = whole(&run).expect("one");
    assert_eq!((latest.step, latest.is_final), (last + 1, true));
    assert_eq!(strays(&run), 0, "nothing is left behind");
    assert!(with_strays > 0, "no kill has met an upload");
}

/// A stream of numbers; `MKS2_TEST_SEED` gives them again.
struct Chance(u64);

impl Chance {
    #[expect(clippy::print_stdout, reason = "a failed test shows its seed")]
    fn new() -> Self {
        let given = std::env::var("MKS2_TEST_SEED").ok();
        let seed = given.and_then(|text| text.parse().ok());
        let seed = seed.unwrap_or_else(|| RandomState::new().hash_one("seed"));
        println!("MKS2_TEST_SEED={seed}");
        Self(seed)
    }

    /// From 0 to `end`, without it.
    fn below(&mut self, end: usize) -> usize {
        usize::try_from(splitmix::next(&mut self.0) % end as u64).expect("below a usize")
    }
}
