//! A crowd of members that train nothing: what a control plane takes.
//!
//! It starts a coordinator, or torchft's lighthouse, on a core of its own, lets members come over a
//! few connections and beat, and prints one line of JSON. `cargo xtask bench control` runs both, one
//! after the other.
//!
//! | phase | what is measured |
//! |---|---|
//! | coming | members per second; how long after the last arrival the last member has its generation |
//! | beating | the server's share of its core while all beat as often as they were told |
//! | racing | heartbeats per second, and per second of the server's time, when all beat as fast as they are taken |

#[path = "crowd/coordinator.rs"]
mod coordinator;
#[path = "crowd/lighthouse.rs"]
mod lighthouse;
#[path = "crowd/server.rs"]
mod server;

use std::{io::Write, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Parser, Subcommand};

/// Measures what a control plane takes.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    server: Peer,
    /// Members.
    #[arg(long, global = true, default_value_t = 10_000)]
    members: usize,
    /// Connections that they share.
    #[arg(long, global = true, default_value_t = 64)]
    connections: usize,
    /// How long they beat as they were told.
    #[arg(long, global = true, default_value_t = 10)]
    seconds: u64,
    /// Heartbeats of each when all beat as fast as they are taken.
    #[arg(long, global = true, default_value_t = 100)]
    beats: u64,
}

#[derive(Debug, Subcommand)]
enum Peer {
    /// `mks2-coordinator`, from the folder above this program.
    Coordinator,
    /// torchft's lighthouse.
    Lighthouse {
        /// The program that starts it, and its first arguments.
        #[arg(required = true, trailing_var_arg = true)]
        program: Vec<PathBuf>,
    },
}

/// How many there are, and how they come and beat.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Crowd {
    pub(crate) members: usize,
    pub(crate) connections: usize,
    pub(crate) beating: Duration,
    pub(crate) beats: u64,
}

impl Crowd {
    /// The members of each connection.
    pub(crate) fn hosts(self) -> impl Iterator<Item = Vec<usize>> {
        let connections = self.connections.clamp(1, self.members.max(1));
        (0..connections).map(move |host| (host..self.members).step_by(connections).collect())
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let crowd = Crowd {
        members: arguments.members,
        connections: arguments.connections,
        beating: Duration::from_secs(arguments.seconds),
        beats: arguments.beats,
    };
    let _installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
    match measure(&arguments.server, crowd) {
        Ok(measured) => {
            // Nobody has to listen.
            let _closed = writeln!(std::io::stdout(), "{measured}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _closed = writeln!(std::io::stderr(), "{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(peer: &Peer, crowd: Crowd) -> anyhow::Result<serde_json::Value> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match peer {
            Peer::Coordinator => coordinator::measure(crowd).await,
            Peer::Lighthouse { program } => lighthouse::measure(crowd, program).await,
        }
    })
}
