//! The control protocol under one seed: coordinators, workers, network and store in one thread and
//! in virtual time.
//!
//! ```text
//!             seed ──► weather (faults) ──► world ──► operator restarts what ended
//!                                             │
//!   worker (session, trainer, team, saver) ── network ── office (driver, scribe, machine, journal)
//!                 │         └── mesh ──┘                        │
//!                 └──────────────── store ──────────────────────┘
//!                                     └──► checks, after every change
//! ```
//!
//! What ships runs as it ships: the state machine, the driver with its board, the scribe, the journal
//! and the taking over of a run directory; and of the workers what they tell a new coordinator again
//! ([`retelling`](mks2_proto::retelling)), what they conclude from each other's words
//! ([`agreement`](mks2_proto::agreement)) and how long they wait ([`patience`](mks2_proto::patience)).
//!
//! All else is a model, since a worker is tensor code, threads and sockets. A model proves nothing of
//! a rule that its original has changed since: both are changed together.
//!
//! | model | original |
//! |---|---|
//! | `session` | `session.rs`, `session/link.rs`, `shared.rs` and `farewell.rs` of `worker/src` |
//! | `trainer` | `run.rs`, `run/`, `train.rs` and `train/audit.rs` there; a gradient is a number in which a row that is lost or doubled shows |
//! | `team` | `team.rs`, `team/handover.rs`, `standing.rs` and `cause.rs` there |
//! | `saver` | `saver.rs` and `checkpoint/` there |
//! | `mesh` | `collectives/` there, with its pulses |
//! | `world::work` | `app.rs` there |
//! | `office` | `service.rs`, `service/session.rs` and `running.rs` of the coordinator, and gRPC |
//! | `network`, `store` | TCP, and object stores |
//!
//! Coordinators' clocks jump. Workers read only the one that does not: a machine that sleeps is a
//! worker that is paused.
//!
//! A seed that fails is printed with what replays it, and with the few of its faults that suffice:
//!
//! ```text
//! MKS2_SIM_SEED=17 MKS2_SIM_FAULTS=0,3 cargo test --workspace --lib simulator::tests::replay -- --nocapture
//! ```
//!
//! | variable | what |
//! |---|---|
//! | `MKS2_SIM_SEED` | the seed to replay, or the first one of a hunt |
//! | `MKS2_SIM_KINDS` | the kinds of faults that happen; any, if it is absent |
//! | `MKS2_SIM_FAULTS` | which of the seed's faults happen; all, if it is absent |
//! | `MKS2_SIM_PLANT` | a fault of the protocol to plant, by its name in `planted` |
//! | `MKS2_SIM_SECONDS` | how long `simulator::tests::hunt` looks for a seed that fails |

mod chance;
mod checks;
mod damage;
pub(crate) mod executor;
mod mesh;
mod network;
mod office;
pub(crate) mod planted;
mod saver;
mod session;
mod shrink;
mod store;
mod team;
mod trace;
mod trainer;
mod weather;
mod world;

use std::{rc::Rc, time::Duration};

use futures::FutureExt;
use object_store::path::Path;

use crate::{
    journal::{Place, read_raw},
    ledger::Books,
    metrics,
};
use checks::Violation;
use executor::{Executor, OUTSIDE, now};
use planted::Planted;
use store::Cloud;
use weather::{Fault, Kind, QUIET};
use world::World;

/// How long a run may take once all is quiet: two terms, each with a reunion and a stall.
const PATIENCE: Duration = Duration::from_secs(150);
/// How long late writes are awaited after the end.
const AFTERMATH: Duration = Duration::from_secs(6);

/// What is simulated.
#[derive(Clone, Debug)]
struct Scenario {
    seed: u64,
    /// What the faults are drawn from; empty: any.
    kinds: Vec<Kind>,
    faults: Vec<(usize, Fault)>,
    planted: Option<Planted>,
}

/// What came of it.
struct Report {
    violation: Option<Violation>,
    digest: u64,
    /// Virtual time.
    time: Duration,
    lines: Vec<String>,
}

impl Scenario {
    fn of(seed: u64, kinds: &[Kind], planted: Option<Planted>) -> Self {
        let workers = world::workers(seed);
        let faults = weather::forecast(seed, workers, kinds);
        Self {
            seed,
            kinds: kinds.to_vec(),
            faults: faults.into_iter().enumerate().collect(),
            planted,
        }
    }

    fn play(&self, is_read: bool) -> Report {
        planted::plant(self.planted);
        let (executor, installed) = Executor::install(self.seed);
        let world = World::new(self.seed, Rc::clone(&executor), is_read);
        let faults = self.faults.iter().map(|(_, fault)| fault);
        let mut checks = world.checks.borrow_mut();
        checks.is_orderly = weather::is_orderly(faults.clone());
        checks.is_gentle = weather::is_gentle(faults);
        drop(checks);
        executor.spawn(OUTSIDE, Rc::clone(&world).operate());
        for (_, fault) in &self.faults {
            executor.spawn(OUTSIDE, Rc::clone(&world).suffer(*fault));
        }
        executor.run(|| is_over(&world));
        judge(&world);
        let violation = world.checks.borrow().violation.clone();
        let (digest, lines) = world.trace.borrow_mut().end(executor.polls());
        let time = now();
        Cloud::watch(None);
        planted::plant(None);
        drop(installed);
        Report {
            violation,
            digest,
            time,
            lines,
        }
    }
}

fn is_over(world: &World) -> bool {
    let finished = world.finished.get();
    world.checks.borrow().violation.is_some()
        || world.executor.has_panicked()
        || now() > QUIET + PATIENCE
        || finished.is_some_and(|at| now() > at + AFTERMATH)
}

/// What can only be said at the end.
fn judge(world: &World) {
    if let Some(words) = world.executor.panic() {
        world.violated("nobody panics", words);
    }
    if world.checks.borrow().violation.is_some() {
        return;
    }
    if world.finished.get().is_none() {
        let steps = world.checks.borrow().steps();
        let offices = world.offices.borrow();
        let reasons: Vec<_> = offices.values().map(|office| office.reason()).collect();
        let (total, reasons) = (world.course.total_steps(), reasons.join("; "));
        let words = format!("{steps} of {total} steps; {reasons}");
        drop(offices);
        return world.violated("the run finishes once faults stop", words);
    }
    let place = Place {
        store: world.cloud.still(),
        root: Path::from(office::ROOT),
    };
    let raw = read_raw(&place)
        .now_or_never()
        .expect("at once")
        .expect("read");
    let lines = world
        .cloud
        .peek(&place.root.clone().join(metrics::FILE_NAME));
    let books = Books::read(&world.job, &raw, &lines.unwrap_or_default()).expect("a job");
    if let Some(first) = books.violations.first() {
        let words = format!("{}: {}", first.place, first.what);
        world.violated("the ledger proves the run", words);
    }
}

#[cfg(test)]
mod tests;
