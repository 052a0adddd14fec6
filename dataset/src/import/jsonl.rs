//! Samples of a JSON lines file: one object per line.
//!
//! `image` is the path of a picture relative to the file's folder, and may not leave it;
//! `caption`, `question` and `answer` are texts; `key`, or else `id`, names the row; everything
//! else is metadata. A line without `image` is a text-only row.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use serde_json::{Map, Value};

use super::bytes::ByteReader;
use super::sample::{Bad, Fields, Place, Sample, lift, parse_object, reason};
use super::tar::leaves_root;
use super::webdataset::MAX_METADATA_BYTES;
use crate::error::{Error, Result, Trouble};
use crate::picture::PictureError;
use crate::store;

/// Reads the samples of a JSON lines file. Pictures are left to [`PictureFolder::load`].
pub(crate) struct LineSamples {
    source: Arc<str>,
    /// Position of the source among all, for keys of lines that have none.
    index: usize,
    bytes: ByteReader,
    line: u64,
}

/// Where the pictures of a file are.
#[derive(Clone)]
pub(crate) struct PictureFolder {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) folder: Path,
    /// The same folder if it is on this machine: links may not lead out of it.
    pub(crate) local: Option<PathBuf>,
}

impl LineSamples {
    /// A reader at the front of a file.
    pub(crate) fn new(source: Arc<str>, index: usize, bytes: ByteReader) -> Self {
        Self {
            source,
            index,
            bytes,
            line: 0,
        }
    }

    /// The next line as a sample with the path of its picture, or what is wrong with it; `None`
    /// at the end. Blank lines are passed over.
    pub(crate) async fn next(&mut self) -> Result<Option<Result<(Sample, Option<String>), Bad>>> {
        loop {
            let offset = self.bytes.position();
            let Some(line) = self.next_line().await? else {
                return Ok(None);
            };
            self.line += 1;
            let place = Place {
                source: Arc::clone(&self.source),
                entry: None,
                line: Some(self.line),
                offset,
            };
            let line = match line {
                Ok(line) => line,
                Err(size) => {
                    let detail =
                        format!("{size} bytes are more than the limit of {MAX_METADATA_BYTES}");
                    return Ok(Some(Err(Bad::new(place, reason::TEXT_TOO_LONG, detail))));
                }
            };
            if !line.trim_ascii().is_empty() {
                let key = format!("{:05}-{:09}", self.index, self.line);
                return Ok(Some(sample(&line, place, key)));
            }
        }
    }

    /// The bytes up to the next line feed, or the size of a line that is too long.
    async fn next_line(&mut self) -> Result<Option<Result<Vec<u8>, u64>>> {
        let start = self.bytes.position();
        let mut line = Vec::new();
        loop {
            let ahead = self.bytes.peek().await?;
            let feed = ahead.iter().position(|&byte| byte == b'\n');
            let size = self.bytes.position() - start + feed.unwrap_or(ahead.len()) as u64;
            if size <= MAX_METADATA_BYTES {
                line.extend_from_slice(&ahead[..feed.unwrap_or(ahead.len())]);
            }
            self.bytes
                .advance(feed.map_or(ahead.len(), |feed| feed + 1));
            if ahead.is_empty() && size == 0 {
                return Ok(None);
            }
            if feed.is_some() || ahead.is_empty() {
                return Ok(Some(if size > MAX_METADATA_BYTES {
                    Err(size)
                } else {
                    Ok(line)
                }));
            }
        }
    }
}

/// A line as a sample and the path of its picture.
fn sample(line: &[u8], place: Place, own_key: String) -> Result<(Sample, Option<String>), Bad> {
    let parsed = parse_object(line).and_then(|mut fields| {
        let key = key(&mut fields)?.unwrap_or(own_key);
        let picture = lift(&mut fields, "image")?;
        Ok((fields, key, picture))
    });
    let (fields, key, picture) = match parsed {
        Ok(parts) => parts,
        Err((reason, detail)) => return Err(Bad::new(place, reason, detail)),
    };
    let fields = Fields::Parsed(fields);
    let sample = Sample {
        place,
        key,
        picture: None,
        text: None,
        fields,
        needs_picture: false,
    };
    Ok((sample, picture))
}

/// Takes the key out of a line: `key`, or else `id`; text or a whole number.
fn key(fields: &mut Map<String, Value>) -> Result<Option<String>, (&'static str, String)> {
    for name in ["key", "id"] {
        match fields.get(name) {
            None | Some(Value::Null) => {}
            Some(Value::Number(number)) => {
                let key = number.to_string();
                fields.remove(name);
                return Ok(Some(key));
            }
            Some(_) => {
                if let Some(key) = lift(fields, name)? {
                    return Ok(Some(key));
                }
            }
        }
    }
    Ok(None)
}

