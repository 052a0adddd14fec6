//! The tensors of a model: where each lies, whether they are those that are wanted, and their values.
//!
//! The [format](https://github.com/huggingface/safetensors#format) begins with the length of a header in
//! JSON, which names each tensor with its type, shape and place; the places follow on each other and
//! fill the rest of the file.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use futures::{StreamExt, TryStreamExt};
use mks2_proto::params::ParamSpec;
use safetensors::tensor::{Dtype, TensorInfo};
use serde::Deserialize;

use super::{Folder, PretrainedError, Result, adapter};

/// The one file of a small model.
const SINGLE: &str = "model.safetensors";
/// What says which of many files has which tensor.
const INDEX: &str = "model.safetensors.index.json";
/// What there is where only a pickle was published.
const PICKLES: [&str; 2] = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
/// Types of elements that can be read.
const READABLE: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::BF16];
/// Bytes before the header.
const LENGTH: u64 = 8;
/// Largest header, bytes. A model with a hundred thousand tensors has ten million.
const MOST_HEADER: u64 = 32 << 20;
/// Headers that are read at the same time.
const CONCURRENT: usize = 8;
/// Names that a message lists.
const LISTED: usize = 20;

/// Where a tensor lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Name of the file in the folder.
    pub file: String,
    /// Type of its elements.
    pub dtype: Dtype,
    /// Its sizes.
    pub shape: Vec<usize>,
    /// Its bytes in the file.
    pub range: Range<u64>,
}

/// The tensors of a folder, by name.
#[derive(Clone, Debug)]
pub struct Tensors {
    folder: Folder,
    places: BTreeMap<String, Place>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Tensors {
    /// Reads the index, and the header of each file.
    ///
    /// # Errors
    /// When a file is missing or damaged, or all are pickles.
    pub async fn open(folder: &Folder) -> Result<Self> {
        let index = match folder.text(INDEX).await? {
            Some(json) => Some(index(folder, &json)?),
            None => None,
        };
        let files: BTreeSet<String> = match &index {
            Some(index) => index.values().cloned().collect(),
            None => BTreeSet::from([SINGLE.to_owned()]),
        };
        let headers = files.into_iter().map(|file| header(folder, file));
        let mut headers = futures::stream::iter(headers).buffer_unordered(CONCURRENT);
        let mut places = BTreeMap::new();
        while let Some((file, found)) = headers.try_next().await? {
            for (name, place) in found {
                // What an index does not name belongs to nothing.
                let named = index.as_ref().map(|index| index.get(&name));
                if named.is_none_or(|named| named == Some(&file)) {
                    places.insert(name, place);
                }
            }
        }
        drop(headers);
        let named = index.into_iter().flatten();
        let mut absent = named.filter(|(name, _)| !places.contains_key(name));
        if let Some((name, file)) = absent.next() {
            let why = format!("it has no tensor '{name}', which {INDEX} expects there");
            return Err(folder.refuse(&file, why));
        }
        Ok(Self {
            folder: folder.clone(),
            places,
        })
    }

    /// Reads the header of one file alone.
    ///
    /// # Errors
    /// When it is missing or damaged.
    pub async fn of_file(folder: &Folder, file: &str) -> Result<Self> {
        let (_, places) = header(folder, file.to_owned()).await?;
        Ok(Self {
            folder: folder.clone(),
            places: places.into_iter().collect(),
        })
    }

    /// All tensors in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Place)> {
        self.places
            .iter()
            .map(|(name, place)| (name.as_str(), place))
    }

    /// Whether they are those of `specs`, in number, name and shape, and can be read. Others that `is_extra` may be
    /// there too.
    ///
    /// # Errors
    /// [`PretrainedError::Tensors`], with the names of all that differ.
    pub fn check(&self, specs: &[ParamSpec], is_extra: impl Fn(&str) -> bool) -> Result<()> {
        let differences = self.differences(specs, is_extra);
        if differences == Differences::default() {
            return Ok(());
        }
        Err(PretrainedError::Tensors {
            folder: self.folder.location().to_owned(),
            differences,
        })
    }

    /// What is not as in `specs`.
    pub fn differences(&self, specs: &[ParamSpec], is_extra: impl Fn(&str) -> bool) -> Differences {
        let mut differences = Differences::default();
        for spec in specs {
            let name = &spec.name;
            let Some(place) = self.places.get(name) else {
                differences.missing.push(name.clone());
                continue;
            };
            let (found, wanted) = (&place.shape, &spec.shape);
            if found != wanted {
                let shapes = format!("{name} {found:?} instead of {wanted:?}");
                differences.shapes.push(shapes);
            }
            if !READABLE.contains(&place.dtype) {
                differences.types.push(format!("{name} {:?}", place.dtype));
            }
        }
        let wanted: BTreeSet<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
        let others = self.places.keys();
        let others = others.filter(|name| !wanted.contains(name.as_str()) && !is_extra(name));
        differences.unexpected.extend(others.cloned());
        differences
    }

    /// Where a tensor lies.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn place(&self, name: &str) -> Result<&Place> {
        self.places.get(name).ok_or_else(|| {
            let why = format!("it has no tensor '{name}'");
            self.folder.refuse(SINGLE, why)
        })
    }

    /// What messages call the file of a tensor.
    #[must_use]
    pub fn file_of(&self, place: &Place) -> String {
        self.folder.name_of(&place.file)
    }

    /// Where one of the files is on this machine; a remote one is fetched, where such are kept.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn on_this_machine(&self, file: &str) -> Result<Option<PathBuf>> {
        self.folder.on_this_machine(file).await
    }

    /// Fills `into`, which is as long, with the bytes of a tensor, little endian, as they lie in its
    /// file. Blocks where that is on this machine.
    ///
    /// # Errors
    /// When its file cannot be read.
    pub async fn read(&self, place: &Place, into: &mut [u8]) -> Result<()> {
        self.folder
            .fill_keeping(&place.file, place.range.start, into)
            .await
    }
}

