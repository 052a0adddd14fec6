//! The session's own thread: registration, the stream, heartbeats.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        mpsc::{Receiver as StdReceiver, SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

use mks2_proto::{
    dial::{self, PROTOCOL, Target},
    env::WorkerEnv,
    failure::{ExitCode, Failure},
    ids::{Incarnation, Token},
    patience::{self, ATTEMPT, FIRST_RETRY, LAST_WORDS, LONGEST_RETRY},
    retelling::Labelled,
    v1::{self, directive, report::Kind},
};
use tokio::{
    sync::{
        mpsc::{self, WeakSender},
        oneshot,
    },
    time::MissedTickBehavior,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use tracing::{Span, debug, info, warn};

use super::farewell;
use super::mail::Mail;
use super::shared::{Shared, assignment};

/// How often a heartbeat says where the time has gone.
const ACCOUNT_EVERY: Duration = Duration::from_secs(1);
/// Reports on their way into the stream.
const IN_FLIGHT: usize = 64;

/// Everything that the thread needs.
pub(super) struct Link {
    /// The coordinator's addresses, in the order in which they are tried.
    targets: Vec<Target>,
    request: v1::RegisterRequest,
    shared: Arc<Shared>,
}

/// Why listening ended.
enum End {
    /// The trainer is done.
    Done,
    /// The coordinator ended the stream or cannot be reached.
    Lost(String),
}

type JoinResult = Result<(), Failure>;

/// An open stream.
struct Line {
    outgoing: mpsc::Sender<v1::Report>,
    directives: Streaming<v1::Directive>,
}

/// Starts the thread. It tells once how joining went, and when it has ended.
pub(super) fn spawn(
    link: Link,
    reports: mpsc::Receiver<Labelled>,
    trainer: WeakSender<Labelled>,
) -> Result<(oneshot::Receiver<JoinResult>, StdReceiver<()>), Failure> {
    let (joined_in, joined) = oneshot::channel();
    let (ended_in, ended) = sync_channel(1);
    // Its requests belong to the trace of the run.
    let span = Span::current();
    std::thread::Builder::new()
        .name("session".into())
        .spawn(move || span.in_scope(|| run(&link, (reports, trainer), joined_in, &ended_in)))
        .map_err(|error| Failure::io("the session's thread cannot be started", error))?;
    Ok((joined, ended))
}

fn run(
    link: &Link,
    (reports, trainer): (mpsc::Receiver<Labelled>, WeakSender<Labelled>),
    joined: oneshot::Sender<JoinResult>,
    ended: &SyncSender<()>,
) {
    match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => {
            runtime.spawn(farewell::listen(Arc::clone(&link.shared), trainer));
            runtime.block_on(link.live(reports, joined));
            runtime.shutdown_timeout(Duration::from_millis(200));
        }
        Err(error) => {
            let failure = Failure::io("the session's thread cannot be started", error);
            // Nobody waits any more: then nobody needs to know.
            let _gone = joined.send(Err(failure));
        }
    }
    let _nobody_waits = ended.try_send(());
}

impl Link {
    pub(super) fn new(
        env: &WorkerEnv,
        data_address: SocketAddr,
        shared: Arc<Shared>,
    ) -> Result<Self, Failure> {
        let token = Token::new(&env.token).map_err(|error| {
            Failure::usage(
                "the run's token cannot be used",
                error.to_string(),
                "check MKS2_TOKEN",
            )
        })?;
        let incarnation = Incarnation::random()
            .map_err(|error| Failure::io("the system's randomness cannot be read", error))?;
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let request = v1::RegisterRequest {
            run_id: env.run_id.clone(),
            member_id: env.member_id.clone(),
            incarnation: incarnation.0,
            host: host(),
            pid: std::process::id(),
            data_address: data_address.to_string(),
            device: String::new(),
            threads: u32::try_from(threads).unwrap_or(u32::MAX),
            protocol: PROTOCOL,
            program_version: env!("CARGO_PKG_VERSION").to_owned(),
            generation: 0,
        };
        Ok(Self {
            targets: env
                .coordinator
                .split(',')
                .map(|endpoint| Target::new(endpoint.trim(), token.clone()))
                .collect(),
            request,
            shared,
        })
    }

    pub(super) fn incarnation(&self) -> u64 {
        self.request.incarnation
    }

