//! `mks2-coordinator`: a heartbeat is a message in its member's stream.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use futures::{StreamExt, stream};
use mks2_proto::{
    dial::{self, Client, Target},
    ids::Token,
    v1::{self, Phase, directive, report::Kind},
};
use serde_json::json;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_stream::wrappers::ReceiverStream;

use crate::{Crowd, server::Server};

const TOKEN: &str = "a-token-for-a-crowd";
/// Longest that anything may take.
const PATIENCE: Duration = Duration::from_secs(180);
/// Members of one connection that come at the same time.
const AT_ONCE: usize = 2;
/// How long all is quiet before the last member comes, and after.
const QUIET: Duration = Duration::from_secs(2);

/// What has happened to all members, with times since the beginning.
struct Notes {
    began: Instant,
    joined: AtomicU64,
    opened_nanos: AtomicU64,
    told: AtomicU64,
    told_nanos: AtomicU64,
    sent: AtomicU64,
    /// Why a stream has ended, the first one.
    ended: OnceLock<String>,
}

impl Notes {
    /// Nothing has happened yet.
    fn begin() -> Self {
        Self {
            began: Instant::now(),
            joined: AtomicU64::new(0),
            opened_nanos: AtomicU64::new(0),
            told: AtomicU64::new(0),
            told_nanos: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            ended: OnceLock::new(),
        }
    }

    fn nanos(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// From the moment when the last member opened its stream to the one when the last member had
    /// its generation.
    fn forming_ms(&self) -> f64 {
        let nanos = |noted: &AtomicU64| noted.load(Ordering::Relaxed) as f64;
        (nanos(&self.told_nanos) - nanos(&self.opened_nanos)) / 1e6
    }
}

/// How often they beat.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Pace {
    AsTold,
    /// So many times, as fast as they are taken.
    Race(u64),
}

/// A member that takes part.
struct Member {
    number: usize,
    reports: mpsc::Sender<v1::Report>,
}

impl Member {
    fn beat(&self, generation: u64, count: u64) -> v1::Report {
        report(self.number, generation, count)
    }
}

/// A number that looks like chance, as ports do: what is regular would be compressed better than it
/// ever is.
fn scattered(number: usize) -> u64 {
    blake3::hash(&number.to_le_bytes()).as_bytes()[..8]
        .iter()
        .fold(1, |all, byte| all << 8 | u64::from(*byte))
}

/// A heartbeat, with a count in the place of its collective.
fn report(number: usize, generation: u64, count: u64) -> v1::Report {
    v1::Report {
        member_id: format!("worker-{number}"),
        incarnation: scattered(number),
        generation,
        kind: Some(Kind::Heartbeat(v1::Heartbeat {
            phase: Phase::Computing.into(),
            collective: count,
            ..v1::Heartbeat::default()
        })),
    }
}

