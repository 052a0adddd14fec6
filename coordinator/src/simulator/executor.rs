//! One thread, virtual time, and a seed that decides which of the tasks that could go on does.
//!
//! Tasks belong to nodes, which are processes: a node can be paused (`SIGSTOP`), its clock can jump,
//! and it can be killed, which drops its tasks wherever they were. Time passes only when nobody has
//! anything to do, and then at once.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use super::chance::Chance;

/// The wall clock at the beginning of every simulation.
const EPOCH_MS: i64 = 1_800_000_000_000;

thread_local! {
    static CURRENT: RefCell<Option<Rc<Executor>>> = const { RefCell::new(None) };
}

/// A process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct NodeId(pub(super) u64);

/// Whatever watches over the simulation itself.
pub(super) const OUTSIDE: NodeId = NodeId(0);

type Future_ = Pin<Box<dyn Future<Output = ()>>>;

struct Task {
    node: NodeId,
    /// None while it is polled.
    future: Option<Future_>,
    waker: Waker,
    is_queued: bool,
}

#[derive(Default)]
struct Node {
    is_paused: bool,
    is_dead: bool,
    /// Its tasks that could go on if it were not paused.
    parked: Vec<u64>,
    /// How far its clocks are ahead: the one that only goes forward, and the one on the wall.
    skew: Duration,
    wall_skew_ms: i64,
}

struct Inner {
    tasks: BTreeMap<u64, Task>,
    ready: Vec<u64>,
    timers: BTreeMap<(Duration, u64), Waker>,
    nodes: BTreeMap<NodeId, Node>,
    numbers: u64,
    chance: Chance,
    panic: Option<String>,
}

/// See the module.
pub(super) struct Executor {
    inner: RefCell<Inner>,
    now: Cell<Duration>,
    node: Cell<NodeId>,
    polls: Cell<u64>,
    woken: Arc<Mutex<Vec<u64>>>,
    began: Instant,
}

struct Alarm {
    task: u64,
    woken: Arc<Mutex<Vec<u64>>>,
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        let mut woken = self.woken.lock().unwrap_or_else(PoisonError::into_inner);
        woken.push(self.task);
    }
}

/// Makes an executor this thread's while it is there.
pub(super) struct Installed(());

impl Drop for Installed {
    fn drop(&mut self) {
        let executor = CURRENT.with(|current| current.borrow_mut().take());
        if let Some(executor) = executor {
            let tasks = std::mem::take(&mut executor.inner.borrow_mut().tasks);
            drop(tasks);
        }
    }
}

impl Executor {
    pub(super) fn install(seed: u64) -> (Rc<Self>, Installed) {
        let executor = Rc::new(Self {
            inner: RefCell::new(Inner {
                tasks: BTreeMap::new(),
                ready: Vec::new(),
                timers: BTreeMap::new(),
                nodes: BTreeMap::from([(OUTSIDE, Node::default())]),
                numbers: 0,
                chance: Chance::new(seed, "executor"),
                panic: None,
            }),
            now: Cell::new(Duration::ZERO),
            node: Cell::new(OUTSIDE),
            polls: Cell::new(0),
            woken: Arc::default(),
            began: Instant::now(),
        });
        CURRENT.with(|current| *current.borrow_mut() = Some(Rc::clone(&executor)));
        (executor, Installed(()))
    }

    /// Lets tasks run and time pass, until `is_over` or nothing can happen any more.
    pub(super) fn run(&self, mut is_over: impl FnMut() -> bool) {
        while !is_over() {
            self.collect();
            if let Some(task) = self.choose() {
                self.poll(task);
            } else if !self.pass_time() {
                return;
            }
        }
    }

    /// Polls so far: with the time, what an execution can be recognized by.
    pub(super) fn polls(&self) -> u64 {
        self.polls.get()
    }

    /// The words of a task that panicked.
    pub(super) fn panic(&self) -> Option<String> {
        self.inner.borrow().panic.clone()
    }

    pub(super) fn has_panicked(&self) -> bool {
        self.inner.borrow().panic.is_some()
    }

    pub(super) fn node(&self) -> NodeId {
        let mut inner = self.inner.borrow_mut();
        inner.numbers += 1;
        let id = NodeId(inner.numbers);
        inner.nodes.insert(id, Node::default());
        id
    }

