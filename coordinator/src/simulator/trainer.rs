//! A worker's trainer: follows `worker/src/run.rs`, `run/together.rs`, `train.rs` and what is below
//! them. A gradient is a number that depends on weights, step and lane; weights are a digest of all
//! gradients that were applied.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use mks2_proto::{
    failure::Failure,
    v1::{CheckpointRef, Phase, RegisterResponse, StageChanged, StepMetrics, report::Kind},
};

use super::{
    chance::{Chance, fold_number},
    executor::sleep,
    mesh::Broken,
    saver::{Content, Saver},
    session::Session,
    team::{Part, Setback, Standing, Team},
};
use crate::ledger::Leg;

/// How a run, or a stage of it, came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Complete,
    Stopped,
}

struct Committed {
    generation: u64,
    step: u64,
    metrics: StepMetrics,
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
}

enum Crossing {
    Over(End),
    Again { some_are_behind: bool },
}

/// All of a worker's part.
pub(super) async fn run(session: &Rc<Session>) -> Result<End, Failure> {
    let mut trainer = Trainer {
        team: Team::join(session).await?,
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
            self.team.point = (number, Part::Start);
            self.weights = fold_number(self.weights, number.into());
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
            if end == End::Stopped {
                return Ok(End::Stopped);
            }
        }
        // The evaluation behind the last stage.
        self.team.point = (u32::MAX, Part::Start);
        self.evaluate().await
    }

    async fn train(&mut self, leg: &Leg, resume: Option<CheckpointRef>) -> Result<End, Failure> {
        self.committed = leg.before;
        self.recent.clear();
        if let Some(resume) = resume {
            self.weights = self.saver.read(&resume).await?;
            self.committed = resume.step;
        }
        self.agree().await?;
        self.team.point.1 = Part::Steps;
        let mut stop = false;
        while self.committed < leg.last_step() && !stop {
            stop = self.step(leg).await?;
            let is_due = (self.committed - leg.before)
                .is_multiple_of(self.session.world.job.checkpoint.every_steps);
            if is_due && !stop && self.committed < leg.last_step() {
                self.save(leg).await?;
            }
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
        let stop = loop {
            match self.attempt(&mut work).await {
                Ok(stop) => break stop,
                Err(Setback::Fatal(failure)) => return Err(failure),
                Err(Setback::Peers(cause)) => {
                    if let Some(stop) = self.regroup(cause, &mut work).await? {
                        break stop;
                    }
                }
            }
        };
        self.commit(leg, work).await?;
        Ok(stop)
    }

    async fn attempt(&mut self, work: &mut Work) -> Result<bool, Setback> {
        self.load(work).await?;
        self.gather(work).await?;
        self.gradients(work).await?;
        if planted!(VoteBeforeHeld) {
            let stop = self.vote(work).await?;
            return self.reduce(work).await.map(|()| stop);
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

    async fn vote(&mut self, _held: &Work) -> Result<bool, Setback> {
        self.session.set_phase(Phase::Voting, self.team.next());
        let mine = self.session.stop_requested();
        let all = self.team.all_gather(vec![mine.into()]).await?;
        if planted!(StopAlone) {
            return Ok(mine);
        }
        Ok(all.iter().any(|words| words[0] == 1))
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
        let metrics = StepMetrics {
            stage: leg.name.clone(),
            samples: (step - leg.before) * leg.batch,
            step_seconds: 0.2,
            workers: u32::try_from(self.team.world()).unwrap_or(u32::MAX),
            ..StepMetrics::default()
        };
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
    async fn regroup(&mut self, cause: Broken, work: &mut Work) -> Result<Option<bool>, Failure> {
        let standing = self.standing();
        let all = self.team.regroup(cause, standing).await?;
        if planted!(StepsDoneAgain) {
            *work = Work::default();
            return self.tell_again().map(|()| None);
        }
        if let Some(ahead) = all.iter().find(|one| one.committed > standing.committed) {
            if work.reduced.is_none() || ahead.committed != standing.committed + 1 {
                return Err(self.apart(ahead));
            }
            self.tell_again()?;
            return Ok(Some(all.iter().any(|one| one.point > standing.point)));
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

    // Around the steps.

    /// All begin a stage with the same.
    async fn agree(&mut self) -> Result<(), Failure> {
        let standing = self.standing();
        loop {
            self.meet();
            let digest = fold_number(self.weights, self.committed);
            match self.team.all_gather(vec![digest]).await {
                Ok(all) if all.iter().all(|words| words[0] == digest) => return Ok(()),
                Ok(_) => {
                    let words = format!("at step {}", self.committed);
                    let world = &self.session.world;
                    world.violated("all workers begin a stage with the same weights", words);
                    return Err(Failure::internal("the workers differ", ""));
                }
                Err(cause) => {
                    let all = self.team.regroup(cause, standing).await?;
                    if all.iter().any(|one| one.point > standing.point) {
                        return Ok(());
                    }
                }
            }
        }
    }

    async fn evaluate(&mut self) -> Result<End, Failure> {
        let start = self.team.point;
        loop {
            self.team.point = start;
            self.session.set_phase(Phase::Evaluating, 0);
            sleep(self.chance.millis(5, 50)).await;
            if let Err(cause) = self.team.all_gather(vec![self.weights]).await {
                let standing = self.standing();
                self.team.regroup(cause, standing).await?;
                continue;
            }
            self.team.point.1 = Part::Border;
            loop {
                match self.try_to_cross().await? {
                    Crossing::Over(end) => return Ok(end),
                    Crossing::Again { some_are_behind } if some_are_behind => break,
                    Crossing::Again { .. } => {}
                }
            }
        }
    }

    async fn cross_alone(&mut self) -> Result<End, Failure> {
        self.team.point.1 = Part::Border;
        loop {
            if let Crossing::Over(end) = self.try_to_cross().await? {
                return Ok(end);
            }
        }
    }

    /// Before anybody goes on, rank 0 has saved the stage's end.
    async fn cross(&mut self, leg: &Leg) -> Result<End, Failure> {
        self.team.point.1 = Part::Border;
        let mut is_saved = planted!(BorderBeforeSaved);
        loop {
            if self.team.rank() == 0 && !is_saved {
                self.save(leg).await?;
                self.saver.settle().await?;
                is_saved = true;
            }
            if let Crossing::Over(end) = self.try_to_cross().await? {
                return Ok(end);
            }
            self.tell_again()?;
        }
    }

    async fn try_to_cross(&mut self) -> Result<Crossing, Failure> {
        self.meet();
        let standing = self.standing();
        let mine = vec![self.session.stop_requested().into()];
        match self.team.all_gather(mine).await {
            Ok(all) => {
                let stop = all.iter().any(|words| words[0] == 1);
                let end = if stop { End::Stopped } else { End::Complete };
                Ok(Crossing::Over(end))
            }
            Err(cause) => {
                let all = self.team.regroup(cause, standing).await?;
                if all.iter().any(|one| one.point > standing.point) {
                    return Ok(Crossing::Over(End::Complete));
                }
                let some_are_behind = all.iter().any(|one| one.point < standing.point);
                Ok(Crossing::Again { some_are_behind })
            }
        }
    }

    fn meet(&self) {
        self.session.set_phase(Phase::Voting, self.team.next());
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
            weights: self.weights,
        };
        self.saver.begin(content).await
    }
}
