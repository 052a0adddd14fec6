//! A worker's trainer: follows `worker/src/run.rs`, `run/together.rs`, `train.rs` and what is below
//! them. A gradient is a number that depends on weights, step and lane; weights are a digest of all
//! gradients that were applied.

mod audit;
mod newcomer;
mod together;

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use mks2_proto::{
    agreement::{Part, Point, compares},
    failure::Failure,
    v1::{CheckpointRef, Phase, RegisterResponse, StageChanged, StepMetrics, report::Kind},
};

use super::{
    chance::{Chance, fold_number},
    executor::sleep,
    mesh::Broken,
    saver::{Content, Saver},
    session::{Call, Invitation, Session},
    team::{Setback, Standing, Team},
};
use crate::ledger::Leg;

/// How a run, or a stage of it, came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Complete,
    Stopped,
    LetGo,
    /// The run went on to the next stage before this worker took part.
    Overtaken,
}

struct Committed {
    generation: u64,
    step: u64,
    metrics: StepMetrics,
}

/// What all have agreed on at the end of a step.
#[derive(Clone, Copy, Default)]
struct Vote {
    stop: bool,
    regroup: bool,
}

/// What a worker has done of a step so far. It outlives a generation.
#[derive(Default)]
struct Work {
    loaded: BTreeSet<u32>,
    /// Gradients that are in the sum, by lane.
    summed: BTreeMap<u32, u64>,
    /// All lanes' gradients, as they came.
    reduced: Option<Vec<(u32, u64)>>,
    /// By a fault that was planted.
    sums_twice: bool,
}

/// The name of the stage that trains nothing.
const EVALUATION: &str = "evaluate";

/// One worker's part in a run.
pub(super) struct Trainer {
    session: Rc<Session>,
    welcome: Rc<RegisterResponse>,
    team: Team,
    saver: Saver,
    chance: Chance,
    weights: u64,
    committed: u64,
    recent: Vec<Committed>,
    /// For one that comes to a run at work, until it takes part.
    invitation: Option<Invitation>,
}

/// All of a worker's part.
pub(super) async fn run(session: &Rc<Session>) -> Result<End, Failure> {
    let mut team = Team::outside(session);
    let mut invitation = None;
    match session.wait_call(0).await? {
        Call::Invitation => invitation = Some(session.wait_invitation(0).await?),
        Call::Generation(first) => team.join(first).await?,
    }
    let mut trainer = Trainer {
        team,
        invitation,
        saver: Saver::new(session),
        chance: Chance::new(session.world.seed, &format!("trainer {}", session.host.0)),
        session: Rc::clone(session),
        welcome: session.welcome(),
        weights: 0,
        committed: 0,
        recent: Vec::new(),
    };
    trainer.run().await
}

impl Trainer {
    async fn run(&mut self) -> Result<End, Failure> {
        let world = Rc::clone(&self.session.world);
        let finished = self.welcome.finished_stages.clone();
        for (number, leg) in (0..).zip(&world.course.legs) {
            self.team.point = start_of(number);
            self.weights = fold_number(self.weights, number.into());
            if self.is_invited_to_another_than(&leg.name) {
                self.catch_up(&leg.name).await?;
                continue;
            }
            let end = match finished.iter().find(|done| done.stage == leg.name) {
                Some(done) => {
                    self.weights = self.saver.read(done).await?;
                    self.committed = done.step;
                    self.cross_alone().await?
                }
                None => {
                    self.session.report(Kind::StageChanged(StageChanged {
                        stage: leg.name.clone(),
                        first_step: leg.before,
                        last_step: leg.last_step(),
                    }))?;
                    let from = self.welcome.resume_from.clone();
                    let resume = from.filter(|from| from.stage == leg.name);
                    self.train(leg, resume).await?
                }
            };
            match end {
                End::Overtaken => self.catch_up(&leg.name).await?,
                End::Stopped => return Ok(End::Stopped),
                _ => {}
            }
        }
        // The evaluation behind the last stage.
        self.team.point = start_of(u32::MAX);
        let total = world.course.total_steps();
        self.session.report(Kind::StageChanged(StageChanged {
            stage: EVALUATION.to_owned(),
            first_step: total,
            last_step: total,
        }))?;
        if !self.come_to(EVALUATION, None).await? {
            return Err(Failure::internal("invited to no stage of the job", ""));
        }
        self.evaluate().await
    }

