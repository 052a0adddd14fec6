//! A store whose reads are slow, fail or never end, as a test says.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// What happens to reads of shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Reads {
    Pass,
    Slow,
    Fail,
    Stall,
}

/// A store in trouble.
#[derive(Clone, Debug)]
pub(super) struct Troubled {
    inner: Arc<dyn ObjectStore>,
    reads: Arc<AtomicU8>,
}

impl Troubled {
    pub(super) fn new(inner: Arc<dyn ObjectStore>) -> Self {
        Self {
            inner,
            reads: Arc::new(AtomicU8::new(Reads::Pass as u8)),
        }
    }

    pub(super) fn set(&self, reads: Reads) {
        self.reads.store(reads as u8, Ordering::SeqCst);
    }

    async fn meet(&self, at: &Path) -> Result<()> {
        let now = self.reads.load(Ordering::SeqCst);
        if !at.as_ref().ends_with(".parquet") || now == Reads::Pass as u8 {
            return Ok(());
        }
        if now == Reads::Stall as u8 {
            return std::future::pending().await;
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
        if now == Reads::Fail as u8 {
            let source = "connection reset".into();
            return Err(object_store::Error::Generic {
                store: "troubled",
                source,
            });
        }
        Ok(())
    }
}

impl fmt::Display for Troubled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "troubled {}", self.inner)
    }
}

#[async_trait::async_trait]
impl ObjectStore for Troubled {
    async fn put_opts(&self, at: &Path, data: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.inner.put_opts(at, data, opts).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, opts).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        self.meet(at).await?;
        self.inner.get_opts(at, options).await
    }

    async fn get_ranges(&self, at: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.meet(at).await?;
        self.inner.get_ranges(at, ranges).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