impl PictureFolder {
    /// Reads the picture at a path relative to the folder, or says what is wrong with it.
    pub(crate) async fn load(
        &self,
        sample: Sample,
        relative: &str,
        max_bytes: u64,
    ) -> Result<Result<Sample, Bad>> {
        let refuse = |reason, detail: String| {
            let bad = Bad::new(
                sample.place.clone(),
                reason,
                format!("{relative}: {detail}"),
            );
            Ok(Err(bad.of(&sample.key)))
        };
        let relative_path = relative.trim_start_matches("./");
        let path = match store::under(&self.folder, relative_path) {
            Ok(path) if !leaves_root(relative_path) && !self.leads_out(relative_path) => path,
            _ => return refuse(reason::PATH_TRAVERSAL, "the path leaves the folder".into()),
        };
        match self.read(&path, max_bytes).await {
            Ok(Ok(picture)) => Ok(Ok(Sample {
                picture: Some(picture),
                ..sample
            })),
            Ok(Err(error)) => refuse(error.kind(), error.to_string()),
            Err(Error::Store {
                trouble: Trouble::Missing,
                ..
            }) => refuse(reason::PICTURE_MISSING, "it does not exist".into()),
            Err(Error::Store {
                trouble, detail, ..
            }) if !matches!(trouble, Trouble::Silent | Trouble::Other) => {
                refuse(reason::PICTURE_UNREADABLE, detail)
            }
            Err(error) => Err(error),
        }
    }

    async fn read(&self, path: &Path, limit: u64) -> Result<Result<Bytes, PictureError>> {
        let failed = |error| Error::store("read", &store::name(&*self.store, path), &error);
        let found = self.store.get(path).await.map_err(failed)?;
        let bytes = found.meta.size;
        if bytes > limit {
            return Ok(Err(PictureError::TooManyBytes { bytes, limit }));
        }
        found.bytes().await.map(Ok).map_err(failed)
    }

    /// Whether a link on this machine leads out of the folder.
    fn leads_out(&self, relative: &str) -> bool {
        let Some(local) = &self.local else {
            return false;
        };
        match (local.canonicalize(), local.join(relative).canonicalize()) {
            (Ok(folder), Ok(file)) => !file.starts_with(folder),
            // What does not exist leads nowhere.
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place {
            source: "x.jsonl".into(),
            entry: None,
            line: Some(1),
            offset: 0,
        }
    }

    #[test]
    fn keys_come_from_key_or_id_or_the_line() {
        let of = |line: &str| {
            sample(line.as_bytes(), place(), "own".into())
                .unwrap()
                .0
                .key
        };
        assert_eq!(of(r#"{"key": "a", "id": "b"}"#), "a");
        assert_eq!(of(r#"{"id": "b"}"#), "b");
        assert_eq!(of(r#"{"id": 17}"#), "17");
        assert_eq!(of(r#"{"key": "", "id": null}"#), "own");
        let bad = sample(br#"{"id": [1]}"#, place(), "own".into()).unwrap_err();
        assert_eq!(bad.reason, reason::FIELD_NOT_TEXT);
    }

    #[tokio::test]
    async fn lines_have_their_number_and_offset_and_long_ones_are_passed_over() {
        let long = "x".repeat(usize::try_from(MAX_METADATA_BYTES).unwrap() + 1);
        let text = format!("{{\"id\": 1}}\r\n\n{long}\n{{\"id\": 2}}");
        let (store, root) = store::open("memory://lines").unwrap();
        let path = store::under(&root, "x.jsonl").unwrap();
        store::put(&*store, &path, Bytes::from(text.clone()))
            .await
            .unwrap();
        let bytes = ByteReader::open(store, path).await.unwrap();
        let mut lines = LineSamples::new("x.jsonl".into(), 0, bytes);
        let first = lines.next().await.unwrap().unwrap().unwrap().0;
        assert_eq!((first.key.as_str(), first.place.line), ("1", Some(1)));
        let second = lines.next().await.unwrap().unwrap().unwrap_err();
        assert_eq!(
            (second.reason, second.place.line),
            (reason::TEXT_TOO_LONG, Some(3))
        );
        let third = lines.next().await.unwrap().unwrap().unwrap().0;
        assert_eq!((third.key.as_str(), third.place.line), ("2", Some(4)));
        assert_eq!(
            third.place.offset as usize,
            text.len() - r#"{"id": 2}"#.len()
        );
        assert!(lines.next().await.unwrap().is_none());
    }
}
