//! The workers' collectives: every one needs every member of the generation. One that has its own
//! data everywhere may die before it sees the others'; then some have passed and some have not.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::{Future, poll_fn},
    rc::Rc,
    task::Poll,
    time::Duration,
};

use mks2_proto::patience;

use super::{
    executor::{Signal, now, sleep_until},
    network::{Host, Network},
    office::Seats,
};

/// What members exchange: numbers whose meaning they know.
pub(super) type Words = Vec<u64>;

/// Why a collective failed.
#[derive(Clone, Debug)]
pub(super) struct Broken {
    /// Who is to blame, if anybody seems to be.
    pub(super) rank: Option<usize>,
    pub(super) why: &'static str,
    /// The members' copies differ, and these ranks from most others.
    pub(super) differ: Option<Vec<usize>>,
}

impl Broken {
    pub(super) fn new(rank: Option<usize>, why: &'static str) -> Self {
        Self {
            rank,
            why,
            differ: None,
        }
    }
}

/// Raised when a generation is over for a worker.
#[derive(Clone, Default)]
pub(super) struct Abort {
    flag: Rc<Cell<bool>>,
    signal: Signal,
}

impl Abort {
    pub(super) fn raise(&self) {
        self.flag.set(true);
        self.signal.raise();
    }

    pub(super) fn is_raised(&self) -> bool {
        self.flag.get()
    }
}

/// All generations' connections. Processes find each other when they mean the same members.
#[derive(Default)]
pub(super) struct Meshes(RefCell<BTreeMap<(u64, Seats), Rc<Board>>>);

/// The connections of a generation.
struct Board {
    hosts: Vec<Host>,
    state: RefCell<State>,
    changed: Signal,
}

#[derive(Default)]
struct State {
    /// What arrives by collective, sender and receiver, and when.
    posts: BTreeMap<(u64, usize, usize), (Duration, Rc<Words>)>,
    /// The latest arrival between two.
    last: BTreeMap<(usize, usize), Duration>,
    /// When a way ended: what would arrive later is lost.
    ended: BTreeMap<(usize, usize), Duration>,
}

/// A worker's end of them; dropped, they are closed.
pub(super) struct Mesh {
    network: Rc<Network>,
    board: Rc<Board>,
    rank: usize,
    sequence: u64,
    abort: Abort,
    joined: Duration,
}

impl Meshes {
    pub(super) fn join(
        &self,
        network: &Rc<Network>,
        generation: (u64, Seats),
        hosts: &[Host],
        rank: usize,
        abort: &Abort,
    ) -> Mesh {
        let fresh = || {
            Rc::new(Board {
                hosts: hosts.to_vec(),
                state: RefCell::default(),
                changed: Signal::default(),
            })
        };
        let mut boards = self.0.borrow_mut();
        let board = Rc::clone(boards.entry(generation).or_insert_with(fresh));
        Mesh {
            network: Rc::clone(network),
            board,
            rank,
            sequence: 0,
            abort: abort.clone(),
            joined: now(),
        }
    }
}

impl Meshes {
    /// Breaks the connections between two hosts, which are there in the latest generation at most.
    pub(super) fn reset(&self, network: &Network, a: Host, b: Host) {
        let boards = self.0.borrow();
        let Some((_, board)) = boards.last_key_value() else {
            return;
        };
        let rank = |host| board.hosts.iter().position(|one| *one == host);
        if let (Some(one), Some(other)) = (rank(a), rank(b)) {
            board.end(network, one, other);
            board.end(network, other, one);
            board.changed.raise();
        }
    }
}

impl Board {
    /// Ends a way. What is on it may arrive or not.
    fn end(&self, network: &Network, from: usize, to: usize) {
        let end = now() + network.delay(self.hosts[from], self.hosts[to]);
        let mut state = self.state.borrow_mut();
        state.ended.entry((from, to)).or_insert(end);
    }
}

impl Mesh {
    /// The number of the last collective.
    pub(super) fn sequence(&self) -> u64 {
        self.sequence
    }

