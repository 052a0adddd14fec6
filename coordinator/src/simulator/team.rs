//! The workers of a generation from one of them: follows `worker/src/team.rs`.

use std::rc::Rc;

use mks2_proto::{failure::Failure, v1::Phase};

use super::{
    mesh::{Broken, Mesh, Words},
    session::{Assignment, Session},
};

/// A place in the job: number of the stage, and the part of it.
pub(super) type Point = (u32, Part);

/// A part of a stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    #[default]
    Start,
    Steps,
    Border,
}

/// Where a worker stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) point: Point,
    pub(super) committed: u64,
}

/// Why a piece of joint work did not come to its end.
#[derive(Debug)]
pub(super) enum Setback {
    Peers(Broken),
    Fatal(Failure),
}

impl From<Broken> for Setback {
    fn from(broken: Broken) -> Self {
        Self::Peers(broken)
    }
}

impl From<Failure> for Setback {
    fn from(failure: Failure) -> Self {
        Self::Fatal(failure)
    }
}

/// This worker and the others.
pub(super) struct Team {
    session: Rc<Session>,
    assignment: Assignment,
    mesh: Option<Mesh>,
    pub(super) point: Point,
}

impl Standing {
    fn encode(self) -> Words {
        let (stage, part) = self.point;
        vec![stage.into(), part as u64, self.committed]
    }

    fn decode(words: &Words) -> Self {
        let part = match words[1] {
            0 => Part::Start,
            1 => Part::Steps,
            _ => Part::Border,
        };
        Self {
            point: (u32::try_from(words[0]).unwrap_or(u32::MAX), part),
            committed: words[2],
        }
    }
}

impl Team {
    /// Joins the run's generation, and connects with its other members.
    pub(super) async fn join(session: &Rc<Session>) -> Result<Self, Failure> {
        let assignment = session.wait_generation(0).await?;
        let from = session.welcome().resume_from.clone();
        let standing = Standing {
            committed: from.map_or(0, |from| from.step),
            ..Standing::default()
        };
        let mut team = Self {
            session: Rc::clone(session),
            assignment,
            mesh: None,
            point: standing.point,
        };
        match team.connect(standing).await {
            Ok(_) => Ok(team),
            Err(broken) => team.regroup(broken, standing).await.map(|_| team),
        }
    }

    pub(super) fn held(&self) -> &[u32] {
        &self.assignment.lanes
    }

    pub(super) fn rank(&self) -> usize {
        self.mesh.as_ref().map_or(0, Mesh::rank)
    }

    pub(super) fn world(&self) -> usize {
        self.mesh.as_ref().map_or(1, Mesh::world)
    }

    pub(super) fn generation(&self) -> u64 {
        self.assignment.generation
    }

    /// The number of the next collective.
    pub(super) fn next(&self) -> u64 {
        self.mesh.as_ref().map_or(0, Mesh::sequence) + 1
    }

    pub(super) fn check(&self) -> Result<(), Broken> {
        self.mesh.as_ref().map_or(Ok(()), Mesh::check)
    }

    pub(super) async fn all_gather(&mut self, mine: Words) -> Result<Vec<Rc<Words>>, Broken> {
        match &mut self.mesh {
            Some(mesh) => mesh.all_gather(mine).await,
            None => Err(Broken {
                rank: None,
                why: "there are no connections",
            }),
        }
    }

    /// Joins the next generation, connects with those that are left, and returns where each stands.
    pub(super) async fn regroup(
        &mut self,
        cause: Broken,
        standing: Standing,
    ) -> Result<Vec<Standing>, Failure> {
        let mut cause = cause;
        loop {
            self.leave(&cause).await?;
            match self.connect(standing).await {
                Ok(standings) => return Ok(standings),
                Err(broken) => cause = broken,
            }
        }
    }

    async fn leave(&mut self, cause: &Broken) -> Result<(), Failure> {
        self.mesh = None;
        let before = &self.assignment;
        if !before.abort.is_raised() {
            let blamed = cause.rank.and_then(|rank| before.members.get(rank));
            let blamed = blamed.map_or("", String::as_str);
            self.session
                .peer_lost(before.generation, blamed, cause.why)?;
        }
        self.assignment = self.session.wait_generation(before.generation).await?;
        Ok(())
    }

    async fn connect(&mut self, standing: Standing) -> Result<Vec<Standing>, Broken> {
        let Assignment {
            generation,
            rank,
            hosts,
            seats,
            abort,
            ..
        } = &self.assignment;
        self.session.set_phase(Phase::Regrouping, 0);
        let world = &self.session.world;
        world.note("joins", &[self.session.node.0, *generation]);
        let same = (*generation, seats.clone());
        self.mesh = Some(world.meshes.join(&world.network, same, hosts, *rank, abort));
        let all = self.all_gather(standing.encode()).await?;
        Ok(all.iter().map(|words| Standing::decode(words)).collect())
    }
}
