//! An object store that may be slow, fail, lose its answers, and write late or twice.
//!
//! What a request does to the objects is one moment. That moment, and the moment of the answer, are
//! drawn when the request arrives; it comes whether or not somebody still waits for it, since it is
//! the store's and not the caller's.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, TryStreamExt, stream::BoxStream};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult,
    Result, memory::InMemory, path::Path,
};
use tokio::sync::oneshot;

use super::{
    chance::Chance,
    executor::{self, NodeId, now, sleep},
};
use crate::metrics;

/// What is wrong with the store at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Everything takes long.
    Slow,
    /// Requests fail, before or after they did their work.
    Failing,
    /// Writes that fail may do their work later, and others do it once more. Not deletions: one
    /// that comes late may meet another object of the same name, which is a limit.
    Late,
}

/// A change of an object, for whoever watches.
pub(super) struct Change<'a> {
    pub(super) writer: NodeId,
    pub(super) path: &'a Path,
    /// None: it was deleted.
    pub(super) bytes: Option<&'a Bytes>,
}

type Watcher = Box<dyn FnMut(&Change<'_>)>;

/// The objects, and the store's troubles.
pub(super) struct Cloud {
    objects: Arc<InMemory>,
    chance: Mutex<Chance>,
    troubles: Mutex<Vec<(Trouble, Duration)>>,
}

thread_local! {
    /// Not in the cloud, which has to be `Send` as every object store.
    static WATCHER: std::cell::RefCell<Option<Watcher>> = const { std::cell::RefCell::new(None) };
}

/// The store as one process sees it.
#[derive(Clone)]
pub(super) struct View {
    cloud: Arc<Cloud>,
    writer: NodeId,
}

/// A write and its fate.
#[derive(Clone)]
struct Write {
    writer: NodeId,
    path: Path,
    /// None: a deletion.
    bytes: Option<Bytes>,
    mode: PutMode,
}

/// When a request does its work, and whether its answer arrives.
struct Fate {
    works_after: Option<Duration>,
    again_after: Option<Duration>,
    answers_after: Duration,
    is_answered: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed() -> Error {
    Error::Generic {
        store: "simulated",
        source: "the store does not answer".into(),
    }
}

impl Cloud {
    pub(super) fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            objects: Arc::default(),
            chance: Mutex::new(Chance::new(seed, "store")),
            troubles: Mutex::default(),
        })
    }

    pub(super) fn watch(watcher: Option<Watcher>) {
        WATCHER.with(|known| *known.borrow_mut() = watcher);
    }

    /// The store as a process sees it.
    pub(super) fn view(self: &Arc<Self>, writer: NodeId) -> View {
        View {
            cloud: Arc::clone(self),
            writer,
        }
    }

    pub(super) fn trouble(&self, trouble: Trouble, time: Duration) {
        lock(&self.troubles).push((trouble, now() + time));
    }

    /// What an object holds at this moment.
    pub(super) fn peek(&self, path: &Path) -> Option<Bytes> {
        let read = async { self.objects.get(path).await?.bytes().await };
        read.now_or_never()?.ok()
    }

    /// All that it holds, without a delay or a fault.
    pub(super) fn still(&self) -> Arc<dyn ObjectStore> {
        Arc::clone(&self.objects) as Arc<dyn ObjectStore>
    }

    fn has(&self, trouble: Trouble) -> bool {
        let troubles = lock(&self.troubles);
        let mut known = troubles.iter();
        known.any(|(kind, until)| *kind == trouble && now() < *until)
    }

    fn latency(&self) -> Duration {
        let mut chance = lock(&self.chance);
        match self.has(Trouble::Slow) {
            true => chance.millis(100, 2_500),
            false => chance.millis(1, 15),
        }
    }

    /// Of a write.
    fn fate(&self, write: &Write) -> Fate {
        let (work, answer) = (self.latency(), self.latency());
        let (failing, late) = (self.has(Trouble::Failing), self.has(Trouble::Late));
        let mut chance = lock(&self.chance);
        let (works, answered, delayed) = (chance.one_in(2), chance.one_in(2), chance.one_in(3));
        let later = chance.millis(50, 4_000);
        let failing = failing && !write.is_metrics();
        let late = late && !write.is_metrics() && write.bytes.is_some();
        let is_answered = !(failing && answered || late && delayed);
        Fate {
            works_after: match is_answered {
                true => Some(work),
                false if late && works => Some(work + later),
                false => works.then_some(work),
            },
            again_after: (late && is_answered && works).then_some(work + later),
            answers_after: work + answer,
            is_answered,
        }
    }

    /// A read does nothing to the objects.
    async fn read(&self) -> Result<()> {
        let latency = self.latency();
        sleep(latency).await;
        match self.has(Trouble::Failing) && lock(&self.chance).one_in(3) {
            true => Err(failed()),
            false => Ok(()),
        }
    }

    /// The moment of a write.
    fn apply(&self, write: &Write) -> Result<()> {
        let done = match &write.bytes {
            Some(bytes) => {
                let options = PutOptions::from(write.mode.clone());
                let payload = PutPayload::from_bytes(bytes.clone());
                let put = self.objects.put_opts(&write.path, payload, options);
                put.now_or_never().map(|put| put.map(drop))
            }
            None => self.objects.delete(&write.path).now_or_never(),
        };
        let done = done.unwrap_or_else(|| Err(failed()));
        if done.is_ok() {
            let change = Change {
                writer: write.writer,
                path: &write.path,
                bytes: write.bytes.as_ref(),
            };
            let watcher = WATCHER.with(|known| known.borrow_mut().take());
            if let Some(mut watcher) = watcher {
                watcher(&change);
                Self::watch(Some(watcher));
            }
        }
        done
    }

    /// Lets a write meet its fate.
    async fn write(self: Arc<Self>, write: Write) -> Result<()> {
        let fate = self.fate(&write);
        let (answer, answered) = oneshot::channel();
        if let Some(after) = fate.works_after {
            let (cloud, write) = (Arc::clone(&self), write.clone());
            executor::outside(async move {
                sleep(after).await;
                let _nobody_waits = answer.send(cloud.apply(&write));
            });
        }
        if let Some(after) = fate.again_after {
            let cloud = Arc::clone(&self);
            executor::outside(async move {
                sleep(after).await;
                let _exists = cloud.apply(&write);
            });
        }
        sleep(fate.answers_after).await;
        match fate.is_answered {
            true => answered.await.unwrap_or_else(|_| Err(failed())),
            false => Err(failed()),
        }
    }
}

