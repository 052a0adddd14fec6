//! Deaths on order, for tests: what happens to a worker at a named moment of its run.
//!
//! `MKS2_TEST_MISHAP` holds any number of `ACT@PHASE@STEP@MEMBER`, separated by commas. When that
//! member enters that phase (as in the wire's `Phase`, without its prefix) in the step of that
//! number, counted from 1 over all stages, its first process is killed (`kill`), stopped (`stop`), panics
//! (`panic`), takes half a second longer (`nap`), waits at the gate of that step (`hold`), does nothing more
//! while it goes on beating (`stall`), or loses a bit behind that step's update: `flip-weights` and the other places of
//! [`Flip`](crate::replica::Flip). `computing#3` is the third time that it enters the phase in that step.
//! Without the variable nothing happens. A gate is open once the folder in `MKS2_TEST_GATES` has a file
//! that is called as the step is, or `all`, or the coordinator asks for a border to change the workers at.
#![allow(unsafe_code)]

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use mks2_proto::env;
use mks2_proto::failure::Failure;
use mks2_proto::v1::Phase;

use crate::replica::Flip;

/// The variable.
pub(super) const VARIABLE: &str = "MKS2_TEST_MISHAP";
/// The folder of the gates.
const GATES: &str = "MKS2_TEST_GATES";

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Kill,
    Stop,
    Panic,
    Nap,
    Hold,
    Stall,
    Flip(Flip),
}

/// One death on order.
#[derive(Debug)]
struct Mishap {
    act: Act,
    phase: Phase,
    step: u64,
    /// It happens when the phase is entered in the step as many times from now on.
    left: AtomicU32,
}

impl Mishap {
    fn is_due(&self, phase: Phase, step: u64) -> bool {
        if (self.phase, self.step) != (phase, step) {
            return false;
        }
        let fewer = |left: u32| left.checked_sub(1);
        let before = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer);
        before == Ok(1)
    }
}

/// What was ordered for one member.
#[derive(Debug, Default)]
pub(super) struct Mishaps {
    ordered: Vec<Mishap>,
    /// The moment of a flip has come.
    flip: Mutex<Option<Flip>>,
}

impl Mishaps {
    /// Those of `member` in the environment.
    ///
    /// # Errors
    /// When the variable cannot be understood.
    pub(super) fn read(member: &str) -> Result<Self, Failure> {
        let is_another = |restarts: String| restarts != "0";
        if std::env::var(env::RESTARTS).is_ok_and(is_another) {
            return Ok(Self::default());
        }
        match std::env::var(VARIABLE) {
            Ok(text) => Self::parse(&text, member).ok_or_else(|| {
                Failure::usage(
                    format!("{VARIABLE}={text} cannot be understood"),
                    "it is a list of ACT@PHASE@STEP@MEMBER",
                    "use for example kill@voting@12@worker-1, or unset it",
                )
            }),
            Err(_) => Ok(Self::default()),
        }
    }

    fn parse(text: &str, member: &str) -> Option<Self> {
        let mut mine = Vec::new();
        for one in text.split(',') {
            let mut words = one.split('@');
            let act = match words.next()? {
                "kill" => Act::Kill,
                "stop" => Act::Stop,
                "panic" => Act::Panic,
                "nap" => Act::Nap,
                "hold" => Act::Hold,
                "stall" => Act::Stall,
                flip => Act::Flip(flip.strip_prefix("flip-")?.parse().ok()?),
            };
            let phase = words.next()?;
            let (phase, time) = phase.split_once('#').unwrap_or((phase, "1"));
            let phase = Phase::from_str_name(&format!("PHASE_{}", phase.to_uppercase()))?;
            let left = time.parse().ok().filter(|time| *time > 0)?;
            let step = words.next()?.parse().ok()?;
            if words.next()? == member {
                mine.push(Mishap {
                    act,
                    phase,
                    step,
                    left: AtomicU32::new(left),
                });
            }
        }
        Some(Self {
            ordered: mine,
            ..Self::default()
        })
    }

    /// Does what is ordered for a phase of a step.
    #[inline]
    pub(super) fn at(&self, phase: Phase, step: u64, is_asked: impl Fn() -> bool) {
        let due = |mishap: &&Mishap| mishap.is_due(phase, step);
        for mishap in self.ordered.iter().filter(due) {
            match mishap.act {
                Act::Flip(flip) => {
                    self.flip
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .replace(flip);
                }
                Act::Hold => {
                    let gates = std::env::var_os(GATES).unwrap_or_default();
                    hold(gates.as_ref(), step, &is_asked);
                }
                act => act.happen(),
            }
        }
    }

    /// A flip whose moment has come, once.
    pub(super) fn ordered_flip(&self) -> Option<Flip> {
        if self.ordered.is_empty() {
            return None;
        }
        self.flip
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

impl Act {
    #[expect(clippy::panic, reason = "ordered by a test")]
    fn happen(self) {
        let signal = match self {
            Self::Kill => libc::SIGKILL,
            Self::Stop => libc::SIGSTOP,
            Self::Panic => panic!("a panic on order of {VARIABLE}"),
            Self::Flip(_) | Self::Hold => return,
            Self::Nap => return std::thread::sleep(Duration::from_millis(500)),
            Self::Stall => loop {
                std::thread::park();
            },
        };
        // SAFETY: sends a signal to this very process; no memory is touched.
        unsafe { libc::kill(libc::getpid(), signal) };
    }
}

/// Waits until the gate of a step is open, or this worker is asked for a border.
fn hold(gates: &Path, step: u64, is_asked: &impl Fn() -> bool) {
    let open = [step.to_string(), "all".to_owned()].map(|name| gates.join(name));
    while !is_asked() && !open.iter().any(|gate| gate.exists()) {
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_holds_until_it_is_opened() {
        for gate in ["12", "all"] {
            let folder = tempfile::tempdir().expect("a folder");
            std::fs::write(folder.path().join("11"), "").expect("written");
            let gates = folder.path().to_owned();
            let held = std::thread::spawn(move || hold(&gates, 12, &|| false));
            std::thread::sleep(Duration::from_millis(50));
            assert!(!held.is_finished());
            std::fs::write(folder.path().join(gate), "").expect("written");
            held.join().expect("let go");
        }
        hold(Path::new("/nowhere"), 12, &|| true);
    }

    #[test]
    fn orders_are_read_for_one_member() {
        let text =
            "kill@voting@12@worker-1,stop@loading@3@worker-0,flip-exp-avg@updating#2@4@worker-1";
        let mishaps = Mishaps::parse(text, "worker-1").expect("well formed");
        let acts: Vec<_> = mishaps.ordered.iter().map(|mishap| mishap.act).collect();
        assert_eq!(acts, [Act::Kill, Act::Flip(Flip::ExpAvg)]);
        let kill = &mishaps.ordered[0];
        assert!(!kill.is_due(Phase::Voting, 11));
        assert!(kill.is_due(Phase::Voting, 12));
        mishaps.at(Phase::Updating, 4, || false);
        assert_eq!(mishaps.ordered_flip(), None, "the first time is spared");
        mishaps.at(Phase::Updating, 4, || false);
        assert_eq!(mishaps.ordered_flip(), Some(Flip::ExpAvg));
        assert_eq!(mishaps.ordered_flip(), None);
        for wrong in [
            "",
            "kill",
            "kill@nowhere@1@worker-0",
            "hug@voting@1@worker-0",
            "kill@voting#0@1@worker-0",
            "flip-nothing@voting@1@worker-0",
        ] {
            assert!(Mishaps::parse(wrong, "worker-0").is_none(), "{wrong}");
        }
    }
}