    pub(super) fn world(&self) -> usize {
        self.board.hosts.len()
    }

    pub(super) fn rank(&self) -> usize {
        self.rank
    }

    pub(super) fn check(&self) -> Result<(), Broken> {
        match self.abort.is_raised() {
            true => Err(Broken::new(None, "the generation is over")),
            false => Ok(()),
        }
    }

    /// Everybody's words, by rank.
    pub(super) async fn all_gather(&mut self, mine: Words) -> Result<Vec<Rc<Words>>, Broken> {
        self.check()?;
        self.sequence += 1;
        self.post(Rc::new(mine));
        let mut alarm = None;
        poll_fn(|context| {
            loop {
                if let Err(over) = self.check() {
                    return Poll::Ready(Err(over));
                }
                let wake = match self.look() {
                    Ok(Ok(all)) => return Poll::Ready(Ok(all)),
                    Ok(Err(broken)) => return Poll::Ready(Err(broken)),
                    Err(wake) => wake,
                };
                self.abort.signal.watch(context);
                self.board.changed.watch(context);
                self.network.watch(context);
                let Some(wake) = wake.filter(|wake| *wake > now()) else {
                    return Poll::Pending;
                };
                let mut sleep = Box::pin(sleep_until(wake));
                if sleep.as_mut().poll(context).is_pending() {
                    alarm = Some(sleep);
                    return Poll::Pending;
                }
            }
        })
        .await
    }

    fn post(&self, words: Rc<Words>) {
        let mut state = self.board.state.borrow_mut();
        for (to, host) in self.board.hosts.iter().enumerate() {
            let delay = self.network.delay(self.board.hosts[self.rank], *host);
            let last = state.last.entry((self.rank, to)).or_default();
            *last = (*last).max(now() + delay);
            let due = if to == self.rank { now() } else { *last };
            let post = (due, Rc::clone(&words));
            state.posts.insert((self.sequence, self.rank, to), post);
        }
        drop(state);
        self.board.changed.raise();
    }

    /// What has come of the collective: everything, a broken way, or when to look again.
    fn look(&self) -> Result<Result<Vec<Rc<Words>>, Broken>, Option<Duration>> {
        let state = self.board.state.borrow();
        let (mut all, mut wake) = (Vec::new(), None::<Duration>);
        let mut later = |at: Duration| wake = Some(wake.map_or(at, |known| known.min(at)));
        for (from, host) in self.board.hosts.iter().enumerate() {
            let own = self.board.hosts[self.rank];
            let is_cut = self.network.is_cut(*host, own);
            let ended = state.ended.get(&(from, self.rank));
            let post = state.posts.get(&(self.sequence, from, self.rank));
            let arrives = post.filter(|(due, _)| ended.is_none_or(|end| due <= end));
            match (arrives, ended) {
                (Some((due, words)), _) if *due <= now() && !is_cut => all.push(Rc::clone(words)),
                (None, Some(end)) if *end <= now() && !is_cut => {
                    let why = "its connection was closed";
                    return Ok(Err(Broken::new(Some(from), why)));
                }
                (Some((due, _)), _) if !is_cut => later(*due),
                (None, Some(end)) if !is_cut => later(*end),
                _ => {}
            }
            // What has come is there, whether or not its machine answers.
            let has_come = arrives.is_some_and(|(due, _)| *due <= now()) && !is_cut;
            if let Some(since) = self.network.unanswered_since(*host, own)
                && !has_come
            {
                let noticed = since.max(self.joined) + patience::PULSE;
                if noticed <= now() {
                    let why = "its machine has not answered";
                    return Ok(Err(Broken::new(Some(from), why)));
                }
                later(noticed);
            }
        }
        match all.len() == self.board.hosts.len() {
            true => Ok(Ok(all)),
            false => Err(wake),
        }
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        let others = 0..self.board.hosts.len();
        others.for_each(|to| self.board.end(&self.network, self.rank, to));
        self.board.changed.raise();
    }
}
