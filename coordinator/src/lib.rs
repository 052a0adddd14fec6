//! The control plane of mks2: who takes part in a run, who holds which lanes, which checkpoint
//! counts. It never carries a tensor, and links no libtorch.
//!
//! ```text
//! gRPC ──► service ──► driver ──► state (pure) ──► actions ──► driver ──► members
//!                                                     └──► scribe ──► journal, manifests, metrics
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`state`] | the decisions: a pure state machine and its table of transitions |
//! | [`assign`] | lanes to members: a pure function |
//! | [`journal`] | decisions as create-only numbered objects, which are also the fence |
//! | `rundir` | taking over a run directory: new, resumed, or refused |
//! | `driver` | the one task that owns the state |
//! | `scribe` | the one task that writes |
//! | `service` | gRPC, the token, the streams of members |
//! | [`books`] | where the time of a run goes, by worker: pure |
//! | [`metrics`] | `metrics.jsonl` |
//! | [`ledger`] | what journal, metrics and checkpoints prove of a run: pure |
//! | [`contact`] | how to reach the coordinator of a live run |
//! | [`lock`] | one coordinator per local run directory |
//! | `clock` | time: the system's, or a simulation's |
//! | `simulator` | tests only: coordinators, workers, network and store under one seed |

#[macro_use]
mod planted;

pub mod assign;
pub mod books;
mod clock;
pub mod contact;
mod driver;
pub mod journal;
pub mod ledger;
pub mod lock;
pub mod metrics;
mod rundir;
mod running;
mod scribe;
mod service;
#[cfg(test)]
mod simulator;
pub mod state;

pub use rundir::Resume;
pub use running::{Coordinator, Outcome, Running, Settings};
pub use state::{Limits, Workers};
