//! Hosts and what lies between them: messages take their time, are held up, and are lost with the
//! connection that carried them.
//!
//! A connection keeps the order of what it carries, as TCP does, and may lose its end. Between
//! connections, and between requests, there is no order. A cut is of one direction: it holds up what
//! goes that way until it heals. It breaks the connections that it lasts too long for, of which both
//! ends then know: whose way is cut gets no answer, and neither does the other, whose messages arrive.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    future::{Future, poll_fn},
    pin::pin,
    rc::{Rc, Weak},
    task::{Context, Poll},
    time::Duration,
};

use super::{
    chance::Chance,
    executor::{NodeId, Signal, now, sleep, sleep_until},
};

/// A machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Host(pub(super) u8);

/// How long a connection outlives a cut: keepalives of a second, unanswered for two.
const PATIENCE: Duration = Duration::from_secs(3);

/// The network.
#[derive(Default)]
pub(super) struct Network {
    seed: u64,
    chances: RefCell<BTreeMap<(Host, Host), Chance>>,
    cuts: RefCell<Cuts>,
    /// Until when everything takes its time.
    slow_until: Cell<Duration>,
    wires: RefCell<Vec<Weak<Wire>>>,
    changed: Signal,
}

/// By where a message comes from and where it goes.
type Cuts = BTreeMap<(Host, Host), Cut>;

struct Cut {
    since: Duration,
    times: u32,
}

/// What both directions of a connection share.
pub(super) struct Wire {
    ends: [(Host, NodeId); 2],
    /// When it broke, as its two ends come to know.
    broken: Cell<Option<Duration>>,
    changed: Signal,
}

/// One direction of a connection.
pub(super) struct Pipe<T> {
    network: Rc<Network>,
    wire: Rc<Wire>,
    from: Host,
    to: Host,
    state: RefCell<Flow<T>>,
}

struct Flow<T> {
    /// With the time of arrival.
    queue: VecDeque<(Duration, T)>,
    last: Duration,
    is_closed: bool,
}

/// The way did not work.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unreachable;

fn pair(a: Host, b: Host) -> (Host, Host) {
    (a.min(b), a.max(b))
}

impl Network {
    pub(super) fn new(seed: u64) -> Rc<Self> {
        Rc::new(Self {
            seed,
            ..Self::default()
        })
    }

    /// How long the next message takes.
    pub(super) fn delay(&self, from: Host, to: Host) -> Duration {
        let mut chances = self.chances.borrow_mut();
        let chance = chances
            .entry((from, to))
            .or_insert_with(|| Chance::new(self.seed, &format!("{from:?} to {to:?}")));
        let usual = match chance.below(40) {
            0 => chance.millis(1, 30),
            _ => Duration::from_micros(100 + chance.below(900)),
        };
        let extra = chance.millis(0, 250);
        match now() < self.slow_until.get() {
            true => usual + extra,
            false => usual,
        }
    }

    pub(super) fn slow(&self, time: Duration) {
        self.slow_until.set(self.slow_until.get().max(now() + time));
    }

    pub(super) fn is_cut(&self, from: Host, to: Host) -> bool {
        from != to && self.cuts.borrow().contains_key(&(from, to))
    }

    /// Since when one of two hosts gets no answer of the other, if so: one direction suffices.
    pub(super) fn unanswered_since(&self, a: Host, b: Host) -> Option<Duration> {
        let cuts = self.cuts.borrow();
        let ways = [(a, b), (b, a)];
        let known = ways
            .iter()
            .filter_map(|way| cuts.get(way).filter(|_| a != b));
        known.map(|cut| cut.since).min()
    }

    fn is_cut_for_long(&self, from: Host, to: Host) -> bool {
        let cuts = self.cuts.borrow();
        let cut = cuts.get(&(from, to));
        cut.is_some_and(|cut| now() >= cut.since + PATIENCE)
    }

    /// Wakes the task of this context when a cut begins or heals.
    pub(super) fn watch(&self, context: &Context<'_>) {
        self.changed.watch(context);
    }

    /// Cuts two hosts off from each other for a time.
    pub(super) async fn cut(&self, a: Host, b: Host, time: Duration) {
        tokio::join!(self.cut_way(a, b, time), self.cut_way(b, a, time));
    }

    /// Lets nothing through from one host to another for a time.
    pub(super) async fn cut_way(&self, from: Host, to: Host, time: Duration) {
        let until = now() + time;
        let fresh = || Cut {
            since: now(),
            times: 0,
        };
        self.change(|cuts| cuts.entry((from, to)).or_insert_with(fresh).times += 1);
        if time > PATIENCE {
            sleep(PATIENCE).await;
            if self.is_cut_for_long(from, to) {
                self.reset(from, to);
            }
        }
        sleep_until(until).await;
        self.change(|cuts| {
            if let Some(cut) = cuts.get_mut(&(from, to)) {
                cut.times -= 1;
            }
            cuts.retain(|_, cut| cut.times > 0);
        });
    }

    fn change(&self, change: impl FnOnce(&mut Cuts)) {
        change(&mut self.cuts.borrow_mut());
        self.changed.raise();
    }

