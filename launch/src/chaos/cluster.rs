//! The processes of one run under test, and the bad network between them.
//!
//! ```text
//! coordinator, a process of its own, at one of two addresses
//!      ▲ one proxy per worker and address
//! worker-0 ... worker-N, each behind a proxy that its peers have to go through
//! ```

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use mks2_proto::dial::{self, Client, Target};
use mks2_proto::env;
use mks2_proto::failure::Failure;
use mks2_proto::v1::{ScaleRequest, StopRequest};
use tokio::net::TcpStream;
use tokio::process::Child;

use super::ports;
use super::proxy::{Passage, Proxy, Way, Weather};
use super::schedule::{Cut, Link};
use super::setup::Setup;
use crate::train::cause;
use crate::train::fleet::{Exit, Fleet, Orders, Start};
use crate::train::spawn::{self, SpawnError};

/// How long a coordinator may take until it listens.
const LISTENS: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(5);
/// How long a request to the coordinator may take.
const ANSWER: Duration = Duration::from_secs(2);
/// How long the workers of a run that is over may take to leave.
const PATIENCE: Duration = Duration::from_secs(20);

/// The processes of one run.
#[derive(Debug)]
pub(super) struct Cluster<'a> {
    setup: &'a Setup,
    /// The run directory.
    run: PathBuf,
    pub(super) fleet: Fleet,
    coordinator: Option<Child>,
    addresses: [SocketAddr; 2],
    seat: usize,
    lines: Vec<Lines>,
}

/// A process that ended.
#[derive(Debug)]
pub(super) enum Ended {
    Worker(Exit),
    /// The coordinator, by itself.
    Coordinator(Option<ExitStatus>),
}

/// The connections of one worker's place.
#[derive(Debug)]
struct Lines {
    to_coordinator: [Proxy; 2],
    from_peers: Proxy,
    /// Where the worker listens for its peers.
    data: SocketAddr,
}

impl Lines {
    async fn new(coordinators: &[SocketAddr; 2]) -> std::io::Result<Self> {
        let data = ports::free()?;
        Ok(Self {
            to_coordinator: [
                Proxy::start(coordinators[0]).await?,
                Proxy::start(coordinators[1]).await?,
            ],
            from_peers: Proxy::start(data).await?,
            data,
        })
    }

    fn coordinators(&self) -> String {
        let url = |proxy: &Proxy| format!("http://{}", proxy.address());
        let urls = self.to_coordinator.iter().map(url);
        urls.collect::<Vec<_>>().join(",")
    }
}

impl<'a> Cluster<'a> {
    /// Starts a coordinator and all workers of a new run.
    ///
    /// # Errors
    /// A program or a port is missing (exit 6), the coordinator refuses the job (its own).
    pub(super) async fn start(setup: &'a Setup, run: &Path) -> Result<Self, Failure> {
        let logs = run.join("logs");
        std::fs::create_dir_all(&logs)
            .map_err(|error| Failure::io(format!("{} cannot be made", logs.display()), error))?;
        let no_port = |error| Failure::io("a port for the run cannot be had", error);
        let addresses = [
            ports::free().map_err(no_port)?,
            ports::free().map_err(no_port)?,
        ];
        let mut lines = Vec::new();
        for _ in 0..setup.workers {
            let of_one = Lines::new(&addresses).await;
            lines.push(of_one.map_err(no_port)?);
        }
        let orders = Orders {
            program: setup.worker.clone(),
            coordinator: String::new(),
            token: setup.token.reveal().to_owned(),
            // Whichever the coordinator has.
            run_id: String::new(),
            workers: setup.workers,
            logs,
            log_format: "text",
        };
        let mut cluster = Self {
            setup,
            run: run.to_owned(),
            fleet: Fleet::empty(&orders),
            coordinator: None,
            addresses,
            seat: 0,
            lines,
        };
        cluster.start_coordinator(false).await?;
        for place in 0..setup.workers {
            cluster.start_worker(place, 0)?;
        }
        Ok(cluster)
    }

    /// Starts a coordinator, at the address of the last one or at the other, and waits until it
    /// listens.
    ///
    /// # Errors
    /// Its program cannot be started, or it ends before.
    pub(super) async fn start_coordinator(&mut self, moves: bool) -> Result<(), Failure> {
        if moves {
            self.seat = 1 - self.seat;
        }
        let address = self.addresses[self.seat];
        let log = self.run.join("logs").join("coordinator.log");
        let arguments = self.setup.coordinator_arguments(&self.run, address);
        let token = (env::TOKEN.to_owned(), self.setup.token.reveal().to_owned());
        let program = &self.setup.coordinator;
        let child = spawn::start(program, &arguments, &[token], &log);
        let mut child = child.map_err(|error| {
            let (SpawnError::Log(error) | SpawnError::Program(error)) = error;
            Failure::io(format!("{} cannot be started", program.display()), error)
        })?;
        let late = tokio::time::Instant::now() + LISTENS;
        while TcpStream::connect(address).await.is_err() {
            let ended = child.try_wait().ok().flatten();
            if ended.is_some() || tokio::time::Instant::now() > late {
                return Err(cause::of_coordinator(&log, ended));
            }
            tokio::time::sleep(LOOK).await;
        }
        self.coordinator = Some(child);
        Ok(())
    }

