//! A byte sink that hashes what it gets and writes one object of any size, atomically.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, WriteMultipart};

use crate::error::{Error, Result};
use crate::store;

/// Size of the parts of a large object, bytes; what is smaller is written in one request.
const PART_BYTES: usize = 8 << 20;

/// Parts of one object that are on their way at once.
const PARTS_IN_FLIGHT: usize = 4;

/// What an object turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finished {
    /// Size in bytes.
    pub(crate) bytes: u64,
    /// blake3, in hexadecimal.
    pub(crate) digest: String,
}

/// Hashes bytes and, unless it only compares, writes them as one object. The object appears
/// when [`ObjectSink::finish`] succeeds, whole or not at all.
pub(crate) struct ObjectSink {
    target: Option<Target>,
    hasher: blake3::Hasher,
    bytes: u64,
}

struct Target {
    store: Arc<dyn ObjectStore>,
    path: Path,
    buffer: BytesMut,
    upload: Option<WriteMultipart>,
}

impl ObjectSink {
    /// A sink that writes the object at `path`.
    pub(crate) fn new(store: Arc<dyn ObjectStore>, path: Path) -> Self {
        let target = Target {
            store,
            path,
            buffer: BytesMut::new(),
            upload: None,
        };
        Self {
            target: Some(target),
            ..Self::hash_only()
        }
    }

    /// A sink that only finds out what the object would be.
    pub(crate) fn hash_only() -> Self {
        Self {
            target: None,
            hasher: blake3::Hasher::new(),
            bytes: 0,
        }
    }

    /// Appends bytes.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        match &mut self.target {
            Some(target) => target.write(bytes).await,
            None => Ok(()),
        }
    }

    /// Size and digest of what was written so far.
    pub(crate) fn so_far(&self) -> Finished {
        let digest = self.hasher.finalize().to_hex().to_string();
        Finished {
            bytes: self.bytes,
            digest,
        }
    }

    /// Makes the object appear.
    pub(crate) async fn finish(self) -> Result<Finished> {
        let finished = self.so_far();
        if let Some(target) = self.target {
            target.finish().await?;
        }
        Ok(finished)
    }

    /// Gives up: nothing appears.
    pub(crate) async fn abort(self) {
        if let Some(upload) = self.target.and_then(|target| target.upload) {
            // What can not be taken back now is invisible; the store's own rules remove it.
            let _ = upload.abort().await;
        }
    }
}

impl Target {
    async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.buffer.extend_from_slice(bytes);
        while self.buffer.len() >= PART_BYTES {
            let part = self.buffer.split_to(PART_BYTES).freeze();
            self.send(part).await?;
        }
        Ok(())
    }

    async fn send(&mut self, part: Bytes) -> Result<()> {
        let failed =
            |error| Error::store("written", &store::name(&*self.store, &self.path), &error);
        if self.upload.is_none() {
            let upload = self.store.put_multipart(&self.path).await.map_err(failed)?;
            self.upload = Some(WriteMultipart::new_with_chunk_size(upload, PART_BYTES));
        }
        if let Some(upload) = &mut self.upload {
            upload
                .wait_for_capacity(PARTS_IN_FLIGHT)
                .await
                .map_err(failed)?;
            upload.put(part);
        }
        Ok(())
    }

    async fn finish(self) -> Result<()> {
        let rest = self.buffer.freeze();
        match self.upload {
            None => store::put(&*self.store, &self.path, rest).await,
            Some(mut upload) => {
                upload.put(rest);
                let finished = upload.finish().await;
                let failed =
                    |error| Error::store("written", &store::name(&*self.store, &self.path), &error);
                finished.map(drop).map_err(failed)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn small_and_large_objects_arrive_whole_with_their_digest() {
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().to_str().unwrap().to_owned();
        for place in [disk.as_str(), "memory://sink"] {
            for size in [0, 1000, PART_BYTES, 2 * PART_BYTES + 17] {
                let bytes: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
                let (store, root) = store::open(place).unwrap();
                let path = store::under(&root, &format!("object-{size}")).unwrap();
                let mut sink = ObjectSink::new(store.clone(), path.clone());
                for chunk in bytes.chunks(100_003) {
                    sink.write(chunk).await.unwrap();
                }
                let finished = sink.finish().await.unwrap();
                assert_eq!(finished.digest, blake3::hash(&bytes).to_hex().to_string());
                assert_eq!(store::get(&*store, &path).await.unwrap(), bytes);
            }
        }
    }

    #[tokio::test]
    async fn nothing_appears_before_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let (store, root) = store::open(folder.path().to_str().unwrap()).unwrap();
        let path = store::under(&root, "object").unwrap();
        let mut sink = ObjectSink::new(store.clone(), path.clone());
        sink.write(&vec![1; 3 * PART_BYTES]).await.unwrap();
        assert_eq!(store::size(&*store, &path).await.unwrap(), None);
        sink.abort().await;
        assert_eq!(store::size(&*store, &path).await.unwrap(), None);
    }
}
