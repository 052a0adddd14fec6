//! What goes wrong around the protocol, and when: all of it is known before a simulation begins.

use std::{fmt, time::Duration};

use mks2_proto::v1::Phase;

use super::{chance::Chance, network::Host, store::Trouble};

/// Hosts of coordinators.
pub(super) const OFFICES: [Host; 2] = [Host(100), Host(101)];
/// When all is quiet again, at the latest.
pub(super) const QUIET: Duration = Duration::from_secs(30);

/// Something that goes wrong, and when.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Fault {
    pub(super) at: Duration,
    pub(super) what: What,
}

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum What {
    /// `kill -9`, and somebody starts it again later.
    KillWorker(Host),
    /// `SIGSTOP` and `SIGCONT`.
    PauseWorker(Host, Duration),
    /// It beats, and does nothing.
    StallWorker(Host, Duration),
    /// It fails by itself.
    FailWorker(Host),
    /// The next time that it comes to a phase, and a moment later.
    Appointment(Host, Phase, Duration, Act),
    KillOffice,
    PauseOffice(Duration),
    /// A second coordinator is started beside the first.
    Rival,
    /// The same, while the first stands still.
    Replace(Duration),
    /// The coordinator's clocks jump: one forward, that on the wall anywhere.
    Jump(Duration, i64),
    Cut(Host, Host, Duration),
    /// Cut off from everybody.
    Isolate(Host, Duration),
    /// Connections break.
    Reset(Host, Host),
    SlowNetwork(Duration),
    Store(Trouble, Duration),
    /// Somebody asks the run to stop.
    Stop,
    KillAll,
}

/// What happens to a worker by appointment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Act {
    Kill,
    Pause(Duration),
    /// Its connections to another one break.
    Reset(Host),
}

/// Phases in which it matters who has seen what.
const PHASES: [Phase; 7] = [
    Phase::Gathering,
    Phase::Reducing,
    Phase::Voting,
    Phase::Updating,
    Phase::Checkpointing,
    Phase::Evaluating,
    Phase::Regrouping,
];

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3} s: {:?}", self.at.as_secs_f64(), self.what)
    }
}

/// The weather of a seed: faults that come close together, so that one meets what another has left.
pub(super) fn forecast(seed: u64, workers: u8) -> Vec<Fault> {
    let mut chance = Chance::new(seed, "weather");
    let mut at = chance.millis(0, 4_000);
    let number = chance.below(7);
    let mut faults = Vec::new();
    for _ in 0..number {
        let what = any(&mut chance, workers);
        faults.push(Fault { at, what });
        at += match chance.below(4) {
            0 => chance.millis(0, 5_000),
            1 => chance.millis(0, 20),
            _ => chance.millis(0, 600),
        };
    }
    faults
}

fn any(chance: &mut Chance, workers: u8) -> What {
    let worker = |chance: &mut Chance| Host(chance.below(workers.into()).to_le_bytes()[0]);
    let short = |chance: &mut Chance| match chance.one_in(3) {
        true => chance.millis(50, 800),
        false => chance.millis(500, 8_000),
    };
    let anybody = |chance: &mut Chance| match chance.one_in(3) {
        true => chance.pick(&OFFICES),
        false => worker(chance),
    };
    match chance.below(28) {
        0..=2 => What::KillWorker(worker(chance)),
        3..=5 => What::PauseWorker(worker(chance), short(chance)),
        6 => What::StallWorker(worker(chance), chance.millis(500, 20_000)),
        7 => What::FailWorker(worker(chance)),
        8 | 9 => What::KillOffice,
        10 | 11 => What::PauseOffice(short(chance)),
        12 => What::Rival,
        13 => {
            let wall = i64::try_from(chance.below(7_200_000)).unwrap_or_default() - 3_600_000;
            What::Jump(short(chance), wall)
        }
        14 | 15 => What::Cut(anybody(chance), worker(chance), short(chance)),
        16 => What::Isolate(anybody(chance), short(chance)),
        17 => What::Reset(anybody(chance), worker(chance)),
        18 => What::SlowNetwork(short(chance)),
        19 | 20 => {
            let trouble = chance.pick(&[Trouble::Slow, Trouble::Failing, Trouble::Late]);
            What::Store(trouble, short(chance))
        }
        21 => What::Stop,
        22 => What::KillAll,
        23 => What::Replace(chance.millis(500, 14_000)),
        _ => {
            let phase = chance.pick(&PHASES);
            let act = match chance.below(4) {
                0 => Act::Pause(short(chance)),
                1 => Act::Reset(worker(chance)),
                _ => Act::Kill,
            };
            What::Appointment(worker(chance), phase, chance.millis(0, 2), act)
        }
    }
}
