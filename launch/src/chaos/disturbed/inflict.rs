//! What is done to the processes of a run, and what is undone later.

use std::time::Duration;

use mks2_coordinator::journal::Entry;
use mks2_proto::failure::Failure;

use super::{Act, Place, Section, name};
use crate::chaos::schedule::{Fault, Link, Planned};
use crate::chaos::story::{Injected, Life};

impl Section<'_, '_> {
    pub(super) async fn act(&mut self, act: Act) -> Result<(), Failure> {
        match act {
            Act::Inject(planned) => self.inject(&planned).await,
            Act::Continue(place, fault) => {
                self.cluster.fleet.continue_one(place);
                self.free(place, fault);
                Ok(())
            }
            Act::Heal(place, link, fault) => {
                self.cluster.heal(place, link);
                self.free(place, fault);
                Ok(())
            }
            Act::Succeed { moves, fault } => self.succeed(moves, fault).await,
            Act::Grow(fault) => self.grow(fault).await,
        }
    }

    async fn inject(&mut self, planned: &Planned) -> Result<(), Failure> {
        match planned.fault {
            Fault::Kill => {
                if let Some(place) = self.victim(planned, &self.there()) {
                    self.record(planned.fault, &name(place), true);
                    self.mark(place).killed = true;
                    self.cluster.fleet.kill_one(place);
                }
            }
            Fault::Stop(time) => {
                if let Some(place) = self.victim(planned, &self.unhindered()) {
                    let fault = self.hinder(place, planned.fault);
                    self.cluster.fleet.stop_one(place);
                    self.later(time, Act::Continue(place, fault));
                }
            }
            Fault::Cut(link, cut, time) => {
                if let Some(place) = self.victim(planned, &self.within_reach(link)) {
                    let fault = self.hinder(place, planned.fault);
                    self.cluster.cut(place, link, cut);
                    self.later(time, Act::Heal(place, link, fault));
                }
            }
            Fault::Scale(time) => {
                let fewer = self.run.setup.workers - 1;
                if !self.is_smaller && self.cluster.scale(fewer).await.is_ok() {
                    self.is_smaller = true;
                    let fault = self.record(planned.fault, "", false);
                    self.later(time, Act::Grow(fault));
                }
            }
            Fault::Coordinator { away, moves } => {
                if self.cluster.kill_coordinator().await {
                    let fault = self.record(planned.fault, "", false);
                    self.headless = Some(self.now());
                    self.later(away, Act::Succeed { moves, fault });
                }
            }
        }
        Ok(())
    }

    fn later(&mut self, time: Duration, act: Act) {
        self.due.push((self.now() + time, act));
    }

    /// Writes a fault down; its number.
    fn record(&mut self, fault: Fault, whom: &str, is_over: bool) -> usize {
        let at = self.now();
        self.run.story.injected.push(Injected {
            at,
            over: is_over.then_some(at),
            fault,
            whom: whom.to_owned(),
            is_headless: self.headless.is_some(),
        });
        self.run.story.injected.len() - 1
    }

    fn hinder(&mut self, place: u32, fault: Fault) -> usize {
        self.mark(place).hindered += 1;
        let now = self.now();
        self.run
            .story
            .lives
            .push((now, name(place), Life::Hindered));
        self.record(fault, &name(place), false)
    }

    /// A worker is not hindered by a fault any more.
    fn free(&mut self, place: u32, fault: usize) {
        let now = self.now();
        if let Some(injected) = self.run.story.injected.get_mut(fault) {
            injected.over = Some(now);
        }
        let mark = self.mark(place);
        // Another process may stand in the place.
        if mark.hindered > 0 {
            mark.hindered -= 1;
            mark.freed = Some(now);
            self.run.story.lives.push((now, name(place), Life::Free));
        }
    }

    pub(super) fn mark(&mut self, place: u32) -> &mut Place {
        &mut self.places[place as usize]
    }

    /// The one that a fault falls on.
    fn victim(&self, planned: &Planned, among: &[u32]) -> Option<u32> {
        let at = planned.pick % among.len().max(1) as u64;
        let victim = among.get(usize::try_from(at).unwrap_or_default()).copied();
        if victim.is_none() {
            let what = planned.fault.words("a worker");
            self.run
                .output
                .note(&format!("{what}: nobody is there to be hit"));
        }
        victim
    }

    fn there(&self) -> Vec<u32> {
        let places = 0..self.run.setup.workers;
        places
            .filter(|place| self.cluster.is_alive(*place) && !self.places[*place as usize].killed)
            .collect()
    }

    fn unhindered(&self) -> Vec<u32> {
        let mut there = self.there();
        there.retain(|place| self.places[*place as usize].hindered == 0);
        there
    }

    /// Peers of higher ranks dial those of lower ones: the last one is dialed by nobody.
    fn within_reach(&self, link: Link) -> Vec<u32> {
        let mut within = self.unhindered();
        if link == Link::Peers {
            let mut notes = self.run.story.notes.iter().rev();
            let formed = notes.find_map(|note| match &note.entry {
                Entry::GenerationFormed { members, .. } => Some(members),
                _ => None,
            });
            let members = formed.map_or(&[][..], |members| members.as_slice());
            let dialed = &members[..members.len().saturating_sub(1)];
            within.retain(|place| dialed.iter().any(|m| m.member.as_str() == name(*place)));
        }
        within
    }

    async fn succeed(&mut self, moves: bool, fault: usize) -> Result<(), Failure> {
        self.cluster.start_coordinator(moves).await?;
        let now = self.now();
        if let Some(from) = self.headless.take() {
            self.run.story.headless.push((from, now));
        }
        if let Some(injected) = self.run.story.injected.get_mut(fault) {
            injected.over = Some(now);
        }
        // It does not know that the run was to be smaller.
        self.is_smaller = false;
        self.fill_places()
    }

    /// The run gets back the worker that was let go: another one joins by hand.
    async fn grow(&mut self, fault: usize) -> Result<(), Failure> {
        if self.is_smaller {
            // If there is no coordinator now, its successor wants all workers by itself.
            let _successor_wants_them = self.cluster.scale(self.run.setup.workers).await;
        }
        self.is_smaller = false;
        let now = self.now();
        if let Some(injected) = self.run.story.injected.get_mut(fault) {
            injected.over = Some(now);
        }
        self.fill_places()
    }

    fn fill_places(&mut self) -> Result<(), Failure> {
        for place in 0..self.run.setup.workers {
            if std::mem::take(&mut self.mark(place).vacant) {
                self.cluster.join_worker(place)?;
                self.came(place);
            }
        }
        Ok(())
    }

    pub(super) fn came(&mut self, place: u32) {
        let now = self.now();
        let mark = self.mark(place);
        *mark = Place {
            restarts: mark.restarts + 1,
            ..Place::default()
        };
        self.run.story.lives.push((now, name(place), Life::Up));
    }
}
