//! Reading a tar from front to back: ustar, GNU long names, pax paths and sizes.
//!
//! Our own reader, because an importer needs what general ones do not give: long names with a
//! size limit, the offset of each header, and going on behind a damaged header (the next block
//! with a valid checksum) instead of giving up the rest of the archive.

use std::sync::Arc;

use bytes::Bytes;

use super::bytes::ByteReader;
use super::sample::{Bad, Place, reason};
use crate::error::Result;

mod header;

use header::{Header, Kind};

/// Tars consist of blocks of this size, bytes.
const BLOCK: u64 = 512;

/// Longest name or pax record that is read, bytes.
const MAX_NAME_BYTES: u64 = 1 << 16;

/// A file inside a tar. Its content must be read or skipped before the next entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Path inside the archive.
    pub(crate) name: String,
    /// Size of the content, bytes.
    pub(crate) size: u64,
    /// Byte of the archive where the header begins.
    pub(crate) offset: u64,
}

/// Reads the entries of a tar.
pub(crate) struct TarReader {
    source: Arc<str>,
    bytes: ByteReader,
    ended: bool,
    /// It stops between two entries, without an empty block.
    unended: bool,
}

/// What extension headers said about the entry that follows them.
#[derive(Default)]
struct Extension {
    offset: Option<u64>,
    name: Option<Vec<u8>>,
    size: Option<u64>,
}

impl TarReader {
    /// A reader at the front of an archive; `source` is what quarantine lines call it.
    pub(crate) fn new(source: Arc<str>, bytes: ByteReader) -> Self {
        Self {
            source,
            bytes,
            ended: false,
            unended: false,
        }
    }

    /// The archive's name, if it stops between two entries without the empty blocks that end one.
    pub(crate) fn unended(&self) -> Option<&str> {
        self.unended.then_some(&*self.source)
    }

    /// The place of an entry.
    pub(crate) fn place(&self, entry: Option<String>, offset: u64) -> Place {
        Place {
            source: Arc::clone(&self.source),
            entry,
            line: None,
            offset,
        }
    }

    /// The next file, or what is wrong at its place; `None` at the end. Folders are passed over.
    pub(crate) async fn next(&mut self) -> Result<Option<Result<Entry, Bad>>> {
        let mut extension = Extension::default();
        while !self.ended {
            let offset = self.bytes.position();
            let Some(header) = self.next_header(offset).await? else {
                break;
            };
            let header = match header {
                Ok(header) => header,
                Err(bad) => return Ok(Some(Err(bad))),
            };
            match header.kind {
                Kind::LongName | Kind::Pax => {
                    extension.offset.get_or_insert(offset);
                    if let Some(bad) = self.extend(&mut extension, &header, offset).await? {
                        return Ok(Some(Err(bad)));
                    }
                }
                Kind::Folder | Kind::Passed => {
                    self.skip(header.size);
                    extension = Extension::default();
                }
                Kind::File | Kind::Other(_) => {
                    return Ok(Some(self.entry(extension, header, offset)));
                }
            }
        }
        Ok(None)
    }

    /// Reads the content of the entry just given.
    pub(crate) async fn read(&mut self, entry: &Entry) -> Result<Bytes> {
        let content = self
            .bytes
            .take(usize::try_from(entry.size).unwrap_or(usize::MAX))
            .await?;
        self.bytes.skip(padding(entry.size));
        Ok(content)
    }

    /// Skips the content of the entry just given.
    pub(crate) fn skip_content(&mut self, entry: &Entry) {
        self.skip(entry.size);
    }

    fn skip(&mut self, size: u64) {
        self.bytes.skip(size.saturating_add(padding(size)));
    }

    /// The next header; `None` at the end of the archive (two empty blocks, or no more bytes).
    async fn next_header(&mut self, offset: u64) -> Result<Option<Result<Header, Bad>>> {
        let mut empty = 0;
        loop {
            let block = self.bytes.take(BLOCK as usize).await?;
            match Header::parse(&block) {
                _ if block.is_empty() => {
                    self.unended = empty == 0;
                    return Ok(self.end());
                }
                Some(header) => return Ok(Some(Ok(header))),
                None if block.len() < BLOCK as usize => {
                    self.ended = true;
                    return Ok(Some(Err(self.truncated(None, offset, "a header"))));
                }
                None if block.iter().all(|&byte| byte == 0) => {
                    empty += 1;
                    if empty == 2 {
                        return Ok(self.end());
                    }
                }
                None => return self.recover(offset).await.map(|bad| Some(Err(bad))),
            }
        }
    }