    /// Kills the coordinator and waits until it is gone. False: there is none.
    pub(super) async fn kill_coordinator(&mut self) -> bool {
        let Some(mut child) = self.coordinator.take() else {
            return false;
        };
        // It may have ended by itself.
        let _ended = child.start_kill();
        let _reaped = child.wait().await;
        true
    }

    /// Waits for the next end of a process. Cancel safe.
    pub(super) async fn next_end(&mut self) -> Ended {
        let coordinator = &mut self.coordinator;
        let coordinator_ends = async {
            match coordinator {
                Some(child) => child.wait().await.ok(),
                None => std::future::pending().await,
            }
        };
        let ended = tokio::select! {
            exit = self.fleet.next_exit() => Ended::Worker(exit),
            status = coordinator_ends => Ended::Coordinator(status),
        };
        if matches!(ended, Ended::Coordinator(_)) {
            self.coordinator = None;
        }
        ended
    }

    pub(super) fn has_coordinator(&self) -> bool {
        self.coordinator.is_some()
    }

    /// Starts a worker in its place, in clear weather.
    ///
    /// # Errors
    /// Its program or its log.
    pub(super) fn start_worker(&mut self, place: u32, restarts: u32) -> Result<(), Failure> {
        let mut how = self.fleet.usual(place, restarts);
        if let Some(lines) = self.lines.get(place as usize) {
            how.variables
                .push((env::COORDINATOR.to_owned(), lines.coordinators()));
            how.variables.extend(through(lines));
        }
        self.fleet.start_by(place, &how)
    }

    /// The same by hand, as a user would: `mks2 worker --join`.
    ///
    /// # Errors
    /// As [`Cluster::start_worker`].
    pub(super) fn join_worker(&mut self, place: u32) -> Result<(), Failure> {
        let Some(lines) = self.lines.get(place as usize) else {
            return Ok(());
        };
        let words = [
            "worker",
            "--join",
            &lines.coordinators(),
            "--name",
            &format!("worker-{place}"),
            "--listen",
            &lines.data.to_string(),
        ];
        let mut variables = through(lines);
        let token = self.setup.token.reveal().to_owned();
        variables.push((env::TOKEN.to_owned(), token));
        let how = Start {
            program: self.setup.mks2.clone(),
            arguments: words.iter().map(|word| (*word).to_owned()).collect(),
            variables,
        };
        self.fleet.start_by(place, &how)
    }

    pub(super) fn is_alive(&self, place: u32) -> bool {
        let worker = self.fleet.workers().get(place as usize);
        worker.is_some_and(|worker| worker.exit.is_none())
    }

    /// Cuts connections of a worker, those that are open and those that would come.
    pub(super) fn cut(&self, place: u32, link: Link, cut: Cut) {
        let swallowing = Way {
            passage: Passage::Swallowing,
            ..Way::default()
        };
        let weather = match cut {
            Cut::Reset => Weather::refusing(),
            Cut::HalfOpen => Weather::half_open(),
            Cut::OneWay => Weather {
                forth: swallowing,
                ..Weather::clear()
            },
        };
        self.change(place, link, weather);
    }

    pub(super) fn heal(&self, place: u32, link: Link) {
        self.change(place, link, Weather::clear());
    }

    fn change(&self, place: u32, link: Link, weather: Weather) {
        let Some(lines) = self.lines.get(place as usize) else {
            return;
        };
        match link {
            Link::Coordinator => {
                for proxy in &lines.to_coordinator {
                    proxy.set_weather(weather);
                }
            }
            Link::Peers => lines.from_peers.set_weather(weather),
        }
    }

    /// Sets how many workers the run is to have.
    ///
    /// # Errors
    /// The coordinator does not answer, or refuses.
    pub(super) async fn scale(&self, workers: u32) -> Result<(), Failure> {
        let mut client = self.client().await?;
        let answer = client.scale(ScaleRequest { workers }).await;
        answer.map(drop).map_err(|status| dial::failure(&status))
    }

    /// Asks the run to stop with a checkpoint.
    ///
    /// # Errors
    /// As [`Cluster::scale`].
    pub(super) async fn stop(&self) -> Result<(), Failure> {
        let mut client = self.client().await?;
        let reason = "mks2 chaos has seen enough".to_owned();
        let answer = client.stop(StopRequest { reason }).await;
        answer.map(drop).map_err(|status| dial::failure(&status))
    }

    async fn client(&self) -> Result<Client, Failure> {
        let endpoint = format!("http://{}", self.addresses[self.seat]);
        let mut target = Target::new(endpoint, self.setup.token.clone());
        target.connect_timeout = ANSWER;
        target.request_timeout = ANSWER;
        target.connect().await
    }

    /// Ends everything that is still there. Workers whose run went `well` have time to leave.
    pub(super) async fn end(mut self, well: bool) {
        let patience = match well {
            true => PATIENCE,
            false => Duration::ZERO,
        };
        self.fleet.end(patience, patience).await;
        self.kill_coordinator().await;
        self.fleet.join().await;
    }

    pub(super) fn coordinator_log(&self) -> PathBuf {
        self.run.join("logs").join("coordinator.log")
    }
}

/// The variables of a worker that its peers reach through a proxy.
fn through(lines: &Lines) -> Vec<(String, String)> {
    let advertised = lines.from_peers.address().to_string();
    vec![
        (env::DATA_ADDRESS.to_owned(), lines.data.to_string()),
        (env::DATA_ADVERTISE.to_owned(), advertised),
    ]
}
