//! Reading a source from front to back in windows, one ahead: two windows in memory, whatever
//! its size, and a source that changes meanwhile is noticed.

use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{GetOptions, ObjectStore, ObjectStoreExt};
use tokio_util::task::AbortOnDropHandle;

use crate::error::{Error, Result};
use crate::store;

/// Size of a window, bytes.
const WINDOW: u64 = 4 << 20;

type Fetch = AbortOnDropHandle<Result<Bytes>>;

/// Reads one object from front to back.
pub(crate) struct ByteReader {
    object: Object,
    /// Where the next byte is that has not been given out.
    position: u64,
    /// Bytes from `position` on that are here already.
    window: Bytes,
    /// The window after that, on its way.
    ahead: Option<Fetch>,
}

/// One version of one object.
#[derive(Clone)]
struct Object {
    store: Arc<dyn ObjectStore>,
    path: Path,
    size: u64,
    version: Option<String>,
}

impl Object {
    /// Begins to fetch the window at `start`, if there is one.
    fn fetch(&self, start: u64) -> Option<Fetch> {
        let end = self.size.min(start.saturating_add(WINDOW));
        if start >= end {
            return None;
        }
        let object = self.clone();
        let options = GetOptions {
            range: Some((start..end).into()),
            if_match: self.version.clone(),
            ..GetOptions::default()
        };
        Some(AbortOnDropHandle::new(tokio::spawn(async move {
            let read = async {
                object
                    .store
                    .get_opts(&object.path, options)
                    .await?
                    .bytes()
                    .await
            };
            read.await
                .map_err(|error| failed(&object.store, &object.path, &error))
        })))
    }
}

fn failed(store: &Arc<dyn ObjectStore>, path: &Path, error: &object_store::Error) -> Error {
    Error::store("read", &store::name(&**store, path), error)
}

impl ByteReader {
    /// A reader at the front of an object.
    pub(crate) async fn open(store: Arc<dyn ObjectStore>, path: Path) -> Result<Self> {
        let meta = store
            .head(&path)
            .await
            .map_err(|error| failed(&store, &path, &error))?;
        let object = Object {
            store,
            path,
            size: meta.size,
            version: meta.e_tag,
        };
        let ahead = object.fetch(0);
        Ok(Self {
            object,
            position: 0,
            window: Bytes::new(),
            ahead,
        })
    }

    /// Bytes given out or skipped so far.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Bytes still to come.
    pub(crate) fn left(&self) -> u64 {
        self.object.size - self.position
    }

    /// The next `count` bytes; fewer only at the end.
    pub(crate) async fn take(&mut self, count: usize) -> Result<Bytes> {
        let mut taken = Vec::with_capacity(count.min(self.window_left()));
        while taken.len() < count {
            let part = self.peek().await?;
            if part.is_empty() {
                break;
            }
            let part = part.slice(..part.len().min(count - taken.len()));
            taken.extend_from_slice(&part);
            self.advance(part.len());
        }
        Ok(Bytes::from(taken))
    }

    /// Skips bytes; what is not here yet is not fetched.
    pub(crate) fn skip(&mut self, count: u64) {
        let count = count.min(self.left());
        match usize::try_from(count) {
            Ok(near) if near <= self.window.len() => self.advance(near),
            _ => {
                self.position += count;
                self.window = Bytes::new();
                self.ahead = self.object.fetch(self.position);
            }
        }
    }

    /// Bytes that come next, at least one unless the end is reached; nothing is given out.
    pub(crate) async fn peek(&mut self) -> Result<Bytes> {
        if self.window.is_empty()
            && let Some(fetch) = self.ahead.take()
        {
            self.window = fetch
                .await
                .map_err(|error| Error::Internal(error.to_string()))??;
            self.ahead = self.object.fetch(self.position + self.window.len() as u64);
        }
        Ok(self.window.clone())
    }

    /// Gives out bytes of the window.
    pub(crate) fn advance(&mut self, count: usize) {
        let count = count.min(self.window.len());
        self.window = self.window.slice(count..);
        self.position += count as u64;
    }

    fn window_left(&self) -> usize {
        usize::try_from(self.left().min(WINDOW)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_byte_comes_once_and_in_order_across_windows() {
        let size = usize::try_from(2 * WINDOW).unwrap() + 1000;
        let bytes: Vec<u8> = (0..size).map(|i| (i * 7 % 251) as u8).collect();
        let (store, root) = store::open("memory://bytes").unwrap();
        let path = store::under(&root, "x").unwrap();
        store::put(&*store, &path, Bytes::from(bytes.clone()))
            .await
            .unwrap();
        let mut reader = ByteReader::open(store, path).await.unwrap();
        let mut at = 0;
        for step in [1, 511, 5 << 20, 17, 1 << 20] {
            assert_eq!(reader.take(step).await.unwrap(), bytes[at..at + step]);
            at += step;
            reader.skip(333);
            at += 333;
            assert_eq!(reader.position(), at as u64);
        }
        assert_eq!(reader.take(usize::MAX).await.unwrap(), bytes[at..]);
        assert!(reader.take(1).await.unwrap().is_empty());
        assert_eq!(reader.left(), 0);
    }

    #[tokio::test]
    async fn a_source_that_changes_is_noticed() {
        let (store, root) = store::open("memory://changes").unwrap();
        let path = store::under(&root, "x").unwrap();
        let size = usize::try_from(3 * WINDOW).unwrap();
        store::put(&*store, &path, Bytes::from(vec![1; size]))
            .await
            .unwrap();
        let mut reader = ByteReader::open(store.clone(), path.clone()).await.unwrap();
        reader.take(10).await.unwrap();
        store::put(&*store, &path, Bytes::from(vec![2; size]))
            .await
            .unwrap();
        assert!(reader.take(size).await.is_err());
    }
}