pub(crate) async fn measure(crowd: Crowd) -> anyhow::Result<serde_json::Value> {
    ensure!(crowd.members > 1, "a crowd has two members or more");
    let folder = tempfile::tempdir()?;
    let (server, endpoint) = start(crowd, &folder.path().join("run"))?;
    let target = Target::new(endpoint, Token::new(TOKEN)?);
    let mut asking = target.connect().await?;
    let notes = Arc::new(Notes::begin());
    let (pace, paces) = watch::channel(Pace::AsTold);
    let mut tasks = JoinSet::new();
    let others = Crowd {
        members: crowd.members - 1,
        ..crowd
    };
    let come = |members| host(target.clone(), members, Arc::clone(&notes), paces.clone());
    for members in others.hosts() {
        tasks.spawn(come(members));
    }
    until(&mut tasks, &notes.joined, others.members).await?;
    let coming = notes.began.elapsed();
    sleep(QUIET).await;
    tasks.spawn(come(vec![others.members]));
    until(&mut tasks, &notes.told, crowd.members).await?;
    let forming_ms = notes.forming_ms();
    sleep(QUIET).await;

    let (since, sent) = (server.now()?, notes.sent.load(Ordering::Relaxed));
    sleep(crowd.beating).await;
    let (beating, sent) = (
        server.used(since)?,
        notes.sent.load(Ordering::Relaxed) - sent,
    );

    let since = server.now()?;
    pace.send_replace(Pace::Race(crowd.beats));
    until_raced(&mut asking, crowd.beats).await?;
    let race = server.used(since)?;
    let raced = crowd.beats as f64 * crowd.members as f64;
    let status = asking.status(v1::StatusRequest {}).await?.into_inner();
    ensure_nobody_was_lost(&status)?;
    Ok(json!({
        "members": crowd.members,
        "connections": crowd.connections,
        "come_per_second": others.members as f64 / coming.as_secs_f64(),
        "forming_ms": forming_ms,
        "beating_per_second": sent as f64 / beating.wall.as_secs_f64(),
        "beating_share": beating.share(),
        "beats_per_second": raced / race.wall.as_secs_f64(),
        "race_share": race.share(),
        "beat_cpu_seconds": race.cpu_seconds / raced,
        "peak_mib": server.peak_mib()?,
        // What is wanted, for comparison.
        "second": 1.0,
        "forming_limit_ms": 100.0,
    }))
}

fn ensure_nobody_was_lost(status: &v1::StatusResponse) -> anyhow::Result<()> {
    ensure!(
        status.generation == 1 && status.members_lost == 0,
        "{} members were taken for lost, in generation {}: {}",
        status.members_lost,
        status.generation,
        status
            .notices
            .last()
            .map_or(String::new(), |last| format!("{}: {}", last.what, last.why))
    );
    Ok(())
}

/// A coordinator for so many, and where it listens.
fn start(crowd: Crowd, run: &Path) -> anyhow::Result<(Server, String)> {
    let here = std::env::current_exe()?;
    let program = here.parent().and_then(Path::parent).context("no folder")?;
    let program = program.join("mks2-coordinator");
    let job = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/job.toml");
    let (lanes, members) = (
        format!("lanes={}", crowd.members),
        crowd.members.to_string(),
    );
    let mut server = Server::start(
        &[
            program.as_os_str(),
            "--job".as_ref(),
            job.as_ref(),
            "--run".as_ref(),
            run.as_os_str(),
            "--workers".as_ref(),
            members.as_ref(),
            "--set".as_ref(),
            lanes.as_ref(),
            // So many lanes have no room in an exact sum.
            "--set".as_ref(),
            "reduction=\"fast\"".as_ref(),
        ],
        &[("MKS2_TOKEN", TOKEN)],
    )?;
    let stdout = server.child.stdout.take().context("no standard output")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    let said: serde_json::Value =
        serde_json::from_str(&line).context("the coordinator does not say where it listens")?;
    let endpoint = said["endpoint"].as_str().context("no endpoint")?;
    Ok((server, endpoint.to_owned()))
}

/// Waits until a count is reached; a connection that fails ends it.
async fn until(
    tasks: &mut JoinSet<anyhow::Result<()>>,
    count: &AtomicU64,
    wanted: usize,
) -> anyhow::Result<()> {
    let reached = async {
        while count.load(Ordering::Relaxed) < wanted as u64 {
            sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        () = reached => Ok(()),
        Some(ended) = tasks.join_next() => ended?.and_then(|()| bail!("a connection has ended")),
        () = sleep(PATIENCE) => bail!(
            "{} of {wanted} members after {} s", count.load(Ordering::Relaxed), PATIENCE.as_secs()
        ),
    }
}

/// Waits until the coordinator shows the last beat of everybody.
async fn until_raced(asking: &mut Client, beats: u64) -> anyhow::Result<()> {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        sleep(Duration::from_millis(200)).await;
        let status = asking.status(v1::StatusRequest {}).await?.into_inner();
        if status
            .members
            .iter()
            .all(|member| member.collective == beats)
        {
            return Ok(());
        }
    }
    bail!("the coordinator does not show the last heartbeats")
}

