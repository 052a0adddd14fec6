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
    /// Its memory loses a bit of the weights, behind its next update.
    LoseBit(Host),
    /// The next time that it comes to a phase, and a moment later.
    Appointment(Host, Phase, Duration, Act),
    KillOffice,
    PauseOffice(Duration),
    /// A second coordinator is started beside the first.
    Rival,
    /// The same, while the first stands still.
    Replace(Duration),
    /// The next one stands still so soon after its start, for so long, and has a rival meanwhile.
    Stumble(Duration, Duration),
    /// The coordinator's clocks jump: one forward, that on the wall anywhere.
    Jump(Duration, i64),
    Cut(Host, Host, Duration),
    /// What the first sends to the second is lost, and not what it hears.
    HalfCut(Host, Host, Duration),
    /// Cut off from everybody.
    Isolate(Host, Duration),
    /// Nobody hears it, and it hears everybody.
    Mute(Host, Duration),
    /// It hears nobody, and everybody hears it.
    Deafen(Host, Duration),
    /// Connections break.
    Reset(Host, Host),
    SlowNetwork(Duration),
    Store(Trouble, Duration),
    /// SIGTERM: it is to leave at a step border.
    Leave(Host),
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

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    KillWorker,
    PauseWorker,
    StallWorker,
    FailWorker,
    LoseBit,
    Appointment,
    KillOffice,
    PauseOffice,
    Rival,
    Replace,
    Stumble,
    Jump,
    Cut,
    HalfCut,
    Isolate,
    HalfIsolate,
    Reset,
    SlowNetwork,
    Store,
    Leave,
    Stop,
    KillAll,
}

pub(super) const KINDS: [Kind; 22] = [
    Kind::KillWorker,
    Kind::PauseWorker,
    Kind::StallWorker,
    Kind::FailWorker,
    Kind::Appointment,
    Kind::KillOffice,
    Kind::PauseOffice,
    Kind::Rival,
    Kind::Replace,
    Kind::Stumble,
    Kind::Jump,
    Kind::Cut,
    Kind::Isolate,
    Kind::Reset,
    Kind::SlowNetwork,
    Kind::Store,
    Kind::Leave,
    Kind::Stop,
    Kind::KillAll,
    Kind::LoseBit,
    Kind::HalfCut,
    Kind::HalfIsolate,
];

/// The weather of a seed, of some kinds or of any. Few kinds, so that those meet which rarely would
/// among all; and faults close together, so that one meets what another has left.
pub(super) fn forecast(seed: u64, workers: u8, kinds: &[Kind]) -> Vec<Fault> {
    let mut chance = Chance::new(seed, "weather");
    let few = (0..1 + chance.below(4))
        .map(|_| chance.pick(&KINDS))
        .collect();
    let kinds = if kinds.is_empty() {
        few
    } else {
        kinds.to_vec()
    };
    let mut at = chance.millis(0, 4_000);
    let mut faults = Vec::new();
    for _ in 0..chance.below(9) {
        let kind = chance.pick(&kinds);
        let what = fault(kind, &mut chance, workers);
        faults.push(Fault { at, what });
        at += match chance.below(4) {
            0 => chance.millis(0, 5_000),
            1 => chance.millis(0, 20),
            _ => chance.millis(0, 600),
        };
    }
    faults.retain(|fault| fault.at < QUIET - LONGEST);
    faults
}

/// Whether all that goes wrong is that the coordinator is cut off, for longer than a worker may be
/// silent, and for no longer than it waits for its workers.
pub(super) fn is_gentle<'a>(faults: impl Iterator<Item = &'a Fault>) -> bool {
    let mut time = Duration::ZERO;
    for fault in faults {
        match fault.what {
            What::Isolate(host, duration)
            | What::Mute(host, duration)
            | What::Deafen(host, duration)
                if OFFICES.contains(&host) =>
            {
                time += duration;
            }
            _ => return false,
        }
    }
    time < Duration::from_millis(2_500)
}

/// Whether all that goes wrong is that coordinators die and workers are asked to leave.
pub(super) fn is_orderly<'a>(mut faults: impl Iterator<Item = &'a Fault>) -> bool {
    faults.all(|fault| matches!(fault.what, What::KillOffice | What::Leave(_)))
}

/// Longest that a fault lasts, but for a stall.
const LONGEST: Duration = Duration::from_secs(14);

fn fault(kind: Kind, chance: &mut Chance, workers: u8) -> What {
    match kind {
        Kind::KillWorker => What::KillWorker(worker(chance, workers)),
        Kind::PauseWorker => What::PauseWorker(worker(chance, workers), duration(chance)),
        Kind::StallWorker => What::StallWorker(worker(chance, workers), chance.millis(500, 20_000)),
        Kind::FailWorker => What::FailWorker(worker(chance, workers)),
        Kind::LoseBit => What::LoseBit(worker(chance, workers)),
        Kind::Appointment => {
            let phase = chance.pick(&PHASES);
            let act = match chance.below(4) {
                0 => Act::Pause(duration(chance)),
                1 => Act::Reset(worker(chance, workers)),
                _ => Act::Kill,
            };
            What::Appointment(worker(chance, workers), phase, chance.millis(0, 2), act)
        }
        Kind::KillOffice => What::KillOffice,
        Kind::PauseOffice => What::PauseOffice(duration(chance)),
        Kind::Rival => What::Rival,
        Kind::Replace => What::Replace(chance.millis(500, 14_000)),
        Kind::Stumble => What::Stumble(chance.millis(0, 150), chance.millis(500, 14_000)),
        Kind::Jump => {
            let wall = i64::try_from(chance.below(7_200_000)).unwrap_or_default() - 3_600_000;
            What::Jump(duration(chance), wall)
        }
        Kind::Cut => What::Cut(
            anybody(chance, workers),
            worker(chance, workers),
            duration(chance),
        ),
        Kind::HalfCut => {
            let (one, other) = (anybody(chance, workers), worker(chance, workers));
            match chance.one_in(2) {
                true => What::HalfCut(one, other, duration(chance)),
                false => What::HalfCut(other, one, duration(chance)),
            }
        }
        Kind::HalfIsolate => match chance.one_in(2) {
            true => What::Mute(anybody(chance, workers), duration(chance)),
            false => What::Deafen(anybody(chance, workers), duration(chance)),
        },
        Kind::Isolate => What::Isolate(anybody(chance, workers), duration(chance)),
        Kind::Reset => What::Reset(anybody(chance, workers), worker(chance, workers)),
        Kind::SlowNetwork => What::SlowNetwork(duration(chance)),
        Kind::Store => {
            let trouble = chance.pick(&[Trouble::Slow, Trouble::Failing, Trouble::Late]);
            What::Store(trouble, duration(chance))
        }
        Kind::Leave => What::Leave(worker(chance, workers)),
        Kind::Stop => What::Stop,
        Kind::KillAll => What::KillAll,
    }
}

fn worker(chance: &mut Chance, workers: u8) -> Host {
    Host(chance.below(workers.into()).to_le_bytes()[0])
}

fn anybody(chance: &mut Chance, workers: u8) -> Host {
    match chance.one_in(3) {
        true => chance.pick(&OFFICES),
        false => worker(chance, workers),
    }
}

/// Shorter or longer than what makes somebody count as lost.
fn duration(chance: &mut Chance) -> Duration {
    match chance.one_in(3) {
        true => chance.millis(50, 800),
        false => chance.millis(500, 8_000),
    }
}
