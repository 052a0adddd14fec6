//! The workers of a generation from one of them: follows `worker/src/team.rs`.

use std::rc::Rc;

use mks2_proto::{
    agreement::{self, Part, Place, Point, Verdict, hindmost, judge},
    failure::Failure,
    v1::{Phase, ReplicasDiffer},
};

use super::{
    mesh::{Broken, Mesh, Words},
    session::{Assignment, Call, Session},
};

/// Where a worker stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) point: Point,
    pub(super) committed: u64,
    /// The steps after which the copies were compared last.
    pub(super) compared: u64,
    /// It has no state of training yet.
    pub(super) is_newcomer: bool,
}

/// What a newcomer is told: the state of training, and the last steps with their generations and
/// the numbers of their members.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    pub(super) weights: u64,
    pub(super) recent: Vec<[u64; 3]>,
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
    assignment: Option<Assignment>,
    mesh: Option<Mesh>,
    pub(super) point: Point,
    pub(super) compared: u64,
}

impl Standing {
    fn place(&self) -> Option<Place> {
        let place = (self.point, self.committed, self.compared);
        (!self.is_newcomer).then_some(place)
    }

    fn encode(self) -> Words {
        let Point { stage, part } = self.point;
        vec![
            stage.into(),
            part as u64,
            self.committed,
            self.is_newcomer.into(),
            self.compared,
        ]
    }

    fn decode(words: &Words) -> Self {
        let part = u8::try_from(words[1]).ok().and_then(Part::of);
        Self {
            point: Point {
                stage: u32::try_from(words[0]).unwrap_or(u32::MAX),
                part: part.unwrap_or_default(),
            },
            committed: words[2],
            is_newcomer: words[3] == 1,
            compared: words[4],
        }
    }
}

impl State {
    fn encode(&self) -> Words {
        let recent = self.recent.iter().flatten().copied();
        std::iter::once(self.weights).chain(recent).collect()
    }

    /// None: whoever tells has none itself.
    fn decode(words: &Words) -> Option<Self> {
        let (weights, steps) = words.split_first()?;
        let steps = steps.chunks(3);
        Some(Self {
            weights: *weights,
            recent: steps.map(|step| [step[0], step[1], step[2]]).collect(),
        })
    }
}

/// Why a generation is left.
enum Leaving {
    Failed(Broken),
    AtBorder(u64),
}

impl Team {
    /// A worker that has registered and is in no generation.
    pub(super) fn outside(session: &Rc<Session>) -> Self {
        Self {
            session: Rc::clone(session),
            assignment: None,
            mesh: None,
            point: Point::default(),
            compared: 0,
        }
    }

    /// Joins the run's generation, and connects with its other members.
    pub(super) async fn join(&mut self, first: Assignment) -> Result<(), Failure> {
        self.assignment = Some(first);
        let from = self.session.welcome().resume_from.clone();
        let standing = Standing {
            committed: from.map_or(0, |from| from.step),
            ..Standing::default()
        };
        // It has none to tell. One that was invited under an earlier coordinator may be new here, and
        // gives up.
        match self.connect(standing, None).await {
            Ok(_) => Ok(()),
            Err(broken) => {
                let cause = Leaving::Failed(broken);
                self.go_on(cause, standing, None).await.map(drop)
            }
        }
    }

    /// Takes part in a run at work, with the state that the others have. None when the run has gone
    /// on to another stage.
    pub(super) async fn enter_run(
        &mut self,
        invited: u64,
    ) -> Result<Option<(Standing, State)>, Failure> {
        match self.session.wait_call(invited).await? {
            Call::Generation(assignment) => self.assignment = Some(assignment),
            Call::Invitation => return Ok(None),
        }
        let newcomer = Standing {
            point: self.point,
            committed: 0,
            compared: 0,
            is_newcomer: true,
        };
        loop {
            let broken = match self.connect(newcomer, None).await {
                Ok((all, Some((source, state)))) if source.point.stage == self.point.stage => {
                    let veterans = all.iter().filter(|one| !one.is_newcomer);
                    // An evaluation has no state.
                    self.point = match self.point.stage {
                        u32::MAX => hindmost(veterans.map(|one| one.point), source.point),
                        _ => source.point,
                    };
                    self.compared = source.compared;
                    self.session.entered(source.committed)?;
                    return Ok(Some((source, state)));
                }
                Ok(_) => return Err(Failure::environment("it cannot take part", "", "")),
                Err(broken) => broken,
            };
            self.leave(Leaving::Failed(broken)).await?;
        }
    }

    pub(super) fn held(&self) -> &[u32] {
        let assignment = self.assignment.as_ref();
        assignment.map_or(&[], |assignment| &assignment.lanes)
    }

    pub(super) fn rank(&self) -> usize {
        self.mesh.as_ref().map_or(0, Mesh::rank)
    }

    pub(super) fn world(&self) -> usize {
        self.mesh.as_ref().map_or(1, Mesh::world)
    }

