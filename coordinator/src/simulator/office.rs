//! A coordinator's process: the driver, the scribe, the journal and the machine that ship. Only gRPC
//! is left out: what `service` does with it is done here with the simulated network.

use std::{cell::Cell, collections::BTreeMap, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use mks2_proto::{
    failure::Failure,
    ids::{Generation, Incarnation, Token},
    v1,
};
use object_store::path::Path;
use tokio::sync::{mpsc, oneshot};

use super::{
    executor::{NodeId, within},
    network::{Host, Pipe},
    world::World,
};
use crate::{
    driver::{Answer, Command, Directives, Handle, Voice, refusal_status},
    journal::Place,
    rundir::{Claim, Resume, RunDir},
    running::{GOODBYE, Settings, assemble},
    service::{DIRECTIVES, convert, session::FIRST_REPORT},
    state::{Identity, Limits, Refused, Registration},
};

/// Where the run lies in the store.
pub(super) const ROOT: &str = "run";

/// What others need to talk to a coordinator.
pub(super) struct Office {
    pub(super) node: NodeId,
    pub(super) host: Host,
    handle: Handle,
    welcome: Rc<v1::RegisterResponse>,
    world: Rc<World>,
}

/// A member's stream as its worker holds it.
pub(super) struct Line {
    pub(super) reports: Rc<Pipe<v1::Report>>,
    pub(super) directives: Rc<Pipe<v1::Directive>>,
}

/// How a request failed, and whether the same one may succeed later.
#[derive(Debug)]
pub(super) struct Declined {
    pub(super) failure: Failure,
    pub(super) again: bool,
}

/// When things are late here: as in a cluster, only that nobody waits for minutes.
pub(super) fn limits() -> Limits {
    Limits {
        stall: Duration::from_secs(12),
        reunion: Duration::from_secs(4),
        orphanage: Duration::from_secs(40),
        ..Limits::default()
    }
}

/// Runs a coordinator's process to its end; the end is told to the world.
pub(super) async fn run(world: Rc<World>, node: NodeId, host: Host, writer: u64) {
    let ended = work(&world, node, host, writer).await;
    world.office_ended(node, host, ended);
}

async fn work(
    world: &Rc<World>,
    node: NodeId,
    host: Host,
    writer: u64,
) -> Result<v1::RunState, Failure> {
    let place = Place {
        store: Arc::new(world.cloud.view(node)),
        root: Path::from(ROOT),
    };
    let settings = settings(world);
    let claim = Claim {
        run_url: &settings.run_url,
        job: &settings.job,
        job_toml: &settings.job_toml,
        corpora: &settings.corpora,
        resume: settings.resume,
        reunite: settings.reunite,
        writer: Incarnation(writer),
    };
    let parts = assemble(&settings, RunDir::take(&claim, place, None).await?);
    let term = parts.welcome.term;
    world.note("takes office", &[node.0, term]);
    let office = Rc::new(Office {
        node,
        host,
        handle: parts.handle,
        welcome: Rc::new(parts.welcome),
        world: Rc::clone(world),
    });
    world.offices.borrow_mut().insert(host, Rc::clone(&office));
    let (scribe, tasks, done) = (parts.scribe, parts.tasks, parts.done);
    let (ended, end) = oneshot::channel();
    world.executor.spawn(node, async move {
        scribe.run(tasks, done).await;
        let _nobody_waits = ended.send(());
    });
    let outcome = parts.driver.run().await;
    within(GOODBYE, end).await;
    outcome
}

fn settings(world: &World) -> Settings {
    Settings {
        bind: SocketAddr::from(([127, 0, 0, 1], 0)),
        run_url: "memory://run".into(),
        job: world.job.clone(),
        job_toml: "name = \"simulated\"\n".into(),
        corpora: BTreeMap::new(),
        workers: world.wanted,
        returns: world.returns,
        token: Token::new("a-token-for-simulations").expect("good"),
        resume: Resume::Auto,
        reunite: true,
        limits: limits(),
    }
}

impl Office {
    /// A request's way to the coordinator, and its answer's way back.
    async fn ask(
        &self,
        from: Host,
        command: impl FnOnce(oneshot::Sender<Answer>) -> Command + 'static,
    ) -> Result<Answer, Declined> {
        let network = &self.world.network;
        let lost = |_| out_of_reach();
        network.travel(from, self.host).await.map_err(lost)?;
        let (handle, (reply, answer)) = (self.handle.clone(), oneshot::channel());
        // Whoever asked may go away: the request is there.
        self.world.executor.spawn(self.node, async move {
            let answer = handle.ask(command).await;
            let _gone = reply.send(answer);
        });
        let answer = answer.await.map_err(|_| out_of_reach())?;
        network.travel(self.host, from).await.map_err(lost)?;
        Ok(answer)
    }

    fn declined(&self, refused: &Refused) -> Declined {
        let status = refusal_status(refused, &self.handle.status().borrow());
        Declined {
            failure: mks2_proto::dial::failure(&status),
            again: mks2_proto::dial::is_transient(&status),
        }
    }

    pub(super) async fn register(
        &self,
        from: Host,
        registration: Registration,
    ) -> Result<Rc<v1::RegisterResponse>, Declined> {
        let register = |reply| Command::Register(registration, reply);
        let answer = self.ask(from, register).await?;
        let yes = answer.map_err(|refused| self.declined(&refused))?;
        Ok(Rc::new(convert::welcome(&self.welcome, yes.welcome)))
    }

    pub(super) async fn commit(
        &self,
        from: Host,
        request: v1::CommitCheckpointRequest,
        who: Identity,
    ) -> Result<Vec<v1::CheckpointRef>, Declined> {
        let checkpoint = convert::checkpoint(&request).map_err(|no| self.declined(&no))?;
        let commit = move |reply| Command::Commit {
            who,
            generation: Generation(request.generation),
            checkpoint,
            manifest: Bytes::from(request.manifest),
            reply,
        };
        let answer = self.ask(from, commit).await?;
        let yes = answer.map_err(|refused| self.declined(&refused))?;
        Ok(yes.released.into_iter().map(Into::into).collect())
    }

    /// Why the run is in its state, as the coordinator shows it.
    pub(super) fn reason(&self) -> String {
        self.handle.status().borrow().reason.clone()
    }

    /// Somebody asks the run to stop.
    pub(super) fn stop(&self) {
        let handle = self.handle.clone();
        self.world.executor.spawn(self.node, async move {
            let stop = |reply| Command::Stop("the simulation asks for it".into(), reply);
            let _over = handle.ask(stop).await;
        });
    }

    /// Opens a stream; the first report on it says whose it is.
    pub(super) async fn open(self: &Rc<Self>, from: (Host, NodeId)) -> Result<Line, Declined> {
        let network = &self.world.network;
        let lost = |_| out_of_reach();
        network.travel(from.0, self.host).await.map_err(lost)?;
        if !self.world.executor.is_alive(self.node) {
            return Err(out_of_reach());
        }
        let (reports, directives) = network.connect(from, (self.host, self.node));
        let served = serve(
            self.handle.clone(),
            Rc::clone(&reports),
            Rc::clone(&directives),
        );
        self.world.executor.spawn(self.node, served);
        Ok(Line {
            reports,
            directives,
        })
    }
}

fn out_of_reach() -> Declined {
    Declined {
        failure: Failure::environment("the coordinator is out of reach", "nobody answers", ""),
        again: true,
    }
}

/// One member's stream: what `service::session` does.
async fn serve(handle: Handle, reports: Rc<Pipe<v1::Report>>, down: Rc<Pipe<v1::Directive>>) {
    let (directives, mut outgoing): (Directives, _) = mpsc::channel(DIRECTIVES);
    let forward = async {
        while let Some(Ok(directive)) = outgoing.recv().await.map(|boxed| *boxed) {
            down.send(directive);
        }
        down.close();
    };
    let listen = async {
        let Some(Some(first)) = within(FIRST_REPORT, reports.recv()).await else {
            return;
        };
        let who = Identity {
            member: mks2_proto::ids::MemberId::new(&first.member_id).expect("good"),
            incarnation: Incarnation(first.incarnation),
        };
        let stream = handle.new_stream();
        let whose = who.clone();
        let attach = |reply| Command::Attach {
            stream,
            who: whose,
            directives,
            reply,
        };
        if handle.ask(attach).await.is_err() {
            return;
        }
        let voice = Voice::new(&handle, who.clone());
        let mut next = Some(first);
        while let Some(report) = next {
            let generation = Generation(report.generation);
            if let Some(kind) = report.kind
                && !voice.say(generation, kind).await
            {
                return;
            }
            next = reports.recv().await;
        }
        let how = "it closed its stream".to_owned();
        handle.tell(Command::Detach(stream, who, how)).await;
    };
    tokio::join!(listen, forward);
}

/// A generation's members as the journal and the wire both tell them: process and lanes by rank.
pub(super) type Seats = Vec<(u64, Vec<u32>)>;

pub(super) fn seats(generation: &v1::Generation) -> Seats {
    let members = generation.members.iter();
    members
        .map(|member| (process_at(&member.data_address), member.lanes.clone()))
        .collect()
}

/// Where a process listens: each has an address of its own, by which the others know it.
pub(super) fn address_of(process: Incarnation) -> String {
    format!("process-{}:1", process.0)
}

fn process_at(address: &str) -> u64 {
    let number = address.strip_prefix("process-");
    let number = number.and_then(|number| number.strip_suffix(":1"));
    number
        .and_then(|number| number.parse().ok())
        .expect("an address")
}

/// The number of the next stream, request or process of the simulation.
#[derive(Default)]
pub(super) struct Numbers(Cell<u64>);

impl Numbers {
    pub(super) fn next(&self) -> u64 {
        self.0.set(self.0.get() + 1);
        self.0.get()
    }
}
