//! `mks2 status` and `mks2 watch`: the state of a run, live from its coordinator, or as its
//! directory tells when no coordinator of this machine answers for it.

mod resting;
mod view;

use std::path::PathBuf;
use std::time::Duration;

use mks2_coordinator::contact::Contact;
use mks2_dataset::store;
use mks2_proto::dial;
use mks2_proto::failure::Failure;
use mks2_proto::ids::Token;
use mks2_proto::v1::{RunState, StatusRequest, StatusResponse, WatchRequest};
use tokio_stream::StreamExt;

use crate::cli::{StatusArgs, TargetArgs, WatchArgs};
use crate::output::Output;
use crate::progress::Progress;

/// How often a watched run tells its status.
const WATCH_INTERVAL_MS: u32 = 250;
/// A local coordinator that does not answer for so long is not there.
const LOCAL_TIMEOUT: Duration = Duration::from_secs(2);

/// What the user named.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    /// A coordinator.
    Address(String),
    /// A run directory: a path or URL.
    Run(String),
}

/// Shows the state of a run once.
///
/// # Errors
/// No such run (exit 2), nobody at the address or a wrong token (6), storage (5).
pub(crate) async fn run(args: &StatusArgs, output: &Output) -> Result<(), Failure> {
    let Some(mut client) = connect(&args.target).await? else {
        return show_resting(&args.target.target, args.json, output).await;
    };
    let answer = client.status(StatusRequest {}).await;
    let status = answer
        .map_err(|status| dial::failure(&status))?
        .into_inner();
    if args.json {
        output.result(&format!("{:#}", view::json(&status)));
    } else {
        output.result(&view::text(&status));
    }
    Ok(())
}

/// Follows a run until it ends.
///
/// # Errors
/// As [`run`], and the failure of the run itself.
pub(crate) async fn watch(args: &WatchArgs, output: &Output) -> Result<(), Failure> {
    let Some(mut client) = connect(&args.target).await? else {
        return show_resting(&args.target.target, false, output).await;
    };
    let request = WatchRequest {
        min_interval_ms: WATCH_INTERVAL_MS,
    };
    let answer = client.watch(request).await;
    let mut statuses = answer
        .map_err(|status| dial::failure(&status))?
        .into_inner();
    let mut progress = Progress::new(output);
    let mut last = None;
    while let Some(Ok(status)) = statuses.next().await {
        progress.update(&status);
        last = Some(status);
    }
    progress.finish();
    conclude(last, output)
}

/// What the last status says about the end.
fn conclude(last: Option<StatusResponse>, output: &Output) -> Result<(), Failure> {
    let lost = || {
        Failure::run_failed(
            "the coordinator is gone",
            "its answers ended before the run did",
            "see `mks2 status RUN_DIR` for what is safe",
        )
    };
    let status = last.ok_or_else(lost)?;
    match status.state() {
        RunState::Finished | RunState::Stopped => {
            output.note(&format!("{} at step {}", status.reason, status.step));
            Ok(())
        }
        RunState::Failed => Err(status.failure.map_or_else(lost, Failure::from)),
        _ => Err(lost()),
    }
}

/// A client of the live coordinator; none: the run directory is at rest.
pub(crate) async fn connect(args: &TargetArgs) -> Result<Option<dial::Client>, Failure> {
    let Some((endpoint, token)) = address(args)? else {
        return Ok(None);
    };
    let mut target = dial::Target::new(endpoint, token);
    if matches!(parse(&args.target), Target::Address(_)) {
        return target.connect().await.map(Some);
    }
    target.connect_timeout = LOCAL_TIMEOUT;
    // A launcher that was killed leaves its file: nobody there means at rest.
    Ok(target.connect().await.ok())
}

/// Endpoint and token of a coordinator; none: the run directory names none.
pub(crate) fn address(args: &TargetArgs) -> Result<Option<(String, Token)>, Failure> {
    match parse(&args.target) {
        Target::Address(endpoint) => Ok(Some((endpoint, token(args.token.as_deref())?))),
        Target::Run(location) => {
            let contact = store::local_path(&location).and_then(|folder| Contact::read(&folder));
            let known = contact.map(|contact| Ok((contact.endpoint, token(Some(&contact.token))?)));
            known.transpose()
        }
    }
}

/// Whether a text is the address of a coordinator, and no run directory.
pub(crate) fn is_address(text: &str) -> bool {
    matches!(parse(text), Target::Address(_))
}

fn token(given: Option<&str>) -> Result<Token, Failure> {
    let given = given.filter(|token| !token.is_empty()).ok_or_else(|| {
        Failure::usage(
            "the run's token is missing",
            "a coordinator answers only those who know it",
            "set MKS2_TOKEN; a run of this machine is named by its directory and needs none",
        )
    })?;
    Token::new(given).map_err(|error| {
        Failure::usage(
            "the run's token cannot be used",
            error.to_string(),
            "check MKS2_TOKEN",
        )
    })
}

/// `http://...` and `HOST:PORT` are addresses; everything else is a run directory.
fn parse(text: &str) -> Target {
    if text.starts_with("http://") || text.starts_with("https://") {
        return Target::Address(text.to_owned());
    }
    let is_address = text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok()
    });
    if is_address && !PathBuf::from(text).exists() {
        Target::Address(format!("http://{text}"))
    } else {
        Target::Run(text.to_owned())
    }
}

async fn show_resting(location: &str, json: bool, output: &Output) -> Result<(), Failure> {
    let resting = resting::Resting::read(location).await?;
    if json {
        output.result(&format!("{:#}", resting.json()));
    } else {
        output.result(&resting.text());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_run_directories_are_told_apart() {
        let address = |text: &str| Target::Address(text.to_owned());
        assert_eq!(parse("http://h:1"), address("http://h:1"));
        assert_eq!(parse("10.0.0.5:7000"), address("http://10.0.0.5:7000"));
        assert_eq!(parse("[::1]:7000"), address("http://[::1]:7000"));
        for run in ["runs/a", "s3://bucket/run", "/runs/a:1/b", "a"] {
            assert_eq!(parse(run), Target::Run(run.to_owned()));
        }
    }

    #[test]
    fn a_watched_run_that_failed_fails_the_watch() {
        let common = crate::cli::Common {
            log_format: crate::cli::LogFormat::Text,
            quiet: true,
            verbose: 0,
        };
        let output = Output::new(&common);
        let failure = Failure::run_failed("worker-1 was lost", "killed", "resume");
        let failed = StatusResponse {
            state: RunState::Failed.into(),
            failure: Some((&failure).into()),
            ..StatusResponse::default()
        };
        assert_eq!(
            conclude(Some(failed), &output).expect_err("failed").what,
            failure.what
        );
        assert_eq!(conclude(None, &output).expect_err("gone").exit.code(), 7);
    }
}
