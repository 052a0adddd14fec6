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
//!
//! A newcomer has no state of training: it gets it behind the standings, before anybody goes on, and
//! stands from then on where its source does (see [`handover`]).

use std::sync::Arc;

use mks2_dataset::plan::Plan;
use mks2_proto::agreement::hindmost;
use mks2_proto::env::WorkerEnv;
use mks2_proto::failure::Failure;
use mks2_proto::v1::Phase;
use tch::Device;
use tracing::info;

use crate::collectives::nccl::NcclMesh;
use crate::collectives::tcp::{Broken, DataListener, Mesh, Roster};
use crate::collectives::{AbortFlag, Collective, CollectiveError, Limits};
use crate::exact::ReduceError;
use crate::flat::FlatLayout;
use crate::session::{Assignment, Call, Session};

mod cause;
mod handover;
mod standing;

pub use cause::Cause;
pub use handover::{Arrival, Blank, Original, Role};
pub use mks2_proto::agreement::{Part, Point};
pub use standing::Standing;

/// Why a piece of joint work did not come to its end.
#[derive(Debug)]
pub enum Setback {
    /// A peer was lost, or the way to it, or the members are not alike: [`Team::regroup`], then do
    /// it again.
    Peers(Cause),
    /// This worker cannot go on.
    Fatal(Failure),
}

impl From<CollectiveError> for Setback {
    fn from(error: CollectiveError) -> Self {
        if error.is_about_peers() {
            Self::Peers(Cause::Failed(error))
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
    /// Steps after which the members' copies of the state were compared last, and alike.
    compared: u64,
    link: Option<Link>,
}

/// What a member of a run needs to find the others.
struct Link {
    session: Arc<Session>,
    listener: DataListener,
    run_id: String,
    token: String,
    device: Device,
    /// Its place in the present generation; none before it has one.
    assignment: Option<Assignment>,
}

/// Why a generation is left.
enum Leaving {
    /// It cannot go on.
    Broken(Cause),
    /// All have agreed to.
    AtBorder(u64),
}

/// Digest of what a newcomer and those who are there must have in common.
pub fn identity(
    (stage, bases): (&str, &blake3::Hash),
    plan: &Plan,
    layout: &FlatLayout,
) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(stage.as_bytes());
    hasher.update(bases.as_bytes());
    hasher.update(plan.digest().as_bytes());
    hasher.update(layout.digest().as_bytes());
    hasher.finalize()
}

impl Team {
    /// A worker that is nobody's peer and holds all lanes.
    #[must_use]
    pub fn alone(held: Vec<u32>) -> Self {
        Self {
            collective: Box::new(Mesh::alone()),
            held,
            point: Point::default(),
            compared: 0,
            link: None,
        }
    }

    /// A worker that has registered with a run, and is in none of its generations.
    #[must_use]
    pub fn outside(
        env: &WorkerEnv,
        session: &Arc<Session>,
        listener: DataListener,
        device: Device,
    ) -> Self {
        let link = Link {
            session: Arc::clone(session),
            listener,
            run_id: session.welcome().run_id.clone(),
            token: env.token.clone(),
            device,
            assignment: None,
        };
        Self {
            link: Some(link),
            ..Self::alone(Vec::new())
        }
    }

    /// Joins the run's first generation, and connects with its other members.
    ///
    /// # Errors
    /// When the run ends before.
    pub fn join(&mut self, first: Assignment) -> Result<(), Failure> {
        let mut standing = Standing::default();
        if let Some(link) = &mut self.link {
            link.assignment = Some(first);
            let from = link.session.welcome().resume_from;
            standing.committed = from.map_or(0, |from| from.step);
        }
        let role = &mut Role::Veteran(None);
        match self.connect(&standing, role) {
            Ok(_) => Ok(()),
            Err(Setback::Peers(cause)) => {
                let cause = Leaving::Broken(cause);
                self.go_on(cause, &standing, role).map(drop)
            }
            Err(Setback::Fatal(failure)) => Err(failure),
        }
    }