    pub(super) fn is_alive(&self, node: NodeId) -> bool {
        let inner = self.inner.borrow();
        inner.nodes.get(&node).is_some_and(|node| !node.is_dead)
    }

    pub(super) fn spawn(&self, node: NodeId, future: impl Future<Output = ()> + 'static) {
        let mut inner = self.inner.borrow_mut();
        if inner.nodes.get(&node).is_none_or(|node| node.is_dead) {
            return;
        }
        inner.numbers += 1;
        let number = inner.numbers;
        let alarm = Alarm {
            task: number,
            woken: Arc::clone(&self.woken),
        };
        let task = Task {
            node,
            future: Some(Box::pin(future)),
            waker: Waker::from(Arc::new(alarm)),
            is_queued: true,
        };
        inner.tasks.insert(number, task);
        inner.queue(number, node);
    }

    /// Ends a process wherever it is.
    pub(super) fn kill(&self, node: NodeId) {
        let mut inner = self.inner.borrow_mut();
        if let Some(known) = inner.nodes.get_mut(&node) {
            known.is_dead = true;
            known.parked.clear();
        }
        let (dead, others) = std::mem::take(&mut inner.tasks)
            .into_iter()
            .partition(|(_, task)| task.node == node);
        inner.tasks = others;
        drop(inner);
        // Only now: what a task owns may wake others.
        let dead: BTreeMap<u64, Task> = dead;
        drop(dead);
    }

    pub(super) fn pause(&self, node: NodeId) {
        if let Some(node) = self.inner.borrow_mut().nodes.get_mut(&node) {
            node.is_paused = true;
        }
    }

    pub(super) fn resume(&self, node: NodeId) {
        let mut inner = self.inner.borrow_mut();
        if let Some(node) = inner.nodes.get_mut(&node) {
            node.is_paused = false;
            let parked = std::mem::take(&mut node.parked);
            inner.ready.extend(parked);
        }
    }

    /// Puts a process's clocks forward, and the one on the wall anywhere.
    pub(super) fn jump(&self, node: NodeId, by: Duration, wall_ms: i64) {
        if let Some(node) = self.inner.borrow_mut().nodes.get_mut(&node) {
            node.skew += by;
            node.wall_skew_ms += wall_ms;
        }
    }

    fn collect(&self) {
        let woken = {
            let mut woken = self.woken.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *woken)
        };
        if woken.is_empty() {
            return;
        }
        let mut inner = self.inner.borrow_mut();
        for number in woken {
            let Some(task) = inner.tasks.get_mut(&number) else {
                continue;
            };
            if !std::mem::replace(&mut task.is_queued, true) {
                let node = task.node;
                inner.queue(number, node);
            }
        }
    }

    /// Any of those that could go on.
    fn choose(&self) -> Option<u64> {
        let mut inner = self.inner.borrow_mut();
        loop {
            let len = inner.ready.len();
            if len == 0 {
                return None;
            }
            let at = inner.chance.index(len);
            let number = inner.ready.swap_remove(at);
            let Some(node) = inner.tasks.get(&number).map(|task| task.node) else {
                continue;
            };
            // It may have been paused since.
            match inner.nodes.get_mut(&node) {
                Some(node) if node.is_paused => node.parked.push(number),
                _ => return Some(number),
            }
        }
    }

    fn poll(&self, number: u64) {
        let (mut future, waker, node) = {
            let mut inner = self.inner.borrow_mut();
            let Some(task) = inner.tasks.get_mut(&number) else {
                return;
            };
            task.is_queued = false;
            let Some(future) = task.future.take() else {
                return;
            };
            (future, task.waker.clone(), task.node)
        };
        self.node.set(node);
        self.polls.set(self.polls.get() + 1);
        let polled = catch_unwind(AssertUnwindSafe(|| {
            future.as_mut().poll(&mut Context::from_waker(&waker))
        }));
        self.node.set(OUTSIDE);
        let mut inner = self.inner.borrow_mut();
        match polled {
            Ok(Poll::Pending) => {
                if let Some(task) = inner.tasks.get_mut(&number) {
                    task.future = Some(future);
                    return;
                }
            }
            Ok(Poll::Ready(())) => {
                inner.tasks.remove(&number);
            }
            Err(panic) => {
                let words = panic.downcast_ref::<String>().cloned();
                let plain = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
                inner
                    .panic
                    .get_or_insert(words.or(plain).unwrap_or_default());
                inner.tasks.remove(&number);
            }
        }
        drop(inner);
        drop(future);
    }

    /// On to the next timer; false: there is none.
    fn pass_time(&self) -> bool {
        let Some(((at, _), waker)) = self.inner.borrow_mut().timers.pop_first() else {
            return false;
        };
        self.now.set(self.now.get().max(at));
        waker.wake();
        true
    }
}