    fn end<T>(&mut self) -> Option<T> {
        self.ended = true;
        None
    }

    /// Goes on to the next block that is a valid header, and leaves it to be read.
    async fn recover(&mut self, offset: u64) -> Result<Bad> {
        loop {
            let ahead = self.bytes.peek().await?;
            if ahead.is_empty() {
                self.ended = true;
                break;
            }
            // Windows and blocks are powers of two, so a window holds whole blocks.
            if ahead.len() >= BLOCK as usize && Header::parse(&ahead[..BLOCK as usize]).is_some() {
                break;
            }
            self.bytes.advance(BLOCK as usize);
        }
        let skipped = self.bytes.position() - offset;
        let detail = format!("the header has a wrong checksum; {skipped} bytes are skipped");
        Ok(Bad::new(
            self.place(None, offset),
            reason::TAR_HEADER,
            detail,
        ))
    }

    /// Takes in a long name or pax records, or says what is wrong with them.
    async fn extend(
        &mut self,
        extension: &mut Extension,
        header: &Header,
        offset: u64,
    ) -> Result<Option<Bad>> {
        if header.size > MAX_NAME_BYTES || header.size > self.bytes.left() {
            self.skip(header.size);
            let detail = format!("an extension header of {} bytes", header.size);
            return Ok(Some(Bad::new(
                self.place(None, offset),
                reason::TAR_HEADER,
                detail,
            )));
        }
        let content = self
            .bytes
            .take(usize::try_from(header.size).unwrap_or_default())
            .await?;
        self.bytes.skip(padding(header.size));
        if header.kind == Kind::LongName {
            let end = content
                .iter()
                .position(|&byte| byte == 0)
                .unwrap_or(content.len());
            extension.name = Some(content[..end].to_vec());
            return Ok(None);
        }
        let records = header::pax_records(&content);
        if let Some(name) = records.get("path".as_bytes()) {
            extension.name = Some(name.to_vec());
        }
        let size = records
            .get("size".as_bytes())
            .and_then(|size| std::str::from_utf8(size).ok());
        extension.size = size.and_then(|size| size.parse().ok()).or(extension.size);
        Ok(None)
    }

    fn entry(&mut self, extension: Extension, header: Header, offset: u64) -> Result<Entry, Bad> {
        let offset = extension.offset.unwrap_or(offset);
        let size = extension.size.unwrap_or(header.size);
        let name = extension.name.unwrap_or(header.name);
        let shown = String::from_utf8_lossy(&name).into_owned();
        if size > self.bytes.left() {
            self.ended = true;
            return Err(self.truncated(Some(shown), offset, "the content"));
        }
        let refused = |reason, detail: &str| {
            Bad::new(self.place(Some(shown.clone()), offset), reason, detail)
        };
        let bad = match (header.kind, std::str::from_utf8(&name)) {
            (Kind::Other(kind), _) => {
                let detail = format!("entry of type {:?}", char::from(kind));
                Some(refused(reason::NOT_A_FILE, &detail))
            }
            (_, Err(error)) => Some(refused(reason::NOT_UTF8, &format!("the name: {error}"))),
            (_, Ok(name)) if leaves_root(name) => Some(refused(
                reason::PATH_TRAVERSAL,
                "the path leaves the archive",
            )),
            _ => None,
        };
        if let Some(bad) = bad {
            self.skip(size);
            return Err(bad);
        }
        let name = shown.strip_prefix("./").map(str::to_owned).unwrap_or(shown);
        Ok(Entry { name, size, offset })
    }

    fn truncated(&self, entry: Option<String>, offset: u64, what: &str) -> Bad {
        let detail = format!("the archive ends inside {what}");
        Bad::new(self.place(entry, offset), reason::TAR_TRUNCATED, detail)
    }
}

/// Whether a path is absolute or climbs out of its folder.
pub(crate) fn leaves_root(name: &str) -> bool {
    let parts = name.split(['/', '\\']);
    name.starts_with(['/', '\\'])
        || name.contains('\0')
        || parts.into_iter().any(|part| part == "..")
}

/// Bytes between the end of a content and the next block.
fn padding(size: u64) -> u64 {
    (BLOCK - size % BLOCK) % BLOCK
}