    /// Takes part in a run at work (P9): waits for the first generation that counts this worker in,
    /// and gets the state of training from its other members. False when the run has gone on to a
    /// stage that this worker has not prepared: there is another invitation than number `invited`.
    ///
    /// # Errors
    /// When the run ends before, or the state cannot be got.
    pub fn enter_run(&mut self, invited: u64, arrival: &mut Arrival<'_>) -> Result<bool, Failure> {
        let Some(link) = &mut self.link else {
            return Ok(true);
        };
        match link.session.wait_call(invited)? {
            Call::Generation(assignment) => link.assignment = Some(assignment),
            Call::Invitation => return Ok(false),
        }
        let standing = Standing {
            point: self.point,
            ..Standing::default()
        };
        let mut cause = match self.connect(&standing, &mut Role::Newcomer(arrival)) {
            Ok(_) => return Ok(true),
            Err(setback) => setback,
        };
        loop {
            match cause {
                Setback::Fatal(failure) => return Err(failure),
                Setback::Peers(cause) => self.leave(Leaving::Broken(cause))?,
            }
            match self.connect(&standing, &mut Role::Newcomer(arrival)) {
                Ok(_) => return Ok(true),
                Err(setback) => cause = setback,
            }
        }
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

    /// Number of the generation; 0 for a worker that is in none.
    #[must_use]
    pub fn generation(&self) -> u64 {
        let assignment = self.link.as_ref().and_then(|link| link.assignment.as_ref());
        assignment.map_or(0, |assignment| assignment.generation)
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

    /// Steps after which the members' copies of the state were compared last, and alike, or with which
    /// they began. A member that is alone is taken to be right.
    #[must_use]
    pub fn compared(&self) -> u64 {
        self.compared
    }

    /// Says after which steps the copies were compared last.
    pub fn set_compared(&mut self, step: u64) {
        self.compared = step;
    }

    /// An error once the generation is over: what follows would be thrown away.
    ///
    /// # Errors
    /// [`Setback::Peers`].
    pub fn check(&self) -> Result<(), Setback> {
        let assignment = self.link.as_ref().and_then(|link| link.assignment.as_ref());
        match assignment {
            Some(assignment) => Ok(assignment.abort.check()?),
            None => Ok(()),
        }
    }

    /// After a collective failed: joins the next generation, connects with those that are left,
    /// hands the state over to those that are new, and returns where each stands who was there
    /// before, this worker included.
    ///
    /// # Errors
    /// When the run is over for this worker.
    pub fn regroup(
        &mut self,
        cause: Cause,
        standing: &Standing,
        original: Option<Original<'_>>,
    ) -> Result<Vec<Standing>, Failure> {
        let cause = Leaving::Broken(cause);
        self.go_on(cause, standing, &mut Role::Veteran(original))
    }

    /// All have agreed to let the generation end behind a step: does the same as
    /// [`Team::regroup`].
    ///
    /// # Errors
    /// When the run is over for this worker.
    pub fn meet(
        &mut self,
        standing: &Standing,
        original: Option<Original<'_>>,
    ) -> Result<Vec<Standing>, Failure> {
        let cause = Leaving::AtBorder(standing.committed);
        self.go_on(cause, standing, &mut Role::Veteran(original))
    }

    fn go_on(
        &mut self,
        mut cause: Leaving,
        standing: &Standing,
        role: &mut Role<'_, '_>,
    ) -> Result<Vec<Standing>, Failure> {
        loop {
            self.leave(cause)?;
            match self.connect(standing, role) {
                Ok(mut standings) => {
                    standings.retain(|one| one.newcomer.is_none());
                    return Ok(standings);
                }
                Err(Setback::Peers(broken)) => cause = Leaving::Broken(broken),
                Err(Setback::Fatal(failure)) => return Err(failure),
            }
        }
    }

    /// Gives the generation up and waits for the next one.
    fn leave(&mut self, cause: Leaving) -> Result<(), Failure> {
        // Closed connections tell the others sooner than silence.
        self.collective = Box::new(Mesh::alone());
        let link = self.link.as_mut();
        let Some((before, link)) = link.and_then(|link| Some((link.assignment.take()?, link)))
        else {
            return match cause {
                Leaving::Broken(cause) => Err(cause.into()),
                Leaving::AtBorder(_) => Ok(()),
            };
        };
        let generation = before.generation;
        if matches!(cause, Leaving::Broken(_)) {
            link.session.set_back();
        }
        match cause {
            Leaving::Broken(cause @ Cause::Differ(_)) => cause.report(&link.session, &before)?,
            _ if before.abort.is_raised() => {
                info!(generation = generation as i64, "the generation is over");
            }
            Leaving::Broken(cause) => cause.report(&link.session, &before)?,
            Leaving::AtBorder(step) => {
                info!(
                    generation = generation as i64,
                    "the generation ends at a step boundary"
                );
                link.session.at_border(generation, step)?;
            }
        }
        link.session.set_phase(Phase::Regrouping, 0);
        link.assignment = Some(link.session.wait_generation(generation)?);
        Ok(())
    }

    /// Connects with the members of the generation, exchanges standings, and hands the state over
    /// where somebody needs it.
    fn connect(
        &mut self,
        standing: &Standing,
        role: &mut Role<'_, '_>,
    ) -> Result<Vec<Standing>, Setback> {
        let connection = self.link.as_ref();
        let Some((link, assignment)) = connection.and_then(|l| Some((l, l.assignment.as_ref()?)))
        else {
            return Ok(vec![standing.clone()]);
        };
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
        self.collective = link.mesh(assignment)?;
        let mine = match role {
            Role::Newcomer(arrival) => arrival.standing(standing),
            Role::Veteran(_) => standing.clone(),
        };
        let all = self.collective.all_gather(&mine.encode())?;
        let decoded = all.iter().enumerate().map(|(rank, bytes)| {
            Standing::decode(bytes).ok_or_else(|| {
                Failure::internal(
                    "the workers cannot go on together",
                    format!("rank {rank} sent a standing that can not be read"),
                )
            })
        });
        let all = decoded.collect::<Result<Vec<_>, _>>()?;
        if all.iter().any(|one| one.newcomer.is_some()) {
            let collective = self.collective.sequence() + 1;
            link.session.set_phase(Phase::Regrouping, collective);
        }
        let source = handover::hand_over(&mut *self.collective, &all, role)?;
        if let (Role::Newcomer(arrival), Some(source)) = (role, source) {
            info!(
                step = source.committed as i64,
                "the state of training was handed over"
            );
            self.point = match arrival.has_state() {
                true => source.point,
                // Where there is no state all do again what one of them has not done.
                false => hindmost(points_of_veterans(&all), source.point),
            };
            self.compared = source.compared;
            link.session.entered(source.committed)?;
        }
        Ok(all)
    }
}

fn points_of_veterans(all: &[Standing]) -> impl Iterator<Item = Point> {
    let veterans = all.iter().filter(|one| one.newcomer.is_none());
    veterans.map(|one| one.point)
}

impl Link {
    /// Tells the coordinator of a link that broke while nobody here uses it.
    fn complaint(&self, assignment: &Assignment) -> Arc<Broken> {
        let (session, generation) = (Arc::clone(&self.session), assignment.generation);
        let members = assignment.members.clone();
        Arc::new(move |rank, why| {
            if let Some(member) = members.get(rank) {
                session.link_broke(generation, member, why);
            }
        })
    }

    fn mesh(&self, assignment: &Assignment) -> Result<Box<dyn Collective>, CollectiveError> {
        let roster = Roster {
            run_id: self.run_id.clone(),
            token: self.token.clone(),
            generation: assignment.generation,
            rank: assignment.rank as usize,
            addresses: assignment.addresses.clone(),
            broken: Some(self.complaint(assignment)),
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
