//! `mks2 drain`, `mks2 scale` and `mks2 worker`: other workers for a live run.

use std::os::unix::process::CommandExt;
use std::process::Command;

use mks2_proto::dial::{self, Client};
use mks2_proto::env;
use mks2_proto::failure::Failure;
use mks2_proto::ids::Token;
use mks2_proto::v1::{DrainRequest, ScaleRequest};

use crate::cli::{DrainArgs, ScaleArgs, TargetArgs, WorkerArgs};
use crate::output::Output;
use crate::status;
use crate::train::worker_program;

/// Lets a worker go at the next step boundary.
///
/// # Errors
/// No such run or worker (exit 2), nobody at the address or a wrong token (6).
pub(crate) async fn drain(args: &DrainArgs, output: &Output) -> Result<(), Failure> {
    let mut client = live(&args.target).await?;
    let request = DrainRequest {
        member_id: args.worker.clone(),
        reason: "mks2 drain".to_owned(),
    };
    let answer = client.drain(request).await;
    answer.map_err(|status| dial::failure(&status))?;
    output.note(&format!("{} leaves at the next step boundary", args.worker));
    Ok(())
}

/// Sets how many workers a run should have.
///
/// # Errors
/// As [`drain`]; a number that the run cannot have (2).
pub(crate) async fn scale(args: &ScaleArgs, output: &Output) -> Result<(), Failure> {
    let mut client = live(&args.target).await?;
    let request = ScaleRequest {
        workers: args.workers,
    };
    let answer = client.scale(request).await;
    answer.map_err(|status| dial::failure(&status))?;
    output.note(&format!("the run should have {} workers", args.workers));
    Ok(())
}

async fn live(target: &TargetArgs) -> Result<Client, Failure> {
    let client = status::connect(target).await?;
    client.ok_or_else(|| not_at_work(&target.target))
}

fn not_at_work(run: &str) -> Failure {
    Failure::usage(
        format!("{run} is not a live run"),
        "no coordinator on this machine answers for it",
        "name the coordinator's address, or start the run",
    )
}

/// Joins a run as a worker; does not return unless that fails.
///
/// # Errors
/// No such run (exit 2), no program (6).
pub(crate) fn join(args: &WorkerArgs) -> Result<(), Failure> {
    let (endpoints, token) = coordinators(args)?;
    let member = args.name.clone().unwrap_or_else(own_name);
    let error = Command::new(worker_program()?)
        .env(env::COORDINATOR, endpoints)
        .env(env::TOKEN, token.reveal())
        .env(env::MEMBER_ID, member)
        .env(env::DATA_ADDRESS, args.listen.to_string())
        .env(env::CUBLAS_WORKSPACE, env::CUBLAS_WORKSPACE_VALUE)
        .exec();
    Err(Failure::io("the worker program cannot be started", error))
}

/// Where the run's coordinator is, and where its successors may be; and the token of all of them.
fn coordinators(args: &WorkerArgs) -> Result<(String, Token), Failure> {
    let addresses = args.join.split(',');
    let places: Vec<&str> = match addresses.clone().all(status::is_address) {
        true => addresses.collect(),
        false => vec![&args.join],
    };
    let mut endpoints = Vec::new();
    let mut known = None;
    for place in places {
        let target = TargetArgs {
            target: place.to_owned(),
            token: args.token.clone(),
        };
        let (endpoint, token) = status::address(&target)?.ok_or_else(|| not_at_work(place))?;
        endpoints.push(endpoint);
        known = Some(token);
    }
    let token = known.ok_or_else(|| not_at_work(&args.join))?;
    Ok((endpoints.join(","), token))
}

/// Unique without a person's help: the machine and this process, which becomes the worker.
fn own_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let plain = |c: &char| c.is_ascii_alphanumeric() || *c == '-';
    let host: String = host.trim().chars().filter(plain).take(40).collect();
    format!("worker-{host}-{}", std::process::id())
}