/// One connection with its members: they come, and beat in its pace.
async fn host(
    target: Target,
    members: Vec<usize>,
    notes: Arc<Notes>,
    mut paces: watch::Receiver<Pace>,
) -> anyhow::Result<()> {
    let client = target.connect().await?;
    let coming = stream::iter(members.into_iter().map(|number| {
        let (client, notes) = (client.clone(), Arc::clone(&notes));
        async move { join(client, number, notes).await }
    }));
    let mut coming = Box::pin(coming.buffer_unordered(AT_ONCE));
    let mut here: Vec<Member> = Vec::new();
    let (mut pulse, mut count) = (interval(Duration::from_millis(100)), 0);
    pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            Some(joined) = coming.next() => {
                let (member, told) = joined?;
                if pulse.period() != told {
                    pulse = interval(told);
                    pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
                }
                here.push(member);
                notes.joined.fetch_add(1, Ordering::Relaxed);
            }
            _ = pulse.tick() => round(&here, &notes, count).await?,
            Ok(()) = paces.changed() => {
                let pace = *paces.borrow_and_update();
                if let Pace::Race(beats) = pace {
                    for next in 1..=beats {
                        count = next;
                        round(&here, &notes, count).await?;
                    }
                }
            }
        }
    }
}

/// Everybody beats once.
async fn round(members: &[Member], notes: &Notes, count: u64) -> anyhow::Result<()> {
    for member in members {
        let generation = u64::from(notes.told.load(Ordering::Relaxed) > 0);
        let beat = member.reports.send(member.beat(generation, count)).await;
        if beat.is_err() {
            // The other half says why.
            sleep(Duration::from_millis(100)).await;
            let why = notes.ended.get().map_or("nobody says why", String::as_str);
            bail!("the stream of worker-{} has ended: {why}", member.number);
        }
    }
    notes
        .sent
        .fetch_add(members.len() as u64, Ordering::Relaxed);
    Ok(())
}

/// A member registers and opens its stream; returns how often it is to beat.
async fn join(
    mut client: Client,
    number: usize,
    notes: Arc<Notes>,
) -> anyhow::Result<(Member, Duration)> {
    let first = report(number, 0, 0);
    let welcome = client
        .register(v1::RegisterRequest {
            member_id: first.member_id.clone(),
            incarnation: first.incarnation,
            host: format!("host-{}", number / 8),
            pid: 1,
            data_address: format!(
                "10.0.{}.{}:{}",
                number / 256 % 256,
                number % 256,
                32_768 + scattered(number) % 28_000
            ),
            device: "cuda:0".to_owned(),
            protocol: dial::PROTOCOL,
            ..v1::RegisterRequest::default()
        })
        .await?
        .into_inner();
    let (reports, outgoing) = mpsc::channel(4);
    reports.send(first).await?;
    notes
        .opened_nanos
        .fetch_max(notes.nanos(), Ordering::Relaxed);
    let stream = client.session(ReceiverStream::new(outgoing)).await?;
    tokio::spawn(listen(stream.into_inner(), notes));
    let told = Duration::from_millis(welcome.heartbeat_interval_ms.into());
    Ok((Member { number, reports }, told))
}

/// Notes what a member is told, until its stream ends.
async fn listen(mut directives: tonic::Streaming<v1::Directive>, notes: Arc<Notes>) {
    let ended = loop {
        match directives.message().await {
            Ok(Some(v1::Directive { kind, .. })) => match kind {
                Some(directive::Kind::Generation(_)) => {
                    notes.told_nanos.fetch_max(notes.nanos(), Ordering::Relaxed);
                    notes.told.fetch_add(1, Ordering::Relaxed);
                }
                Some(directive::Kind::Abort(abort)) => break abort.reason,
                _ => {}
            },
            Ok(None) => break "the coordinator ended it".to_owned(),
            Err(status) => break status.to_string(),
        }
    };
    notes.ended.get_or_init(|| ended);
}
