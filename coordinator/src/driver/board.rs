//! Where heartbeats wait for the driver: of each stream the newest, with the moment when it came.
//!
//! A run of thousands has heartbeats all the time, and nearly all of them say what is known. So they
//! do not stand in the queue of what has to be decided: the driver takes them from the board when it
//! looks at the time, and before anything else that it takes. What was said in a stream before
//! something else is thus known before it.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use mks2_proto::{ids::Generation, v1};

use crate::{
    clock,
    state::{Beat, Identity},
};

/// See the module. At most one entry for each stream.
#[derive(Debug, Default)]
pub(crate) struct Board(Mutex<Vec<Arc<Slot>>>);

/// The place of one stream.
#[derive(Debug)]
pub(crate) struct Slot {
    who: Arc<Identity>,
    newest: Mutex<Option<Newest>>,
}

#[derive(Debug)]
struct Newest {
    generation: Generation,
    said: v1::Heartbeat,
    came: Instant,
}

impl Slot {
    pub(super) fn new(who: Identity) -> Arc<Self> {
        Arc::new(Self {
            who: Arc::new(who),
            newest: Mutex::default(),
        })
    }

    pub(super) fn who(&self) -> &Arc<Identity> {
        &self.who
    }
}

impl Board {
    /// Puts a heartbeat up in the place of the one before.
    pub(super) fn put(&self, slot: &Arc<Slot>, generation: Generation, said: v1::Heartbeat) {
        let mut newest = Newest {
            generation,
            said,
            came: clock::now(),
        };
        let mut place = lock(&slot.newest);
        let is_first = place.is_none();
        if let Some(before) = place.take() {
            // Told now and then: the newest beat need not tell it.
            newest.said.spent = newest.said.spent.or(before.said.spent);
        }
        *place = Some(newest);
        drop(place);
        if is_first {
            lock(&self.0).push(Arc::clone(slot));
        }
    }

    /// Takes all down; their times are since `started`.
    pub(super) fn take(&self, started: Instant) -> Vec<Beat> {
        let slots = std::mem::take(&mut *lock(&self.0));
        let beat = |slot: Arc<Slot>| {
            let newest = lock(&slot.newest).take()?;
            Some(Beat {
                who: Arc::clone(&slot.who),
                generation: newest.generation,
                said: newest.said,
                heard: newest.came.saturating_duration_since(started),
            })
        };
        slots.into_iter().filter_map(beat).collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use mks2_proto::ids::{Incarnation, MemberId};

    use super::*;

    fn slot(number: u64) -> Arc<Slot> {
        Slot::new(Identity {
            member: MemberId::new(&format!("worker-{number}")).expect("good"),
            incarnation: Incarnation(number),
        })
    }

    #[test]
    fn of_each_stream_the_newest_is_there_once() {
        let (board, slots, began) = (Board::default(), [slot(0), slot(1)], clock::now());
        let said = |step| v1::Heartbeat {
            step,
            ..v1::Heartbeat::default()
        };
        for step in 1..=3 {
            board.put(&slots[0], Generation(1), said(step));
        }
        board.put(&slots[1], Generation(1), said(7));
        let taken = board.take(began);
        let shown: Vec<_> = taken
            .iter()
            .map(|beat| (beat.who.incarnation.0, beat.said.step))
            .collect();
        assert_eq!(shown, [(0, 3), (1, 7)]);
        assert!(taken[0].heard <= taken[1].heard);
        assert!(board.take(began).is_empty());
        board.put(&slots[0], Generation(1), said(4));
        assert_eq!(board.take(began).len(), 1);
    }
}
