//! A snapshot cut into safetensors files of bounded size.

use std::borrow::Cow;

use bytes::Bytes;
use safetensors::{Dtype, SafeTensors, View};

use super::manifest::{Kind, Part, TensorEntry};
use super::snapshot::Snapshot;
use super::table::le_bytes;
use super::{CheckpointError, Result, part_path};

/// A part before it is written: which tensors of the snapshot belong to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PartPlan {
    name: String,
    kind: Kind,
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

/// Deals the snapshot's tensors to parts: by kind, in name order, a new part where the size would
/// pass `part_bytes`. A larger tensor is a part of its own.
pub(super) fn plan(snapshot: &Snapshot, part_bytes: usize) -> Vec<PartPlan> {
    let mut parts = Vec::new();
    for (buffer, (kind, _)) in snapshot.buffers().iter().enumerate() {
        let slots = snapshot.table().slots().iter().enumerate();
        let sized = slots.map(|(slot, entry)| (Source::Flat(buffer, slot), entry.elements() * 4));
        deal(&mut parts, *kind, sized, part_bytes);
    }
    for kind in Kind::ALL {
        let extras = snapshot
            .extras()
            .iter()
            .enumerate()
            .filter(|(_, extra)| extra.kind == kind);
        let sized = extras.map(|(index, extra)| (Source::Extra(index), extra.bytes.len()));
        deal(&mut parts, kind, sized, part_bytes);
    }
    parts.sort_by_key(|part| part.kind);
    parts
}

fn deal(
    parts: &mut Vec<PartPlan>,
    kind: Kind,
    tensors: impl Iterator<Item = (Source, usize)>,
    part_bytes: usize,
) {
    let mut number = parts.iter().filter(|part| part.kind == kind).count();
    let (mut open, mut size) = (Vec::new(), 0);
    let mut close = |tensors: Vec<Source>| {
        let name = format!("{}-{number:05}", kind.as_str());
        number += 1;
        parts.push(PartPlan {
            name,
            kind,
            tensors,
        });
    };
    for (source, bytes) in tensors {
        if !open.is_empty() && size + bytes > part_bytes {
            close(std::mem::take(&mut open));
            size = 0;
        }
        open.push(source);
        size += bytes;
    }
    if !open.is_empty() {
        close(open);
    }
}

/// Writes a part into memory and describes it, as a generation stores it.
pub(super) fn encode(
    snapshot: &Snapshot,
    plan: &PartPlan,
    generation: u64,
) -> Result<(Part, Bytes)> {
    let views = plan.tensors.iter().map(|source| view(snapshot, *source));
    let file = safetensors::serialize(views, None).map_err(|error| unwritable(plan, &error))?;
    let (header, metadata) =
        SafeTensors::read_metadata(&file).map_err(|error| unwritable(plan, &error))?;
    let data_at = header + 8;
    let mut tensors: Vec<TensorEntry> = metadata
        .tensors()
        .into_iter()
        .map(|(name, info)| {
            let (begin, end) = (data_at + info.data_offsets.0, data_at + info.data_offsets.1);
            TensorEntry {
                name,
                dtype: format!("{:?}", info.dtype),
                shape: info.shape.clone(),
                offset: begin as u64,
                bytes: (end - begin) as u64,
                digest: blake3::hash(&file[begin..end]).to_hex().to_string(),
            }
        })
        .collect();
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let digest = blake3::hash(&file).to_hex().to_string();
    let part = Part {
        name: plan.name.clone(),
        kind: plan.kind,
        path: part_path(generation, &digest),
        digest,
        bytes: file.len() as u64,
        tensors,
    };
    Ok((part, file.into()))
}

fn unwritable(plan: &PartPlan, error: &safetensors::SafeTensorError) -> CheckpointError {
    CheckpointError::Internal(format!("part {} cannot be written: {error}", plan.name))
}

fn view(snapshot: &Snapshot, source: Source) -> (&str, TensorBytes<'_>) {
    match source {
        Source::Flat(buffer, slot) => {
            let slot = &snapshot.table().slots()[slot];
            let values = &snapshot.buffers()[buffer].1[slot.range()];
            let shape = Cow::Borrowed(&slot.shape[..]);
            (
                &slot.name,
                TensorBytes {
                    dtype: Dtype::F32,
                    shape,
                    data: Data::Floats(values),
                },
            )
        }
        Source::Extra(index) => {
            let extra = &snapshot.extras()[index];
            let shape = Cow::Owned(vec![extra.elements]);
            (
                &extra.name,
                TensorBytes {
                    dtype: extra.dtype,
                    shape,
                    data: Data::Bytes(&extra.bytes),
                },
            )
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

impl View for TensorBytes<'_> {
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