    async fn live(&self, reports: mpsc::Receiver<Labelled>, joined: oneshot::Sender<JoinResult>) {
        let (welcome, line) = match self.join(patience::JOIN).await {
            Ok(pair) => pair,
            Err(failure) => {
                let _gone = joined.send(Err(failure));
                return;
            }
        };
        let interval =
            Duration::from_millis(welcome.heartbeat_interval_ms.clamp(10, 60_000).into());
        let patience = Duration::from_millis(welcome.orphanage_ms.into());
        if joined.send(Ok(())).is_ok() {
            self.work(Mail::new(reports), line, interval, patience)
                .await;
        }
    }

    /// Connects, registers and opens the stream, again and again while the coordinator is out of
    /// reach.
    async fn join(&self, patience: Duration) -> Result<(v1::RegisterResponse, Line), Failure> {
        let began = Instant::now();
        let mut wait = FIRST_RETRY;
        let mut targets = self.targets.iter().cycle();
        loop {
            let Some(target) = targets.next() else {
                return Err(coordinator_lost("it has no address"));
            };
            let attempt = tokio::time::timeout(ATTEMPT, self.attach(target));
            let silent = |_| Err((coordinator_lost("it does not answer"), true));
            let failure = match attempt.await.unwrap_or_else(silent) {
                Ok(joined) => return Ok(joined),
                Err((failure, again)) if !again || began.elapsed() > patience => {
                    return Err(failure);
                }
                Err((failure, _)) => failure,
            };
            debug!(why = %failure.why, "the coordinator is out of reach; trying again");
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LONGEST_RETRY);
        }
    }

    /// One attempt; the flag says whether another one makes sense.
    async fn attach(
        &self,
        target: &Target,
    ) -> Result<(v1::RegisterResponse, Line), (Failure, bool)> {
        let connected = target.connect().await;
        let mut client = connected.map_err(|failure| {
            let again = failure.exit == ExitCode::Environment;
            (failure, again)
        })?;
        let told = |status: Status| (dial::failure(&status), dial::is_transient(&status));
        let request = v1::RegisterRequest {
            generation: self.shared.generation(),
            ..self.request.clone()
        };
        let answer = client.register(request).await;
        let welcome = answer.map_err(told)?.into_inner();
        self.shared.welcomed(welcome.clone());
        let (outgoing, stream) = mpsc::channel(IN_FLIGHT);
        // The first report says whose stream it is.
        if outgoing.send(self.heartbeat()).await.is_err() {
            return Err((coordinator_lost("its stream is closed"), true));
        }
        let opened = client.session(ReceiverStream::new(stream)).await;
        let directives = opened.map_err(told)?.into_inner();
        self.shared.set_client(Some(client));
        let line = Line {
            outgoing,
            directives,
        };
        Ok((welcome, line))
    }

    fn report(&self, (generation, kind): Labelled) -> v1::Report {
        v1::Report {
            member_id: self.request.member_id.clone(),
            incarnation: self.request.incarnation,
            generation,
            kind: Some(kind),
        }
    }

    fn heartbeat(&self) -> v1::Report {
        let beat = Kind::Heartbeat(self.shared.heartbeat());
        self.report((self.shared.generation(), beat))
    }

    fn heartbeat_with_account(&self) -> v1::Report {
        let beat = Kind::Heartbeat(self.shared.heartbeat_with_account());
        self.report((self.shared.generation(), beat))
    }

    /// Lives with a coordinator, and without one while it is looked for.
    async fn work(&self, mut mail: Mail, mut line: Line, interval: Duration, patience: Duration) {
        loop {
            let why = match self.exchange(&mut mail, &mut line, interval).await {
                End::Done => return part(line).await,
                End::Lost(_) if self.shared.over().is_some() => return,
                End::Lost(why) => why,
            };
            self.shared.set_client(None);
            warn!(
                why,
                "the coordinator was lost; the work goes on, and it is looked for"
            );
            let found = tokio::select! {
                found = self.join(patience) => found,
                full = mail.collect() => Err(full),
            };
            match found {
                Ok((_, found)) => line = found,
                Err(failure) if failure.exit == ExitCode::Environment => {
                    let why = format!("{}: {}", failure.what, failure.why);
                    return self.shared.end(coordinator_lost(&why));
                }
                Err(failure) => return self.shared.end(failure),
            }
            mail.tell_again();
            info!("the coordinator is back");
        }
    }

    /// Passes reports up and directives down until one side ends.
    async fn exchange(&self, mail: &mut Mail, line: &mut Line, interval: Duration) -> End {
        let mut pulse = tokio::time::interval(interval);
        pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut accounted: Option<Instant> = None;
        loop {
            let (report, labelled) = tokio::select! {
                directive = line.directives.message() => match directive {
                    Ok(Some(directive)) => {
                        self.heed(directive);
                        continue;
                    }
                    Ok(None) => return End::Lost("it ended the session".to_owned()),
                    Err(status) => return End::Lost(words(&status)),
                },
                labelled = mail.next() => match labelled {
                    Some(labelled) => (self.report(labelled.clone()), Some(labelled)),
                    None => return End::Done,
                },
                _ = pulse.tick() => {
                    let is_due = accounted.is_none_or(|last| last.elapsed() >= ACCOUNT_EVERY);
                    let report = match is_due {
                        true => self.heartbeat_with_account(),
                        false => self.heartbeat(),
                    };
                    if is_due {
                        accounted = Some(Instant::now());
                    }
                    (report, None)
                }
            };
            let sent = line.outgoing.send(report).await.is_ok();
            if let Some(labelled) = labelled {
                mail.handled(labelled, sent);
            }
            if !sent {
                // The stream is gone; its other half says why.
                return match line.directives.message().await {
                    Ok(Some(directive)) => {
                        self.heed(directive);
                        End::Lost("it closed the session".to_owned())
                    }
                    Ok(None) => End::Lost("it ended the session".to_owned()),
                    Err(status) => End::Lost(words(&status)),
                };
            }
        }
    }

    /// Does what the coordinator says.
    fn heed(&self, directive: v1::Directive) {
        match directive.kind {
            Some(directive::Kind::Generation(generation)) => {
                let assignment = dial::generation(&generation)
                    .and_then(|known| assignment(&known, &self.request.member_id));
                match assignment {
                    Ok(assignment) => self.shared.assign(assignment),
                    Err(failure) => self.shared.end(failure),
                }
            }
            Some(directive::Kind::Stop(stop)) => {
                info!(reason = %stop.reason, "asked to stop at the next step boundary");
                self.shared.ask_to_stop(stop.reason);
            }
            Some(directive::Kind::Abort(abort)) => self.shared.end(aborted(abort)),
            Some(directive::Kind::Refused(refusal)) => self.shared.end(refused(refusal)),
            Some(directive::Kind::Invitation(invitation)) => {
                info!(stage = invitation.stage, "invited to a live run");
                self.shared.invite(invitation);
            }
            Some(directive::Kind::Regroup(_)) => self.shared.ask_to_regroup(),
            Some(directive::Kind::Hold(hold)) => {
                info!(reason = %hold.reason, "the run waits for more workers");
                self.shared.hold(&hold.reason);
            }
            Some(directive::Kind::Leave(leave)) => {
                info!(reason = %leave.reason, "let go");
                self.shared.let_go(&leave.reason);
            }
            None => warn!("a directive of an unknown kind was left aside"),
        }
    }
}

/// Ends the stream in an orderly way.
async fn part(line: Line) {
    let Line {
        outgoing,
        mut directives,
    } = line;
    drop(outgoing);
    let rest = async { while let Ok(Some(_)) = directives.message().await {} };
    if tokio::time::timeout(LAST_WORDS, rest).await.is_err() {
        warn!("the coordinator did not end the session");
    }
}

fn aborted(abort: v1::Abort) -> Failure {
    let reason = abort.reason;
    abort.failure.map_or_else(
        || Failure::run_failed("the run was ended", reason, "the same command resumes"),
        Failure::from,
    )
}

fn refused(refusal: v1::Refusal) -> Failure {
    let reason = refusal.reason().as_str_name();
    refusal.failure.map_or_else(
        || Failure::internal("the coordinator refused a report", reason),
        Failure::from,
    )
}

fn coordinator_lost(why: &str) -> Failure {
    Failure::run_failed(
        "the coordinator was lost",
        why,
        "start the same command again: it resumes from the latest checkpoint",
    )
}

fn words(status: &Status) -> String {
    let failure = dial::failure(status);
    format!("{}: {}", failure.what, failure.why)
}

fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() {
        "localhost".to_owned()
    } else {
        name.chars().take(200).collect()
    }
}