/// What is not as it should be, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// Tensors that are not there.
    pub missing: Vec<String>,
    /// Tensors that nothing wants.
    pub unexpected: Vec<String>,
    /// Tensors of another shape, with both shapes.
    pub shapes: Vec<String>,
    /// Tensors of a type that cannot be read, with the type.
    pub types: Vec<String>,
}

impl fmt::Display for Differences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let groups = [
            ("missing", &self.missing),
            ("unexpected", &self.unexpected),
            ("of another shape", &self.shapes),
            ("of a type other than F32, F16 and BF16", &self.types),
        ];
        let groups = groups.into_iter().filter(|(_, names)| !names.is_empty());
        for (number, (word, names)) in groups.enumerate() {
            let separator = if number > 0 { "; " } else { "" };
            let listed = names[..names.len().min(LISTED)].join(", ");
            write!(f, "{separator}{} {word}: {listed}", names.len())?;
            if names.len() > LISTED {
                write!(f, " and {} more", names.len() - LISTED)?;
            }
        }
        Ok(())
    }
}

fn index(folder: &Folder, json: &[u8]) -> Result<BTreeMap<String, String>> {
    let read: serde_json::Result<Index> = serde_json::from_slice(json);
    let index = read.map_err(|error| folder.refuse(INDEX, error.to_string()))?;
    let is_plain = |file: &str| file.ends_with(".safetensors") && !file.contains(['/', '\\']);
    if let Some(file) = index.weight_map.values().find(|file| !is_plain(file)) {
        let why = format!("it names '{file}', which is no safetensors file beside it");
        return Err(folder.refuse(INDEX, why));
    }
    Ok(index.weight_map)
}

/// The tensors of one file.
async fn header(folder: &Folder, file: String) -> Result<(String, Vec<(String, Place)>)> {
    let Some(bytes) = folder.size(&file).await? else {
        return Err(absent(folder, &file).await?);
    };
    let refuse = |why: String| folder.refuse(&file, why);
    if bytes < LENGTH {
        return Err(refuse(format!(
            "it has {bytes} bytes, and a header needs {LENGTH}"
        )));
    }
    let mut length = [0; LENGTH as usize];
    folder.fill(&file, 0, &mut length).await?;
    let length = u64::from_le_bytes(length);
    if length > MOST_HEADER || LENGTH + length > bytes {
        return Err(refuse(format!(
            "its header says that it has {length} bytes, of {bytes} in the file and at most {MOST_HEADER}"
        )));
    }
    let data_at = LENGTH + length;
    let mut json = vec![0; length as usize];
    folder.fill(&file, LENGTH, &mut json).await?;
    let mut tensors =
        infos(&json).map_err(|why| refuse(format!("its header is damaged: {why}")))?;
    tensors.sort_by(|(a, one), (b, other)| (one.data_offsets, a).cmp(&(other.data_offsets, b)));
    let mut at = 0;
    let mut places = Vec::with_capacity(tensors.len());
    for (name, info) in tensors {
        let size = size_of(&info);
        let (begin, end) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
        if begin != at || size.is_none_or(|size| begin.checked_add(size) != Some(end)) {
            return Err(refuse(format!(
                "tensor '{name}', {:?} of {:?}, lies at bytes {begin} to {end}, where {at} was due",
                info.shape, info.dtype
            )));
        }
        at = end;
        let place = Place {
            file: file.clone(),
            dtype: info.dtype,
            shape: info.shape.clone(),
            range: data_at.saturating_add(begin)..data_at.saturating_add(end),
        };
        places.push((name, place));
    }
    if data_at.checked_add(at) != Some(bytes) {
        return Err(refuse(format!(
            "its tensors have {at} bytes behind a header of {data_at}, and the file {bytes}"
        )));
    }
    Ok((file, places))
}

/// What a header says of each tensor.
fn infos(json: &[u8]) -> serde_json::Result<Vec<(String, TensorInfo)>> {
    let mut entries: BTreeMap<String, serde_json::Value> = serde_json::from_slice(json)?;
    // Words about the file.
    entries.remove("__metadata__");
    let info = |(name, entry)| Ok((name, serde_json::from_value(entry)?));
    entries.into_iter().map(info).collect()
}

/// Bytes of a tensor, where that is a number.
fn size_of(info: &TensorInfo) -> Option<u64> {
    let mut elements = info.shape.iter().map(|size| *size as u64);
    let elements = elements.try_fold(1_u64, u64::checked_mul)?;
    let bits = elements.checked_mul(info.dtype.bitsize() as u64)?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

/// Why a file that should be there is not.
async fn absent(folder: &Folder, file: &str) -> Result<PretrainedError> {
    let pickles: &[&str] = match file {
        adapter::TENSORS => &[adapter::PICKLE],
        _ => &PICKLES,
    };
    for pickle in pickles {
        if folder.size(pickle).await?.is_some() {
            return Ok(PretrainedError::Pickle {
                file: folder.name_of(pickle),
                folder: folder.location().to_owned(),
            });
        }
    }
    Ok(PretrainedError::Missing {
        file: folder.name_of(file),
    })
}

#[cfg(test)]
mod tests;
