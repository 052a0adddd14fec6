//! Who has room for keys and values: the oldest answers first.
//!
//! Every answer has as many positions of room as the longest one needs. So a long prompt waits until others
//! have ended, and while an answer grows beyond what there may be, the youngest ones beside it are parked.

use mks2_proto::failure::Failure;
use mks2_proto::generate::{Event, TOO_LONG};

use super::{Engine, ROOM, Ready, Speaker, refusal, refused};

/// Positions for which there is room in each of a batch, where nobody says how many.
const USUAL_POSITIONS: i64 = 4096;

/// Positions for which there may be room: of a whole batch, or of one text that is as long as it may be.
pub(super) fn most_positions(speaker: &Speaker, batch: usize) -> i64 {
    if let Some(bytes) = speaker.cache_bytes {
        let positions = bytes / speaker.decoder.position_bytes().max(1);
        return i64::try_from(positions).unwrap_or(i64::MAX);
    }
    let soft = speaker.eyes().map_or(0, |eyes| eyes.tokens());
    let longest = speaker.positions as i64 + soft;
    longest.max(batch as i64 * longest.min(USUAL_POSITIONS))
}

impl Engine<'_> {
    /// Tokens for which there may be room behind a prompt with so many positions, at least `least`.
    pub(super) fn room_behind(&self, length: i64, least: usize) -> Result<usize, Failure> {
        let room = usize::try_from(self.most_positions - length).ok();
        room.filter(|room| *room >= least).ok_or_else(|| {
            let most = self.most_positions;
            refused(
                format!("{TOO_LONG}: {length} positions"),
                format!("there may be keys and values of {most} positions, the answer included"),
                "shorten the prompt, or allow more with --cache-bytes",
            )
        })
    }

    /// Those that wait and have room now, in their order.
    pub(super) fn next_ready(&mut self) -> Vec<Ready> {
        let mut ready = Vec::new();
        if !self.parked.is_empty() {
            return ready;
        }
        let mut longest = match self.answers.is_empty() {
            true => 0,
            // They go on, too.
            false => self.cache.longest() + 1,
        };
        while let Some(one) = self.waiting.front() {
            // With some room to go on, lest it be parked at once.
            longest = longest.max(one.length + (one.most as i64).min(ROOM));
            let rows = self.answers.len() + ready.len() + 1;
            if !self.cache.may_have(rows, longest) {
                break;
            }
            ready.extend(self.waiting.pop_front());
        }
        ready
    }

    /// There is less memory than there may be: the first of these begins alone. If it cannot, it waits for the
    /// answers that are under way, and is refused where there are none.
    pub(super) fn begin_with_less(
        &mut self,
        mut ready: Vec<Ready>,
        failure: Failure,
    ) -> Result<Vec<Event>, Failure> {
        let others = ready.split_off(1);
        let was_alone = others.is_empty();
        for other in others.into_iter().rev() {
            self.waiting.push_front(other);
        }
        if !was_alone {
            return self.begin(ready);
        }
        let mut events = Vec::new();
        for one in ready {
            match self.answers.is_empty() {
                true => events.push(refusal(one.prompt.id, &failure)),
                false => self.waiting.push_front(one),
            }
        }
        Ok(events)
    }

    /// Brings back who was parked and has room now, in their order.
    pub(super) fn resume(&mut self, events: &mut Vec<Event>) {
        while let Some((answer, parked)) = self.parked.pop_front() {
            let longest = self.cache.longest().max(parked.length()) + 1;
            if !self.cache.may_have(self.answers.len() + 1, longest) {
                self.parked.push_front((answer, parked));
                break;
            }
            match self.speaker.decoder.resume(&parked, &mut self.cache) {
                Ok(()) => self.answers.push(answer),
                Err(_) if !self.answers.is_empty() => {
                    self.parked.push_front((answer, parked));
                    break;
                }
                Err(error) => events.push(refusal(answer.id, &error.into())),
            }
        }
    }

    /// Makes room for one more position of each answer. Whoever had to go for want of memory is told.
    pub(super) fn make_room(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while !self.answers.is_empty() {
            let (rows, positions) = (self.answers.len(), self.cache.longest() + 1);
            if rows > 1 && !self.cache.may_have(rows, positions) {
                self.park_youngest(&mut events);
                continue;
            }
            let decoder = &self.speaker.decoder;
            match decoder.make_room(&mut self.cache, rows, positions) {
                Ok(()) => break,
                Err(_) if rows > 1 => self.park_youngest(&mut events),
                Err(error) => {
                    let answer = self.answers.swap_remove(0);
                    self.cache.remove(0);
                    events.push(refusal(answer.id, &error.into()));
                }
            }
        }
        events
    }

    /// The youngest answer waits until there is room again.
    fn park_youngest(&mut self, events: &mut Vec<Event>) {
        let rows = 0..self.answers.len();
        let youngest = rows.max_by_key(|row| self.answers[*row].age);
        let row = youngest.unwrap_or_default();
        let parked = self.cache.park(row);
        let answer = self.answers.swap_remove(row);
        match parked {
            // It is older than all that are parked already.
            Ok(parked) => self.parked.push_front((answer, parked)),
            Err(error) => {
                self.cache.remove(row);
                events.push(refusal(answer.id, &error.into()));
            }
        }
    }
}
