//! Who waits for which answer.
//!
//! Answers come in any order and are handed to whoever asked. Who goes away before the end is noticed,
//! since what it waited with is dropped: then nobody computes for it any more.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mks2_proto::failure::Failure;
use mks2_proto::generate::{Ask, Event, Prompt};
use tokio::runtime::Handle;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::metrics::Metrics;
use super::refusal::Refusal;
use crate::engine::{Answers, Asking};

/// Events of an answer beside those of its tokens: an echo, what was held back, the end.
const AROUND: usize = 8;

/// The way to the program that computes.
pub(super) struct Hub {
    asking: Asking,
    waiting: Arc<Waiting>,
    most: usize,
    /// Tokens of text that the model has positions for.
    positions: u32,
    next: AtomicU64,
}

/// Those who wait.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    list: Mutex<List>,
}

#[derive(Debug, Default)]
struct List {
    /// By the id of what they asked.
    by_id: HashMap<u64, Sender<Event>>,
    /// Nobody may come any more.
    is_closed: bool,
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes somebody off the list.
    fn remove(&self, id: u64) -> Option<Sender<Event>> {
        self.lock().by_id.remove(&id)
    }
}

impl Hub {
    /// A hub with room for so many prompts to a model with so many positions, and what [`listen`] needs.
    pub(super) fn new(asking: Asking, most: usize, positions: u32) -> (Arc<Self>, Arc<Waiting>) {
        let waiting = Arc::new(Waiting::default());
        let hub = Self {
            asking,
            waiting: Arc::clone(&waiting),
            most,
            positions,
            next: AtomicU64::new(0),
        };
        (Arc::new(hub), waiting)
    }

    /// Prompts that may wait at most.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// Prompts that wait or are being answered.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.lock().by_id.len()
    }

    /// Whether something new is taken.
    pub(super) fn is_open(&self) -> bool {
        !self.waiting.lock().is_closed
    }

    /// Takes nothing new from now on.
    pub(super) fn close(&self) {
        self.waiting.lock().is_closed = true;
    }

    /// Whether one more would be taken now.
    ///
    /// # Errors
    /// When too many wait already, or the end is near.
    pub(super) fn has_room(&self) -> Result<(), Refusal> {
        let list = self.waiting.lock();
        match (list.is_closed, list.by_id.len() < self.most) {
            (true, _) => Err(Refusal::closed()),
            (false, true) => Ok(()),
            (false, false) => Err(Refusal::busy(1, self.most)),
        }
    }

    /// Asks these prompts, all or none of them, which came in this field of a request.
    ///
    /// # Errors
    /// When too many wait already, or the end is near.
    pub(super) async fn ask_all(
        self: &Arc<Self>,
        prompts: Vec<Prompt>,
        field: &'static str,
    ) -> Result<Vec<Answer>, Refusal> {
        let tokens = prompts.iter().filter_map(|prompt| prompt.max_tokens).max();
        let tokens = tokens.unwrap_or(self.positions);
        let answers = self.places(prompts.len(), tokens, field)?;
        for (answer, prompt) in answers.iter().zip(prompts) {
            let id = answer.id;
            self.asking
                .ask(&Ask::Prompt(Prompt { id, ..prompt }))
                .await?;
        }
        Ok(answers)
    }

    /// Asks something that has one answer.
    ///
    /// # Errors
    /// When too many wait already, the end is near, or the model refuses.
    pub(super) async fn ask_once(
        self: &Arc<Self>,
        what: impl FnOnce(u64) -> Ask,
    ) -> Result<Event, Refusal> {
        let mut places = self.places(1, 0, "prompt")?;
        let Some(mut answer) = places.pop() else {
            return Err(Refusal::closed());
        };
        self.asking.ask(&what(answer.id)).await?;
        answer.next().await
    }

    /// Room for so many who wait for answers of at most so many tokens.
    fn places(
        self: &Arc<Self>,
        count: usize,
        tokens: u32,
        field: &'static str,
    ) -> Result<Vec<Answer>, Refusal> {
        let mut list = self.waiting.lock();
        if list.is_closed {
            return Err(Refusal::closed());
        }
        if list.by_id.len() + count > self.most {
            return Err(Refusal::busy(count, self.most));
        }
        // Each token may be an event; nobody may have to wait for a client that reads slowly.
        let events = tokens.min(self.positions) as usize + AROUND;
        let answers = (0..count).map(|_| {
            let id = self.next.fetch_add(1, Ordering::Relaxed);
            let (to, events) = channel(events);
            list.by_id.insert(id, to);
            Answer {
                id,
                field,
                events,
                hub: Arc::clone(self),
            }
        });
        Ok(answers.collect())
    }
}

/// An answer that comes.
pub(super) struct Answer {
    id: u64,
    /// Where in the request it was asked for.
    field: &'static str,
    events: Receiver<Event>,
    hub: Arc<Hub>,
}

impl Answer {
    /// The next part of it. The last one is none of [`Event::Text`].
    ///
    /// # Errors
    /// When the model refuses, or the program is gone.
    pub(super) async fn next(&mut self) -> Result<Event, Refusal> {
        match self.events.recv().await {
            Some(Event::Refused { why, .. }) => Err(Refusal::of_prompt(self.field, why)),
            Some(event) => Ok(event),
            None => Err(Refusal::closed()),
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        // Whose answer is complete is not on the list any more.
        if self.hub.waiting.remove(self.id).is_none() {
            return;
        }
        let (asking, id) = (self.hub.asking.clone(), self.id);
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move { asking.ask(&Ask::Cancel { id }).await });
        }
    }
}

/// Hands out what the program says, until it is gone; then nobody waits any more. Whose answer is complete
/// makes room for others, however long it takes to read it.
pub(super) async fn listen(
    waiting: Arc<Waiting>,
    mut said: Answers,
    metrics: Arc<Metrics>,
) -> Failure {
    let failure = loop {
        match said.next().await {
            Ok(Some(event)) => {
                let to = match (event.id(), &event) {
                    (None, _) => None,
                    (Some(id), Event::Text { .. }) => waiting.lock().by_id.get(&id).cloned(),
                    (Some(id), _) => {
                        metrics.answered(&event);
                        waiting.remove(id)
                    }
                };
                if let Some(to) = to {
                    // Whoever has gone meanwhile has told so.
                    let _ = to.try_send(event);
                }
            }
            Ok(None) => {
                let why = "it ended though more could be asked";
                break Failure::internal("the program that computes is gone", why);
            }
            Err(failure) => break failure,
        }
    };
    let mut list = waiting.lock();
    list.is_closed = true;
    list.by_id.clear();
    failure
}