    async fn train(&mut self, leg: &Leg, resume: Option<CheckpointRef>) -> Result<End, Failure> {
        self.committed = leg.before;
        self.recent.clear();
        if let Some(resume) = resume {
            self.weights = self.saver.read(&resume).await?;
            self.committed = resume.step;
        }
        if !self.come_to(&leg.name, Some(leg)).await? {
            return Ok(End::Overtaken);
        }
        if self.team.point.part == Part::Start {
            self.team.compared = self.committed;
            self.agree().await?;
        }
        let mut stop = self.team.point.part == Part::Border;
        if !stop {
            self.team.point.part = Part::Steps;
        }
        let world = Rc::clone(&self.session.world);
        let job = &world.job;
        let began_at = self.committed;
        while self.committed < leg.last_step() && !stop {
            let step = self.committed - leg.before;
            if compares(&job.audit, &job.checkpoint, step) {
                self.audit().await?;
            }
            if self.committed > began_at && step.is_multiple_of(job.checkpoint.every_steps) {
                self.save(leg).await?;
            }
            stop = self.step(leg).await?;
        }
        let crossed = self.cross(leg).await?;
        match self.committed < leg.last_step() {
            true => Ok(End::Stopped),
            false => Ok(crossed),
        }
    }

    // The step.

    /// True when some worker was asked to stop.
    async fn step(&mut self, leg: &Leg) -> Result<bool, Failure> {
        let mut work = Work::default();
        let vote = loop {
            match self.attempt(&mut work).await {
                Ok(vote) => break vote,
                Err(Setback::Fatal(failure)) => return Err(failure),
                Err(Setback::Peers(cause)) => {
                    if let Some(vote) = self.regroup(cause, &mut work).await? {
                        break vote;
                    }
                }
            }
        };
        self.commit(leg, work).await?;
        if vote.regroup && !vote.stop && self.committed < leg.last_step() {
            let state = self.state();
            self.team.meet(self.standing(), &state).await?;
            self.tell_again()?;
        }
        Ok(vote.stop)
    }

    async fn attempt(&mut self, work: &mut Work) -> Result<Vote, Setback> {
        self.load(work).await?;
        self.gather(work).await?;
        self.gradients(work).await?;
        if planted!(VoteBeforeHeld) {
            let vote = self.vote(work).await?;
            return self.reduce(work).await.map(|()| vote);
        }
        self.reduce(work).await?;
        self.vote(work).await
    }

    async fn load(&mut self, work: &mut Work) -> Result<(), Failure> {
        self.session.set_phase(Phase::Loading, 0);
        self.session.world.mishap(self.session.host).await?;
        for lane in self.team.held() {
            if work.loaded.insert(*lane) {
                sleep(self.chance.millis(1, 8)).await;
            }
        }
        Ok(())
    }

    async fn gather(&mut self, work: &Work) -> Result<(), Setback> {
        self.session.set_phase(Phase::Gathering, self.team.next());
        let mine = work.loaded.iter().map(|lane| (*lane).into()).collect();
        let all = self.team.all_gather(mine).await?;
        let lanes = all.iter().flat_map(|words| words.iter().copied());
        self.once_each("gathered", lanes.collect())?;
        Ok(())
    }

    async fn gradients(&mut self, work: &mut Work) -> Result<(), Setback> {
        self.session.set_phase(Phase::Computing, 0);
        for lane in &work.loaded {
            if work.summed.contains_key(lane) {
                continue;
            }
            self.team.check()?;
            sleep(self.chance.millis(20, 160)).await;
            let of_step = fold_number(self.weights, self.committed + 1);
            work.summed
                .insert(*lane, fold_number(of_step, (*lane).into()));
        }
        Ok(())
    }

    async fn reduce(&mut self, work: &mut Work) -> Result<(), Setback> {
        self.session.set_phase(Phase::Reducing, self.team.next());
        let mine = work
            .summed
            .iter()
            .flat_map(|(lane, sum)| [(*lane).into(), *sum]);
        let mut mine: Vec<u64> = mine.collect();
        if work.sums_twice {
            mine.extend_from_within(..2);
        }
        let all = self.team.all_gather(mine).await?;
        let pairs = all
            .iter()
            .flat_map(|words| words.chunks(2).map(|pair| (pair[0], pair[1])));
        let pairs: Vec<_> = pairs
            .map(|(lane, sum)| (u32::try_from(lane).unwrap_or(u32::MAX), sum))
            .collect();
        work.reduced = Some(pairs);
        Ok(())
    }

    async fn vote(&mut self, _held: &Work) -> Result<Vote, Setback> {
        self.session.set_phase(Phase::Voting, self.team.next());
        let mine = Vote {
            stop: self.session.stop_requested(),
            regroup: self.session.regroup_requested(),
        };
        let words = vec![mine.stop.into(), mine.regroup.into()];
        let all = self.team.all_gather(words).await?;
        if planted!(StopAlone) {
            return Ok(mine);
        }
        let any = |at: usize| all.iter().any(|words| words[at] == 1);
        Ok(Vote {
            stop: any(0),
            regroup: any(1),
        })
    }