    pub(super) fn generation(&self) -> u64 {
        self.assignment.as_ref().map_or(0, |a| a.generation)
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
            None => Err(Broken::new(None, "there are no connections")),
        }
    }

    /// Joins the next generation, connects with those that are left, hands the state over to those
    /// that are new, and returns where each stands who was there before.
    pub(super) async fn regroup(
        &mut self,
        cause: Broken,
        standing: Standing,
        state: &State,
    ) -> Result<Vec<Standing>, Failure> {
        self.go_on(Leaving::Failed(cause), standing, Some(state))
            .await
    }

    /// The same where all have agreed to let the generation end.
    pub(super) async fn meet(
        &mut self,
        standing: Standing,
        state: &State,
    ) -> Result<Vec<Standing>, Failure> {
        let cause = Leaving::AtBorder(standing.committed);
        self.go_on(cause, standing, Some(state)).await
    }

    async fn go_on(
        &mut self,
        cause: Leaving,
        standing: Standing,
        state: Option<&State>,
    ) -> Result<Vec<Standing>, Failure> {
        let mut cause = cause;
        loop {
            self.leave(cause).await?;
            match self.connect(standing, state).await {
                Ok((mut standings, _)) => {
                    standings.retain(|one| !one.is_newcomer);
                    return Ok(standings);
                }
                Err(broken) => cause = Leaving::Failed(broken),
            }
        }
    }

    /// Whether the copies of all members are alike; one that has none gives nothing.
    pub(super) async fn compare(&mut self, mine: Words) -> Result<(), Broken> {
        let all = self.all_gather(mine).await?;
        let digest = |words: &Rc<Words>| (!words.is_empty()).then(|| Rc::clone(words));
        let digests: Vec<_> = all.iter().map(digest).collect();
        let odd = match judge(&digests) {
            Verdict::Odd(odd) => Some(odd),
            Verdict::Split => Some(Vec::new()),
            Verdict::Alike => None,
        };
        match odd.filter(|_| !planted!(DifferencesIgnored)) {
            None => Ok(()),
            Some(odd) => {
                let checks = &self.session.world.checks;
                checks.borrow_mut().found(&self.session.who);
                Err(Broken {
                    differ: Some(odd),
                    ..Broken::new(None, "the copies differ")
                })
            }
        }
    }

    /// A damaged copy must not be doubled; a single one has to be believed.
    async fn compare_before(
        &mut self,
        all: &[Standing],
        source: &Standing,
        mine: Standing,
        state: Option<&State>,
    ) -> Result<(), Broken> {
        let place = (source.point, source.committed);
        let knows = |one: &Standing| !one.is_newcomer && (one.point, one.committed) == place;
        let are_few = all.iter().filter(|one| knows(one)).count() < 2;
        if are_few || planted!(HandedOverUncompared) {
            return Ok(());
        }
        let known = state.filter(|_| knows(&mine));
        let mine = known.map(|state| vec![state.weights]);
        self.compare(mine.unwrap_or_default()).await
    }

    async fn leave(&mut self, cause: Leaving) -> Result<(), Failure> {
        self.mesh = None;
        let Some(before) = self.assignment.take() else {
            return Ok(());
        };
        let generation = before.generation;
        match cause {
            Leaving::Failed(Broken {
                differ: Some(odd), ..
            }) => {
                let members = odd.iter().filter_map(|rank| before.members.get(*rank));
                let found = ReplicasDiffer {
                    member_ids: members.cloned().collect(),
                    ..ReplicasDiffer::default()
                };
                self.session.replicas_differ(generation, found)?;
            }
            _ if before.abort.is_raised() => {}
            Leaving::Failed(cause) => {
                let blamed = cause.rank.and_then(|rank| before.members.get(rank));
                let blamed = blamed.map_or("", String::as_str);
                self.session.peer_lost(generation, blamed, cause.why)?;
            }
            Leaving::AtBorder(step) => self.session.at_border(generation, step)?,
        }
        self.session.set_phase(Phase::Regrouping, 0);
        self.assignment = Some(self.session.wait_generation(generation).await?);
        Ok(())
    }

    /// Connects, exchanges standings, and where somebody is new hands the state over; then the
    /// source's standing and state come with it.
    async fn connect(
        &mut self,
        standing: Standing,
        state: Option<&State>,
    ) -> Result<(Vec<Standing>, Option<(Standing, State)>), Broken> {
        let Some(Assignment {
            generation,
            rank,
            hosts,
            seats,
            abort,
            ..
        }) = &self.assignment
        else {
            return Ok((vec![standing], None));
        };
        self.session.set_phase(Phase::Regrouping, 0);
        let world = &self.session.world;
        world.note("joins", &[self.session.node.0, *generation]);
        let same = (*generation, seats.clone());
        self.mesh = Some(world.meshes.join(&world.network, same, hosts, *rank, abort));
        let all = self.all_gather(standing.encode()).await?;
        let all: Vec<_> = all.iter().map(|words| Standing::decode(words)).collect();
        if all.iter().all(|one| !one.is_newcomer) {
            return Ok((all, None));
        }
        let source = agreement::source(all.iter().map(Standing::place));
        if let Some(rank) = source {
            self.compare_before(&all, &all[rank], standing, state)
                .await?;
        }
        let told = state.map(State::encode).unwrap_or_default();
        let states = self.all_gather(told).await?;
        let source = source.and_then(|rank| Some((all[rank], State::decode(&states[rank])?)));
        if let Some(source) = source.as_ref().filter(|_| standing.is_newcomer) {
            self.look_at(source, &all, &states);
        }
        Ok((all, source))
    }

    /// What a newcomer cannot see: whether the others have what it is told.
    fn look_at(&self, source: &(Standing, State), all: &[Standing], states: &[Rc<Words>]) {
        let (standing, told) = source;
        let place = (standing.point, standing.committed);
        let mut others = all.iter().zip(states);
        let has_others = others.any(|(one, words)| {
            let knows = !one.is_newcomer && (one.point, one.committed) == place;
            knows
                && words
                    .first()
                    .is_some_and(|weights| *weights != told.weights)
        });
        if has_others {
            let (member, step) = (&self.session.who.member, standing.committed);
            let words = format!("{member} was told others after step {step}");
            let world = &self.session.world;
            world.violated("a newcomer gets what all that have it hold alike", words);
        }
    }
}
