//! A snapshot cut into safetensors files of bounded size.

use std::borrow::Cow;

use bytes::Bytes;
use safetensors::{Dtype, SafeTensors, View};

use super::snapshot::Snapshot;
use super::table::le_bytes;
use super::{CheckpointError, Group, Kind, Part, Result, TensorEntry, part_path};

/// A part before it is written: which tensors of the snapshot belong to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PartPlan {
    name: String,
    tensors: Vec<Source>,
}

/// Where a tensor's values are in the snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// Index of the flat buffer and of the table's slot.
    Flat(usize, usize),
    /// Index among the extra tensors.
    Extra(usize),
}

/// Deals the snapshot's tensors to parts: by group, kind and name, a new part where the size would
/// pass `part_bytes`. A larger tensor is a part of its own.
pub(super) fn plan(snapshot: &Snapshot, part_bytes: usize) -> Vec<PartPlan> {
    let groups = Group::ALL.into_iter();
    groups
        .flat_map(|group| deal(group, sized(snapshot, group), part_bytes))
        .collect()
}

/// The tensors of a group with their sizes.
fn sized(snapshot: &Snapshot, group: Group) -> impl Iterator<Item = (Source, usize)> {
    let buffers = snapshot.buffers().iter().enumerate();
    let buffers = buffers.filter(move |(_, (kind, _))| kind.group() == group);
    let flat = buffers.flat_map(|(buffer, _)| {
        let slots = snapshot.table().slots().iter().enumerate();
        slots.map(move |(slot, entry)| (Source::Flat(buffer, slot), entry.elements() * 4))
    });
    let extras = snapshot.extras().iter().enumerate();
    let extras = extras.filter(move |(_, extra)| extra.kind.group() == group);
    flat.chain(extras.map(|(index, extra)| (Source::Extra(index), extra.bytes.len())))
}

fn deal(
    group: Group,
    tensors: impl Iterator<Item = (Source, usize)>,
    part_bytes: usize,
) -> Vec<PartPlan> {
    let mut parts: Vec<PartPlan> = Vec::new();
    let mut size = 0;
    for (source, bytes) in tensors {
        match parts.last_mut().filter(|_| size + bytes <= part_bytes) {
            Some(open) => open.tensors.push(source),
            None => {
                size = 0;
                parts.push(PartPlan {
                    name: format!("{}-{:05}", group.as_str(), parts.len()),
                    tensors: vec![source],
                });
            }
        }
        size += bytes;
    }
    parts
}

/// Writes a part into memory and describes it, as a generation stores it.
pub(super) fn encode(
    snapshot: &Snapshot,
    plan: &PartPlan,
    generation: u64,
) -> Result<(Part, Bytes)> {
    let tensors: Vec<Tensor> = plan
        .tensors
        .iter()
        .map(|source| tensor(snapshot, *source))
        .collect();
    let views = tensors
        .iter()
        .map(|one| (one.kind.in_file(one.name), &one.values));
    let file = safetensors::serialize(views, None).map_err(|error| unwritable(plan, &error))?;
    let (header, metadata) =
        SafeTensors::read_metadata(&file).map_err(|error| unwritable(plan, &error))?;
    let data_at = header + 8;
    let mut entries = Vec::with_capacity(tensors.len());
    for Tensor { kind, name, values } in &tensors {
        let named = kind.in_file(name);
        let info = metadata.info(&named).ok_or_else(|| {
            CheckpointError::Internal(format!("part {} lacks {named}", plan.name))
        })?;
        let (begin, end) = (data_at + info.data_offsets.0, data_at + info.data_offsets.1);
        entries.push(TensorEntry {
            kind: *kind,
            name: (*name).to_owned(),
            dtype: format!("{:?}", values.dtype),
            shape: values.shape.to_vec(),
            offset: begin as u64,
            bytes: (end - begin) as u64,
            digest: blake3::hash(&file[begin..end]).to_hex().to_string(),
        });
    }
    entries.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
    let digest = blake3::hash(&file).to_hex().to_string();
    let part = Part {
        name: plan.name.clone(),
        path: part_path(generation, &digest),
        digest,
        bytes: file.len() as u64,
        tensors: entries,
    };
    Ok((part, file.into()))
}

fn unwritable(plan: &PartPlan, error: &safetensors::SafeTensorError) -> CheckpointError {
    CheckpointError::Internal(format!("part {} cannot be written: {error}", plan.name))
}

/// A tensor of a snapshot.
struct Tensor<'a> {
    kind: Kind,
    name: &'a str,
    values: TensorBytes<'a>,
}

fn tensor(snapshot: &Snapshot, source: Source) -> Tensor<'_> {
    match source {
        Source::Flat(buffer, slot) => {
            let slot = &snapshot.table().slots()[slot];
            let (kind, values) = &snapshot.buffers()[buffer];
            Tensor {
                kind: *kind,
                name: &slot.name,
                values: TensorBytes {
                    dtype: Dtype::F32,
                    shape: Cow::Borrowed(&slot.shape[..]),
                    data: Data::Floats(&values[slot.range()]),
                },
            }
        }
        Source::Extra(index) => {
            let extra = &snapshot.extras()[index];
            Tensor {
                kind: extra.kind,
                name: &extra.name,
                values: TensorBytes {
                    dtype: Dtype::U8,
                    shape: Cow::Owned(vec![extra.bytes.len()]),
                    data: Data::Bytes(&extra.bytes),
                },
            }
        }
    }
}

/// A tensor as safetensors wants to see it.
struct TensorBytes<'a> {
    dtype: Dtype,
    shape: Cow<'a, [usize]>,
    data: Data<'a>,
}

enum Data<'a> {
    Floats(&'a [f32]),
    Bytes(&'a [u8]),
}

impl View for &TensorBytes<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match self.data {
            Data::Floats(values) => le_bytes(values).into(),
            Data::Bytes(bytes) => bytes.into(),
        }
    }

    fn data_len(&self) -> usize {
        match self.data {
            Data::Floats(values) => values.len() * 4,
            Data::Bytes(bytes) => bytes.len(),
        }
    }
}
