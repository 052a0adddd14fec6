//! A store that dies after a number of operations that change something.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// Passes everything on until `left` puts and deletes have happened; then every operation fails.
#[derive(Debug)]
pub(in crate::checkpoint::tests) struct Faulty {
    inner: Arc<dyn ObjectStore>,
    left: Arc<AtomicI64>,
}

impl Faulty {
    pub(in crate::checkpoint::tests) fn new(inner: Arc<dyn ObjectStore>, operations: i64) -> Self {
        Self {
            inner,
            left: Arc::new(AtomicI64::new(operations)),
        }
    }

    fn alive(left: &AtomicI64, cost: i64) -> Result<()> {
        if left.fetch_sub(cost, Ordering::SeqCst) - cost < 0 {
            let source = "the store is gone".into();
            return Err(object_store::Error::Generic {
                store: "faulty",
                source,
            });
        }
        Ok(())
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "faulty {}", self.inner)
    }
}

#[async_trait::async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, at: &Path, data: PutPayload, opts: PutOptions) -> Result<PutResult> {
        Self::alive(&self.left, 1)?;
        self.inner.put_opts(at, data, opts).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        Self::alive(&self.left, 1)?;
        self.inner.put_multipart_opts(at, opts).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        Self::alive(&self.left, 0)?;
        self.inner.get_opts(at, options).await
    }

    async fn get_ranges(&self, at: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        Self::alive(&self.left, 0)?;
        self.inner.get_ranges(at, ranges).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let left = Arc::clone(&self.left);
        let counted =
            paths.and_then(move |path| std::future::ready(Self::alive(&left, 1).map(|()| path)));
        self.inner.delete_stream(counted.boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match Self::alive(&self.left, 0) {
            Ok(()) => self.inner.list(prefix),
            Err(error) => futures::stream::once(std::future::ready(Err(error))).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        Self::alive(&self.left, 0)?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        Self::alive(&self.left, 1)?;
        self.inner.copy_opts(from, to, options).await
    }
}
