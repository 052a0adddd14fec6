//! What the processes of mks2 share.
//!
//! | module | what |
//! |---|---|
//! | [`job`] | the job file: every setting, its unit and its default |
//! | [`params`] | the parameter table of the model: names, shapes, initial values; no tensors |
//! | [`ids`] | run, member, generation, term, rank, lane |
//! | [`v1`] | the generated gRPC messages and services |
//! | [`dial`] | connecting to a coordinator: endpoint, token, deadlines |
//! | [`env`](mod@env) | the environment contract between launcher and worker |
//! | [`evaluate`] | how `mks2 eval` has tasks measured, and what comes out |
//! | [`generate`] | how `mks2 generate` asks the program that computes |
//! | [`export`] | how `mks2 export` orders a model for other programs |
//! | [`goodput`] | where the time of a run goes |
//! | [`agreement`] | what the members of a generation conclude from what all have told |
//! | [`retelling`] | what a worker tells its coordinator, and a new one again |
//! | [`patience`] | how long a worker waits for its coordinator |
//! | [`splitmix`] | numbers that a seed decides |
//! | [`failure`] | errors that a user sees: what, why, what to do, exit code |
//! | [`telemetry`] | logs and OpenTelemetry export, set up once in each `main` |

pub mod agreement;
pub mod dial;
pub mod env;
pub mod evaluate;
pub mod export;
pub mod failure;
pub mod generate;
pub mod goodput;
pub mod ids;
pub mod job;
pub mod params;
pub mod patience;
pub mod retelling;
pub mod splitmix;
pub mod telemetry;

/// Generated from `proto/mks2/v1/coordinator.proto`; a test proves that it is current.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic)]
#[rustfmt::skip]
#[path = "gen/mks2.v1.rs"]
pub mod v1;

/// The protobuf descriptors of [`v1`], encoded: what gRPC reflection serves.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("gen/mks2.v1.bin");