    /// Breaks the connections between two hosts.
    pub(super) fn reset(&self, a: Host, b: Host) {
        self.break_where(|wire| pair(wire.ends[0].0, wire.ends[1].0) == pair(a, b));
    }

    /// Breaks the connections of a process that has ended.
    pub(super) fn leave(&self, node: NodeId) {
        self.break_where(|wire| wire.ends.iter().any(|end| end.1 == node));
    }

    fn break_where(&self, chosen: impl Fn(&Wire) -> bool) {
        let mut wires = self.wires.borrow_mut();
        wires.retain(|wire| wire.strong_count() > 0);
        let wires: Vec<_> = wires.iter().filter_map(Weak::upgrade).collect();
        for wire in wires.iter().filter(|wire| chosen(wire)) {
            let delay = self.delay(wire.ends[0].0, wire.ends[1].0);
            wire.break_at(now() + delay);
        }
    }

    /// The way of one request or answer. Where the way back is cut a request arrives all the same, as
    /// on a connection that is there already.
    pub(super) async fn travel(&self, from: Host, to: Host) -> Result<(), Unreachable> {
        sleep(self.delay(from, to)).await;
        let mut patience = pin!(sleep(PATIENCE));
        poll_fn(|context| {
            if !self.is_cut(from, to) {
                return Poll::Ready(Ok(()));
            }
            self.changed.watch(context);
            patience.as_mut().poll(context).map(|()| Err(Unreachable))
        })
        .await
    }

    /// Connects two processes: the way there and the way back.
    pub(super) fn connect<U, D>(
        self: &Rc<Self>,
        from: (Host, NodeId),
        to: (Host, NodeId),
    ) -> (Rc<Pipe<U>>, Rc<Pipe<D>>) {
        let wire = Rc::new(Wire {
            ends: [from, to],
            broken: Cell::new(None),
            changed: Signal::default(),
        });
        self.wires.borrow_mut().push(Rc::downgrade(&wire));
        let (there, back) = (Rc::clone(self), Rc::clone(self));
        let up = Pipe::new(there, Rc::clone(&wire), from.0, to.0);
        (Rc::new(up), Rc::new(Pipe::new(back, wire, to.0, from.0)))
    }
}

impl Wire {
    fn break_at(&self, at: Duration) {
        let before = self.broken.get().unwrap_or(at);
        self.broken.set(Some(before.min(at)));
        self.changed.raise();
    }
}

impl<T> Pipe<T> {
    fn new(network: Rc<Network>, wire: Rc<Wire>, from: Host, to: Host) -> Self {
        let state = RefCell::new(Flow {
            queue: VecDeque::new(),
            last: Duration::ZERO,
            is_closed: false,
        });
        Self {
            network,
            wire,
            from,
            to,
            state,
        }
    }

    /// Gives a message to the connection; false: it is known to be broken.
    pub(super) fn send(&self, message: T) -> bool {
        if self.is_broken() || self.state.borrow().is_closed {
            return false;
        }
        let mut flow = self.state.borrow_mut();
        let due = now() + self.network.delay(self.from, self.to);
        flow.last = flow.last.max(due);
        let due = flow.last;
        flow.queue.push_back((due, message));
        drop(flow);
        self.wire.changed.raise();
        true
    }

    /// No more comes from this end; what is under way arrives.
    pub(super) fn close(&self) {
        self.state.borrow_mut().is_closed = true;
        self.wire.changed.raise();
    }

    /// Breaks both directions.
    pub(super) fn tear(&self) {
        self.wire.break_at(now());
    }

    fn is_broken(&self) -> bool {
        self.wire.broken.get().is_some_and(|at| at <= now())
    }

    /// The next message; none: it was closed or broke. Cancel safe.
    pub(super) async fn recv(&self) -> Option<T> {
        let mut alarm = None;
        poll_fn(|context| {
            loop {
                let cut = self.network.is_cut(self.from, self.to);
                let mut flow = self.state.borrow_mut();
                let broken = self.wire.broken.get();
                let front = flow.queue.front().map(|(due, _)| *due);
                let arrives = front.filter(|due| broken.is_none_or(|at| *due <= at));
                let next = match (arrives, broken) {
                    (Some(due), _) if due <= now() && !cut => {
                        return Poll::Ready(flow.queue.pop_front().map(|(_, message)| message));
                    }
                    (None, Some(at)) if at <= now() => return Poll::Ready(None),
                    (None, None) if flow.is_closed && front.is_none() => return Poll::Ready(None),
                    (Some(due), _) if !cut => Some(due),
                    // A broken connection that is cut off shows when the cut has lasted long.
                    (Some(_), Some(at)) if at <= now() => {
                        flow.queue.clear();
                        continue;
                    }
                    (_, broken) => broken,
                };
                drop(flow);
                self.wire.changed.watch(context);
                self.network.changed.watch(context);
                let Some(next) = next.filter(|next| *next > now()) else {
                    return Poll::Pending;
                };
                let mut sleep = Box::pin(sleep_until(next));
                if sleep.as_mut().poll(context).is_pending() {
                    alarm = Some(sleep);
                    return Poll::Pending;
                }
            }
        })
        .await
    }
}