impl Inner {
    fn queue(&mut self, task: u64, node: NodeId) {
        match self.nodes.get_mut(&node) {
            Some(node) if node.is_paused => node.parked.push(task),
            _ => self.ready.push(task),
        }
    }
}

fn with<T>(act: impl FnOnce(&Executor) -> T) -> Option<T> {
    let current = CURRENT.try_with(|current| current.borrow().clone());
    current.ok().flatten().map(|executor| act(&executor))
}

/// Virtual time since the beginning.
pub(super) fn now() -> Duration {
    with(|executor| executor.now.get()).unwrap_or_default()
}

/// What the clock of the process shows that asks; none: nothing is simulated.
pub(crate) fn instant() -> Option<Instant> {
    with(|executor| {
        let node = executor.node.get();
        let inner = executor.inner.borrow();
        let skew = inner.nodes.get(&node).map_or(Duration::ZERO, |n| n.skew);
        executor.began + executor.now.get() + skew
    })
}

/// The same of the clock on the wall.
pub(crate) fn wall_ms() -> Option<u64> {
    with(|executor| {
        let node = executor.node.get();
        let inner = executor.inner.borrow();
        let skew = inner.nodes.get(&node).map_or(0, |node| node.wall_skew_ms);
        let since = i64::try_from(executor.now.get().as_millis()).unwrap_or(i64::MAX);
        u64::try_from(EPOCH_MS + since + skew).unwrap_or_default()
    })
}

/// Starts what belongs to no process.
pub(super) fn outside(future: impl Future<Output = ()> + 'static) {
    with(|executor| executor.spawn(OUTSIDE, future));
}

/// Lets virtual time pass.
pub(crate) fn sleep(time: Duration) -> Sleep {
    sleep_until(now() + time)
}

pub(super) fn sleep_until(until: Duration) -> Sleep {
    let number = None;
    Sleep { until, number }
}

/// See [`sleep`].
#[derive(Debug)]
pub(crate) struct Sleep {
    until: Duration,
    number: Option<u64>,
}

impl Sleep {
    fn forget(&mut self) {
        if let Some(number) = self.number.take() {
            with(|executor| {
                executor
                    .inner
                    .borrow_mut()
                    .timers
                    .remove(&(self.until, number))
            });
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.forget();
        if now() >= self.until {
            return Poll::Ready(());
        }
        let until = self.until;
        self.number = with(|executor| {
            let mut inner = executor.inner.borrow_mut();
            inner.numbers += 1;
            let number = inner.numbers;
            inner
                .timers
                .insert((until, number), context.waker().clone());
            number
        });
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.forget();
    }
}

/// Something that tasks wait for, whatever it is: each looks again when it is raised.
#[derive(Clone, Debug, Default)]
pub(super) struct Signal(Rc<RefCell<Vec<Waker>>>);

impl Signal {
    pub(super) fn raise(&self) {
        let wakers = std::mem::take(&mut *self.0.borrow_mut());
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Wakes the task of this context when it is raised.
    pub(super) fn watch(&self, context: &Context<'_>) {
        let mut wakers = self.0.borrow_mut();
        if !wakers.iter().any(|known| known.will_wake(context.waker())) {
            wakers.push(context.waker().clone());
        }
    }

    /// Waits until there is something.
    pub(super) async fn until<T>(&self, mut look: impl FnMut() -> Option<T>) -> T {
        std::future::poll_fn(|context| match look() {
            Some(found) => Poll::Ready(found),
            None => {
                self.watch(context);
                Poll::Pending
            }
        })
        .await
    }
}

/// What comes of a future in time.
pub(super) async fn within<T>(time: Duration, future: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        done = future => Some(done),
        () = sleep(time) => None,
    }
}