    async fn commit(&mut self, leg: &Leg, work: Work) -> Result<(), Failure> {
        let world = Rc::clone(&self.session.world);
        let reduced = work.reduced.unwrap_or_default();
        let lanes = reduced.iter().map(|(lane, _)| (*lane).into()).collect();
        self.once_each("summed", lanes)?;
        self.session.set_phase(Phase::Updating, 0);
        sleep(self.chance.millis(1, 5)).await;
        let sum = reduced
            .iter()
            .fold(0_u64, |sum, (_, one)| sum.wrapping_add(*one));
        self.weights = fold_number(self.weights, sum);
        self.committed += 1;
        let (step, generation) = (self.committed, self.team.generation());
        world.note("applies", &[self.session.node.0, step, generation]);
        world
            .checks
            .borrow_mut()
            .applied(&self.session.who, step, self.weights);
        self.look_whether_it_is_kept();
        self.lose_a_bit();
        let metrics = metrics(leg, step, self.team.world() as u64);
        let told = (self.team.rank() == 0).then(|| metrics.clone());
        self.recent.push(Committed {
            generation,
            step,
            metrics,
        });
        self.session.step_committed(generation, step, told)
    }

    /// Goes on with those that are left. Some: one of them has committed the step, and so must this
    /// one.
    async fn regroup(&mut self, cause: Broken, work: &mut Work) -> Result<Option<Vote>, Failure> {
        let (standing, state) = (self.standing(), self.state());
        let all = self.team.regroup(cause, standing, &state).await?;
        if planted!(StepsDoneAgain) {
            *work = Work::default();
            return self.tell_again().map(|()| None);
        }
        if let Some(ahead) = all.iter().find(|one| one.committed > standing.committed) {
            if work.reduced.is_none() || ahead.committed != standing.committed + 1 {
                return Err(self.apart(ahead));
            }
            self.tell_again()?;
            return Ok(Some(Vote {
                stop: all.iter().any(|one| one.point > standing.point),
                regroup: false,
            }));
        }
        work.reduced = None;
        let held = self.team.held();
        work.loaded.retain(|lane| held.contains(lane));
        let is_tainted = work.summed.keys().any(|lane| !held.contains(lane));
        if is_tainted {
            work.summed.clear();
        }
        work.sums_twice |= planted!(LanesSummedAgain);
        self.tell_again()?;
        Ok(None)
    }

    fn apart(&self, ahead: &Standing) -> Failure {
        let words = format!(
            "{} has committed {} steps and another one {}, and it cannot follow",
            self.session.who.member, self.committed, ahead.committed
        );
        self.session
            .world
            .violated("a step is applied by all or by none", words);
        Failure::internal("the workers have come apart", "")
    }

    fn tell_again(&self) -> Result<(), Failure> {
        if self.team.rank() != 0 || planted!(NewsNotRepeated) {
            return Ok(());
        }
        for one in &self.recent {
            let told = Some(one.metrics.clone());
            self.session
                .step_committed(one.generation, one.step, told)?;
        }
        Ok(())
    }

    fn standing(&self) -> Standing {
        Standing {
            point: self.team.point,
            committed: self.committed,
            compared: self.team.compared,
            is_newcomer: false,
        }
    }

    fn look_whether_it_is_kept(&self) {
        if let Some(since) = self.session.would_leave_since() {
            let mut checks = self.session.world.checks.borrow_mut();
            checks.works_on(&self.session.who, since);
        }
    }

    /// Every lane once.
    fn once_each(&self, what: &str, mut lanes: Vec<u64>) -> Result<(), Failure> {
        lanes.sort_unstable();
        if lanes
            .iter()
            .copied()
            .eq(0..self.session.world.job.lanes.into())
        {
            return Ok(());
        }
        let step = self.committed + 1;
        let words = format!("the lanes {lanes:?} were {what} in step {step}");
        self.session.world.violated("every row is used once", words);
        Err(Failure::internal("the lanes are not those of the job", ""))
    }

    /// Rank 0 saves the state after the last committed step.
    async fn save(&mut self, leg: &Leg) -> Result<(), Failure> {
        if self.team.rank() != 0 {
            return Ok(());
        }
        self.session.set_phase(Phase::Checkpointing, 0);
        let content = Content {
            step: self.committed,
            stage: leg.name.clone(),
            is_final: self.committed == leg.last_step(),
            uncompared: self.team.compared != self.committed && !planted!(SavedUncompared),
            weights: self.weights,
        };
        self.saver.begin(content).await
    }
}

fn metrics(leg: &Leg, step: u64, workers: u64) -> StepMetrics {
    StepMetrics {
        stage: leg.name.clone(),
        samples: (step - leg.before) * leg.batch,
        step_seconds: 0.2,
        workers: u32::try_from(workers).unwrap_or(u32::MAX),
        ..StepMetrics::default()
    }
}

fn start_of(stage: u32) -> Point {
    let part = Part::Start;
    Point { stage, part }
}
