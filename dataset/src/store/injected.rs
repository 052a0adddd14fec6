//! A store in whose operations a test interferes. Tests of other crates include this file.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// What an operation does to the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    Read,
    Change,
}

/// What happens before operations.
#[async_trait::async_trait]
pub(crate) trait Fault: fmt::Debug + Send + Sync + 'static {
    /// Lets an operation on an object, or on all below a path, begin now or later, or fails it.
    async fn meet(&self, act: Act, at: &Path) -> Result<()>;
}

/// The error of an operation that was made to fail.
pub(crate) fn failed(words: &'static str) -> Error {
    Error::Generic {
        store: "injected",
        source: words.into(),
    }
}

/// A store with a fault.
#[derive(Debug)]
pub(crate) struct Injected<F> {
    inner: Arc<dyn ObjectStore>,
    fault: Arc<F>,
}

impl<F: Fault> Injected<F> {
    pub(crate) fn new(inner: Arc<dyn ObjectStore>, fault: Arc<F>) -> Self {
        Self { inner, fault }
    }
}

impl<F> fmt::Display for Injected<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with faults", self.inner)
    }
}

#[async_trait::async_trait]
impl<F: Fault> ObjectStore for Injected<F> {
    async fn put_opts(&self, at: &Path, data: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.fault.meet(Act::Change, at).await?;
        self.inner.put_opts(at, data, opts).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.fault.meet(Act::Change, at).await?;
        self.inner.put_multipart_opts(at, opts).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        self.fault.meet(Act::Read, at).await?;
        self.inner.get_opts(at, options).await
    }

    async fn get_ranges(&self, at: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.fault.meet(Act::Read, at).await?;
        self.inner.get_ranges(at, ranges).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let fault = Arc::clone(&self.fault);
        let met = paths.and_then(move |at| {
            let fault = Arc::clone(&fault);
            async move { fault.meet(Act::Change, &at).await.map(|()| at) }
        });
        self.inner.delete_stream(met.boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (fault, at) = (Arc::clone(&self.fault), prefix.cloned().unwrap_or_default());
        let inner = self.inner.list(prefix);
        let met = async move { fault.meet(Act::Read, &at).await.map(|()| inner) };
        futures::stream::once(met).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let at = prefix.cloned().unwrap_or_default();
        self.fault.meet(Act::Read, &at).await?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.fault.meet(Act::Change, to).await?;
        self.inner.copy_opts(from, to, options).await
    }
}
