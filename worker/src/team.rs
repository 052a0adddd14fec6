//! The workers of a generation, and how those that are left go on in the next one.
//!
//! ```text
//! a collective fails ─► tell the coordinator ─► next generation ─► connect ─► everybody's Standing
//!                                                    ▲                │
//!                                                    └── fails again ─┘
//! ```
//!
//! Every collective needs every member, so members are never further apart than one of them: where
//! one has just passed a point, no other is two points behind. What a member that is behind has to
//! do follows from the [`Standing`]s alone:
//!
//! | mine | another's | what I do |
//! |---|---|---|
//! | start of a stage | later | all had agreed: go on |
//! | in a step | one step more is committed | apply the gradient that I have: all had voted |
//! | end of a stage | later | nobody was asked to stop: go on |
//! | anything | the same or earlier | do it again, with what is still there |

use std::sync::Arc;

use mks2_proto::env::WorkerEnv;
use mks2_proto::failure::Failure;
use mks2_proto::v1::Phase;
use tch::Device;
use tracing::{info, warn};

use crate::collectives::nccl::NcclMesh;
use crate::collectives::tcp::{DataListener, Mesh, Roster};
use crate::collectives::{AbortFlag, Collective, CollectiveError, Limits};
use crate::exact::ReduceError;
use crate::session::{Assignment, Session};

mod standing;

pub use standing::{Part, Point, Standing};

/// Why a piece of joint work did not come to its end.
#[derive(Debug)]
pub enum Setback {
    /// A peer was lost, or the way to it: [`Team::regroup`], then do it again.
    Peers(CollectiveError),
    /// This worker cannot go on.
    Fatal(Failure),
}

impl From<CollectiveError> for Setback {
    fn from(error: CollectiveError) -> Self {
        if error.is_about_peers() {
            Self::Peers(error)
        } else {
            Self::Fatal(error.into())
        }
    }
}

impl From<Failure> for Setback {
    fn from(failure: Failure) -> Self {
        Self::Fatal(failure)
    }
}

impl From<ReduceError> for Setback {
    fn from(error: ReduceError) -> Self {
        match error {
            ReduceError::Collective(error) => error.into(),
            other => Self::Fatal(other.into()),
        }
    }
}

/// This worker and the others of its generation.
pub struct Team {
    collective: Box<dyn Collective>,
    held: Vec<u32>,
    point: Point,
    link: Option<Link>,
}

/// What a member of a run needs to find the others.
struct Link {
    session: Arc<Session>,
    listener: DataListener,
    run_id: String,
    token: String,
    device: Device,
    assignment: Assignment,
}

impl Team {
    /// A worker that is nobody's peer and holds all lanes.
    #[must_use]
    pub fn alone(held: Vec<u32>) -> Self {
        Self {
            collective: Box::new(Mesh::alone()),
            held,
            point: Point::default(),
            link: None,
        }
    }

    /// Joins the run's generation, and connects with its other members.
    ///
    /// # Errors
    /// When the run ends before.
    pub fn join(
        env: &WorkerEnv,
        session: &Arc<Session>,
        listener: DataListener,
        device: Device,
        standing: &Standing,
    ) -> Result<Self, Failure> {
        let assignment = session.wait_generation(0)?;
        let link = Link {
            session: Arc::clone(session),
            listener,
            run_id: env.run_id.clone(),
            token: env.token.clone(),
            device,
            assignment,
        };
        let mut team = Self {
            collective: Box::new(Mesh::alone()),
            held: Vec::new(),
            point: standing.point,
            link: Some(link),
        };
        if let Err(setback) = team.connect(standing) {
            match setback {
                Setback::Peers(cause) => team.regroup(cause, standing).map(drop)?,
                Setback::Fatal(failure) => return Err(failure),
            }
        }
        Ok(team)
    }

    /// The operations between the members.
    pub fn collective(&mut self) -> &mut dyn Collective {
        &mut *self.collective
    }