impl Write {
    /// A line of the metrics is worth a warning, not a run: what a store does not take is missing.
    /// And where lines cannot be appended, all of them are written over the object, which an earlier
    /// such write undoes that the store carries out late. Both are among the limits in
    /// docs/reliability.md, and would hide what else may go wrong with them.
    fn is_metrics(&self) -> bool {
        self.path.filename() == Some(metrics::FILE_NAME)
    }
}

impl View {
    fn write(&self, path: &Path, bytes: Option<Bytes>, mode: PutMode) -> Write {
        Write {
            writer: self.writer,
            path: path.clone(),
            bytes,
            mode,
        }
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").finish_non_exhaustive()
    }
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("simulated")
    }
}

#[async_trait::async_trait]
impl ObjectStore for View {
    async fn put_opts(&self, at: &Path, data: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let write = self.write(at, Some(Bytes::from(data)), opts.mode);
        Arc::clone(&self.cloud).write(write).await?;
        Ok(PutResult {
            e_tag: None,
            version: None,
            extensions: Default::default(),
        })
    }

    async fn put_multipart_opts(
        &self,
        _: &Path,
        _: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        Err(failed())
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        self.cloud.read().await?;
        self.cloud.objects.get_opts(at, options).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let view = self.clone();
        let deleted = paths.and_then(move |at| {
            let write = view.write(&at, None, PutMode::Overwrite);
            let cloud = Arc::clone(&view.cloud);
            async move { cloud.write(write).await.map(|()| at) }
        });
        deleted.boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (cloud, prefix) = (Arc::clone(&self.cloud), prefix.cloned());
        let listed = async move {
            cloud.read().await?;
            // All at one moment, as the large stores promise.
            let listed: Vec<_> = cloud.objects.list(prefix.as_ref()).collect().await;
            Ok::<_, Error>(futures::stream::iter(listed))
        };
        futures::stream::once(listed).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.cloud.read().await?;
        self.cloud.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(failed())
    }
}
