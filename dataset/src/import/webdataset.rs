//! Samples of a WebDataset tar: consecutive entries with the same stem.
//!
//! The stem is the path up to the first dot of the file name, as WebDataset has it. One entry of
//! a sample may be a picture (`.png`, `.jpg`, `.jpeg`, `.webp`), one its caption (`.txt`), one
//! its metadata (`.json`); others are passed over.

use std::collections::VecDeque;

use bytes::Bytes;

use super::sample::{Bad, Fields, Place, Sample, reason};
use super::tar::{Entry, TarReader};
use crate::error::Result;
use crate::picture::Limits;

/// Longest caption, bytes.
const MAX_CAPTION_BYTES: u64 = 1 << 20;

/// Longest metadata, bytes.
pub(super) const MAX_METADATA_BYTES: u64 = 4 << 20;

/// Reads the samples of a tar.
pub(crate) struct TarSamples {
    tar: TarReader,
    limits: Limits,
    group: Option<Group>,
    ready: VecDeque<Result<Sample, Bad>>,
    ended: bool,
}

/// The sample being put together.
struct Group {
    key: String,
    place: Place,
    picture: Option<Bytes>,
    text: Option<Bytes>,
    json: Option<Bytes>,
    /// The first thing wrong with it.
    bad: Option<Bad>,
}

/// What an entry means for its sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Picture,
    Caption,
    Metadata,
}

impl TarSamples {
    /// A reader at the front of an archive.
    pub(crate) fn new(tar: TarReader, limits: Limits) -> Self {
        Self {
            tar,
            limits,
            group: None,
            ready: VecDeque::new(),
            ended: false,
        }
    }

    /// The next sample or bad entry; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Result<Sample, Bad>>> {
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Ok(Some(item));
            }
            if self.ended {
                return Ok(None);
            }
            match self.tar.next().await? {
                Some(Ok(entry)) => self.take_in(entry).await?,
                Some(Err(bad)) => self.ready.push_back(Err(bad)),
                None => {
                    self.ended = true;
                    self.close_group();
                }
            }
        }
    }

    /// The archive's name, if it was read to where it stops and has no end mark there.
    pub(crate) fn unended(&self) -> Option<&str> {
        self.tar.unended()
    }

    async fn take_in(&mut self, entry: Entry) -> Result<()> {
        let Some((key, part)) = split_name(&entry.name) else {
            self.tar.skip_content(&entry);
            return Ok(());
        };
        if self.group.as_ref().is_none_or(|group| group.key != key) {
            self.close_group();
            let place = self.tar.place(Some(entry.name.clone()), entry.offset);
            self.group = Some(Group::new(key.to_owned(), place));
        }
        let limit = match part {
            Part::Picture => self.limits.max_bytes,
            Part::Caption => MAX_CAPTION_BYTES,
            Part::Metadata => MAX_METADATA_BYTES,
        };
        let place = self.tar.place(Some(entry.name.clone()), entry.offset);
        if entry.size > limit {
            self.tar.skip_content(&entry);
            self.spoil(too_large(place, part, entry.size, limit));
            return Ok(());
        }
        let content = self.tar.read(&entry).await?;
        if let Some(group) = &mut self.group
            && group.slot(part).replace(content).is_some()
        {
            let detail = format!("a second {} of the same sample", part.name());
            self.spoil(Bad::new(place, reason::DUPLICATE_ENTRY, detail));
        }
        Ok(())
    }

    /// Notes what is wrong with the current sample, unless something was already.
    fn spoil(&mut self, bad: Bad) {
        if let Some(group) = &mut self.group {
            let bad = bad.of(&group.key);
            group.bad.get_or_insert(bad);
        }
    }

    fn close_group(&mut self) {
        self.ready.extend(self.group.take().map(Group::finish));
    }
}

impl Group {
    fn new(key: String, place: Place) -> Self {
        Self {
            key,
            place,
            picture: None,
            text: None,
            json: None,
            bad: None,
        }
    }

    fn slot(&mut self, part: Part) -> &mut Option<Bytes> {
        match part {
            Part::Picture => &mut self.picture,
            Part::Caption => &mut self.text,
            Part::Metadata => &mut self.json,
        }
    }

    fn finish(self) -> Result<Sample, Bad> {
        match self.bad {
            Some(bad) => Err(bad),
            None => Ok(Sample {
                place: self.place,
                key: self.key,
                picture: self.picture,
                text: self.text,
                fields: Fields::Raw(self.json),
                needs_picture: true,
            }),
        }
    }
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Picture => "picture",
            Self::Caption => "caption",
            Self::Metadata => "metadata",
        }
    }
}

fn too_large(place: Place, part: Part, size: u64, limit: u64) -> Bad {
    let reason = match part {
        Part::Picture => "picture_too_many_bytes",
        Part::Caption | Part::Metadata => reason::TEXT_TOO_LONG,
    };
    Bad::new(
        place,
        reason,
        format!("{size} bytes are more than the limit of {limit}"),
    )
}

/// The key and the part of an entry, or `None` if it plays no part.
fn split_name(name: &str) -> Option<(&str, Part)> {
    let file = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = file + name[file..].find('.')?;
    if dot == file {
        return None;
    }
    let part = match name[dot + 1..].to_ascii_lowercase().as_str() {
        "png" | "jpg" | "jpeg" | "webp" => Part::Picture,
        "txt" => Part::Caption,
        "json" => Part::Metadata,
        _ => return None,
    };
    Some((&name[..dot], part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_split_at_the_first_dot_of_the_file() {
        assert_eq!(
            split_name("a/b.c/0001.jpg"),
            Some(("a/b.c/0001", Part::Picture))
        );
        assert_eq!(split_name("0001.TXT"), Some(("0001", Part::Caption)));
        assert_eq!(split_name("x.json"), Some(("x", Part::Metadata)));
        for ignored in ["x", "x.cls", "x.seg.png", "._x.png", ".png", "dir.png/x"] {
            assert_eq!(split_name(ignored), None, "{ignored}");
        }
    }
}