    /// This worker's rank.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.collective.rank()
    }

    /// Number of members.
    #[must_use]
    pub fn world(&self) -> usize {
        self.collective.world()
    }

    /// Lanes that this worker holds, ascending.
    #[must_use]
    pub fn held(&self) -> &[u32] {
        &self.held
    }

    /// Number of the generation; 0 for a worker that is nobody's peer.
    #[must_use]
    pub fn generation(&self) -> u64 {
        let link = self.link.as_ref();
        link.map_or(0, |link| link.assignment.generation)
    }

    /// Where in the run this worker is.
    #[must_use]
    pub fn point(&self) -> Point {
        self.point
    }

    /// Says where in the run this worker is from now on.
    pub fn enter(&mut self, point: Point) {
        self.point = point;
    }

    /// An error once the generation is over: what follows would be thrown away.
    ///
    /// # Errors
    /// [`Setback::Peers`].
    pub fn check(&self) -> Result<(), Setback> {
        match &self.link {
            Some(link) => Ok(link.assignment.abort.check()?),
            None => Ok(()),
        }
    }

    /// After a collective failed: joins the next generation, connects with those that are left,
    /// and returns where each of them stands, this worker included, by rank.
    ///
    /// # Errors
    /// When the run is over for this worker.
    pub fn regroup(
        &mut self,
        cause: CollectiveError,
        standing: &Standing,
    ) -> Result<Vec<Standing>, Failure> {
        let mut cause = cause;
        loop {
            self.leave(cause)?;
            match self.connect(standing) {
                Ok(standings) => return Ok(standings),
                Err(Setback::Peers(error)) => cause = error,
                Err(Setback::Fatal(failure)) => return Err(failure),
            }
        }
    }

    /// Gives the generation up and waits for the next one.
    fn leave(&mut self, cause: CollectiveError) -> Result<(), Failure> {
        // Closed connections tell the others sooner than silence.
        self.collective = Box::new(Mesh::alone());
        let Some(link) = &mut self.link else {
            return Err(cause.into());
        };
        let before = &link.assignment;
        if before.abort.is_raised() {
            info!(generation = before.generation as i64, why = %cause, "the generation is over");
        } else {
            warn!(generation = before.generation as i64, why = %cause, "a collective failed");
            let blamed = cause.rank().and_then(|rank| before.members.get(rank));
            let blamed = blamed.map_or("", String::as_str);
            link.session
                .peer_lost(before.generation, blamed, &cause.to_string())?;
        }
        link.assignment = link.session.wait_generation(before.generation)?;
        Ok(())
    }

    /// Connects with the members of the generation and exchanges standings.
    fn connect(&mut self, standing: &Standing) -> Result<Vec<Standing>, Setback> {
        let Some(link) = &self.link else {
            return Ok(vec![standing.clone()]);
        };
        let assignment = &link.assignment;
        link.session.set_phase(Phase::Regrouping, 0);
        info!(
            generation = assignment.generation as i64,
            rank = i64::from(assignment.rank),
            world = i64::from(assignment.world),
            lanes = ?assignment.lanes,
            reason = %assignment.reason,
            "generation joined"
        );
        self.held.clone_from(&assignment.lanes);
        self.collective = link.mesh()?;
        let all = self.collective.all_gather(&standing.encode())?;
        let decoded = all.iter().enumerate().map(|(rank, bytes)| {
            Standing::decode(bytes).ok_or_else(|| {
                Failure::internal(
                    "the workers cannot go on together",
                    format!("rank {rank} sent a standing that can not be read"),
                )
            })
        });
        Ok(decoded.collect::<Result<_, _>>()?)
    }
}

impl Link {
    fn mesh(&self) -> Result<Box<dyn Collective>, CollectiveError> {
        let assignment = &self.assignment;
        let roster = Roster {
            run_id: self.run_id.clone(),
            token: self.token.clone(),
            generation: assignment.generation,
            rank: assignment.rank as usize,
            addresses: assignment.addresses.clone(),
        };
        // A member may still compute a lane when the others connect: they wait as long as they
        // would in a collective. Who is lost meanwhile is not waited for.
        let limits = Limits::default();
        let limits = Limits {
            connect: limits.silence,
            ..limits
        };
        let abort: &AbortFlag = &assignment.abort;
        let mesh = Mesh::form(&self.listener, &roster, &limits, abort)?;
        Ok(match self.device {
            Device::Cuda(number) => Box::new(NcclMesh::new(mesh, number, &limits, abort)?),
            _ => Box::new(mesh),
        })
    }
}
