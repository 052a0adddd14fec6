//! Which microbatch is read next, and which are ready.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{LoadError, MicroBatch};

/// (step, lane).
pub(super) type Key = (u64, u32);

/// Shared by the threads that read and the one that trains.
#[derive(Debug)]
pub(super) struct Queue {
    steps: Range<u64>,
    ahead_steps: usize,
    max_bytes: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The lanes held.
    lanes: Vec<u32>,
    /// The next microbatch to read ahead: step and index among the lanes held.
    step: u64,
    lane: usize,
    /// Being read.
    busy: BTreeSet<Key>,
    /// Read, with the bytes that they keep.
    ready: BTreeMap<Key, (Result<MicroBatch, LoadError>, u64)>,
    ready_bytes: u64,
    /// Waited for: read first, whatever the bounds say.
    wanted: BTreeSet<Key>,
    /// Read on demand, or handed out, before the reading ahead came by.
    served: BTreeSet<Key>,
    /// The step that was asked for last.
    asked: u64,
    stopped: bool,
    waited: Duration,
}

impl Queue {
    pub(super) fn new(
        lanes: &[u32],
        steps: Range<u64>,
        ahead_steps: usize,
        max_bytes: u64,
    ) -> Self {
        let state = State {
            lanes: lanes.to_vec(),
            step: steps.start,
            asked: steps.start,
            ..State::default()
        };
        Self {
            steps,
            ahead_steps,
            max_bytes,
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    /// From now on `lanes` are held: those that came are read from the step on that was asked for
    /// last, those that went are forgotten.
    pub(super) fn hold(&self, lanes: &[u32]) {
        let mut state = self.state();
        let (gone, kept) = std::mem::take(&mut state.ready)
            .into_iter()
            .partition(|((_, lane), _)| !lanes.contains(lane));
        let gone: BTreeMap<_, (_, u64)> = gone;
        state.ready_bytes -= gone.values().map(|(_, bytes)| bytes).sum::<u64>();
        state.ready = kept;
        state.lanes = lanes.to_vec();
        (state.step, state.lane) = (state.asked, 0);
        drop(state);
        self.changed.notify_all();
    }

    /// The next microbatch to read; waits until there is one. `None`: the loader stops.
    pub(super) fn take(&self) -> Option<Key> {
        let mut state = self.state();
        loop {
            if state.stopped {
                return None;
            }
            if let Some(key) = self.choose(&mut state) {
                state.busy.insert(key);
                return Some(key);
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Hands in a microbatch that was taken.
    pub(super) fn put(&self, key: Key, batch: Result<MicroBatch, LoadError>, bytes: u64) {
        let mut state = self.state();
        state.busy.remove(&key);
        state.ready_bytes += bytes;
        state.ready.insert(key, (batch, bytes));
        drop(state);
        self.changed.notify_all();
    }

    /// Waits for a microbatch and takes it out.
    pub(super) fn wait_for(&self, key: Key, timeout: Duration) -> Result<MicroBatch, LoadError> {
        let (step, lane) = key;
        let begin = Instant::now();
        let mut state = self.state();
        if !self.steps.contains(&step) || !state.lanes.contains(&lane) {
            return Err(LoadError::NotOurs { step, lane });
        }
        state.forget_before(step);
        state.asked = step;
        state.wanted.insert(key);
        self.changed.notify_all();
        let answer = loop {
            if let Some((batch, bytes)) = state.ready.remove(&key) {
                state.ready_bytes -= bytes;
                break batch;
            }
            let left = timeout.saturating_sub(begin.elapsed());
            if state.stopped {
                break Err(LoadError::Stopped);
            }
            if left.is_zero() {
                break Err(LoadError::Timeout {
                    step,
                    lane,
                    seconds: timeout.as_secs_f64(),
                });
            }
            let waiting = self.changed.wait_timeout(state, left);
            state = waiting.unwrap_or_else(PoisonError::into_inner).0;
        };
        state.wanted.remove(&key);
        state.served.insert(key);
        state.waited += begin.elapsed();
        drop(state);
        self.changed.notify_all();
        answer
    }

    /// Ends all waiting.
    pub(super) fn stop(&self) {
        self.state().stopped = true;
        self.changed.notify_all();
    }

    pub(super) fn waited(&self) -> Duration {
        self.state().waited
    }

    /// What is waited for goes first; else the next one of the reading ahead, within the bounds.
    fn choose(&self, state: &mut State) -> Option<Key> {
        let demanded = state
            .wanted
            .iter()
            .find(|key| !state.busy.contains(key) && !state.ready.contains_key(key));
        if let Some(key) = demanded.copied() {
            state.served.insert(key);
            return Some(key);
        }
        while self.steps.contains(&state.step) {
            let key = (state.step, *state.lanes.get(state.lane)?);
            let known = state.served.contains(&key)
                || state.busy.contains(&key)
                || state.ready.contains_key(&key);
            let most = self.ahead_steps * state.lanes.len();
            let full =
                state.ready.len() + state.busy.len() >= most || state.ready_bytes >= self.max_bytes;
            if !known && full {
                return None;
            }
            state.advance();
            if !known {
                return Some(key);
            }
        }
        None
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn advance(&mut self) {
        self.lane += 1;
        if self.lane == self.lanes.len() {
            (self.step, self.lane) = (self.step + 1, 0);
        }
    }

    /// Steps before `step` will not be asked for any more.
    fn forget_before(&mut self, step: u64) {
        let later = self.ready.split_off(&(step, 0));
        let earlier = std::mem::replace(&mut self.ready, later);
        self.ready_bytes -= earlier.values().map(|(_, bytes)| bytes).sum::<u64>();
        self.served.retain(|(served, _)| *served >= step);
        if self.step < step {
            (self.step, self.lane) = (step, 0);
        }
    }
}
