//! The tensors of a published model, from their files into the memory that the model computes from.
//!
//! ```text
//! for a run     file ── bytes ──► its own memory, or a buffer and then converted, where the type or device is another
//! to be asked   the file itself, mapped; as above where that cannot be
//! ```
//!
//! A run has its own memory, since what it goes on from must not change with a file for as long as it takes, and a
//! digest of it. Who only asks wants an answer soon.
//!
//! Matrices that read the same input lie one behind the other in memory that is a run's own, `q k v` and `gate up`, so
//! that the model takes them as one ([`Weights::fused`]) and nothing is there twice; in a file they stay as they lie.
//! Several threads read; each has the memory of the tensor that it reads to itself.

use std::collections::BTreeMap;
use std::sync::Mutex;

use mks2_dataset::pretrained::base::Part;
use mks2_dataset::pretrained::tensors::Place;
use mks2_proto::failure::Failure;
use mks2_proto::job::Precision;
use mks2_proto::params::follows_precision;
use safetensors::Dtype;
use tch::{Device, Kind, Tensor};
use tokio::runtime::Handle;
use tracing::warn;

use super::files::Files;
use crate::flat::bytes_mut;
use crate::model::{Weights, group_of, kind_of};

/// Tensors that are read at the same time.
const READERS: usize = 4;

/// The weights of a model in this precision on this device, to be asked. They may be the files themselves,
/// which nobody should change meanwhile.
///
/// # Errors
/// When a file cannot be read, or a tensor is of another type or has a value that is no number.
pub(crate) fn weights(
    part: &Part,
    (precision, device): (Precision, Device),
    runtime: &Handle,
) -> Result<Weights, Failure> {
    let files = match device {
        Device::Cpu => Files::map(part, runtime)?,
        _ => Files::default(),
    };
    let jobs = laid_out(part, &files, (precision, device))?;
    let weights = named(&jobs);
    read_all(jobs, |job| job.read(part, runtime, |_| ()))?;
    Ok(weights.in_files())
}

/// The same for a run, in its own memory, and a digest of the files ([`digest`]).
///
/// # Errors
/// As [`weights`].
pub(crate) fn weights_with_digest(
    part: &Part,
    (precision, device): (Precision, Device),
    runtime: &Handle,
) -> Result<(Weights, blake3::Hash), Failure> {
    let jobs = laid_out(part, &Files::default(), (precision, device))?;
    let weights = named(&jobs);
    let digests = read_all(jobs, |job| {
        let (name, place) = (job.name, job.place);
        Ok(Hashed {
            name,
            dtype: place.dtype,
            shape: &place.shape,
            bytes: job.read(part, runtime, blake3::hash)?,
        })
    })?;
    Ok((weights, digest(digests)))
}

/// A tensor for [`digest`].
pub(crate) struct Hashed<'a> {
    pub(crate) name: &'a str,
    pub(crate) dtype: Dtype,
    pub(crate) shape: &'a [usize],
    /// Digest of its bytes.
    pub(crate) bytes: blake3::Hash,
}

/// Digest of a model's tensors: blake3 over the name, type and shape of each and the digest of its bytes, in the
/// order of names.
pub(crate) fn digest(mut tensors: Vec<Hashed<'_>>) -> blake3::Hash {
    tensors.sort_unstable_by_key(|tensor| tensor.name);
    let mut hasher = blake3::Hasher::new();
    for tensor in &tensors {
        let about = format!("{} {:?} {:?}\n", tensor.name, tensor.dtype, tensor.shape);
        hasher
            .update(about.as_bytes())
            .update(tensor.bytes.as_bytes());
    }
    hasher.finalize()
}

/// The tensors of all jobs, by name.
fn named(jobs: &[Job]) -> Weights {
    let mut weights = Weights::new();
    for job in jobs {
        weights.insert_frozen(job.name, &job.into);
    }
    weights
}

/// Gives the jobs to the readers one by one.
fn read_all<'a, T: Send>(
    jobs: Vec<Job<'a>>,
    read: impl Fn(Job<'a>) -> Result<T, Failure> + Sync,
) -> Result<Vec<T>, Failure> {
    let waiting = Mutex::new(jobs.into_iter());
    let next = || waiting.lock().ok().and_then(|mut jobs| jobs.next());
    let read_some = || {
        let mut found = Vec::new();
        while let Some(job) = next() {
            let one = read(job);
            if one.is_err() {
                // Nobody wants the others any more.
                while next().is_some() {}
            }
            found.push(one?);
        }
        Ok::<_, Failure>(found)
    };
    let found = std::thread::scope(|scope| {
        let readers = [(); READERS].map(|()| scope.spawn(read_some));
        let ended = readers.map(|reader| {
            let panicked = |_| Err(Failure::internal("a weight was not read", "it panicked"));
            reader.join().unwrap_or_else(panicked)
        });
        ended.into_iter().collect::<Result<Vec<_>, Failure>>()
    });
    Ok(found?.into_iter().flatten().collect())
}

/// A tensor that is to be read.
struct Job<'a> {
    name: &'a str,
    place: &'a Place,
    /// The kind of its file.
    kind: Kind,
    into: Tensor,
    /// It is the file itself.
    is_mapped: bool,
}

impl Job<'_> {
    /// Reads it; gives what is made of its bytes.
    fn read<T>(
        self,
        part: &Part,
        runtime: &Handle,
        of_bytes: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, Failure> {
        let mut into = self.into;
        let is_as_it_lies = into.kind() == self.kind && into.device() == Device::Cpu;
        let mut buffer = match is_as_it_lies {
            true => into.shallow_clone(),
            false => Tensor::empty(into.size(), (self.kind, Device::Cpu)),
        };
        let bytes = bytes_mut(&mut buffer)?;
        if !self.is_mapped {
            runtime.block_on(part.tensors.read(self.place, bytes))?;
        }
        let found = of_bytes(bytes);
        if !has_numbers_only(&buffer) {
            return Err(Failure::checkpoint(
                "the pretrained model cannot be used",
                format!(
                    "tensor '{}' in {} has values that are infinite or no numbers",
                    self.name,
                    part.tensors.file_of(self.place)
                ),
                "get the file again from where it was published; what was fetched from another machine is kept in \
                 MKS2_MODEL_CACHE",
            ));
        }
        if !is_as_it_lies {
            into.copy_(&buffer);
        }
        Ok(found)
    }
}

/// A sum of numbers is one, unless it is too large; then each is looked at.
fn has_numbers_only(tensor: &Tensor) -> bool {
    let sum = tensor.sum(Kind::Float).double_value(&[]);
    sum.is_finite() || tensor.isfinite().all().int64_value(&[]) != 0
}

/// A tensor of a group.
struct Member<'a> {
    /// Its place there.
    rank: usize,
    name: &'a str,
    shape: Vec<i64>,
    place: &'a Place,
    kind_in_file: Kind,
}

impl Member<'_> {
    fn elements(&self) -> i64 {
        self.shape.iter().product()
    }
}

/// Memory for all tensors: in the files where these lie there as they are wanted, else new.
fn laid_out<'a>(
    part: &'a Part,
    files: &Files,
    (precision, device): (Precision, Device),
) -> Result<Vec<Job<'a>>, Failure> {
    if !part.left_out.is_empty() {
        let names = &part.left_out;
        warn!(?names, "tensors that the model does not know are left out");
    }
    let mut groups: BTreeMap<String, Vec<Member>> = BTreeMap::new();
    for spec in &part.specs {
        let (group, rank) = group_of(&spec.name);
        let place = part.tensors.place(&spec.name)?;
        groups.entry(group).or_default().push(Member {
            rank,
            name: &spec.name,
            shape: spec.shape.iter().map(|size| *size as i64).collect(),
            place,
            kind_in_file: kind_in_file(&spec.name, place, part)?,
        });
    }
    let mut jobs = Vec::with_capacity(part.specs.len());
    for mut members in groups.into_values() {
        members.sort_unstable_by_key(|member| (member.rank, member.name));
        let follows = |member: &Member| follows_precision(member.name, member.shape.len());
        let kind = match members.iter().all(follows) {
            true => kind_of(precision),
            false => Kind::Float,
        };
        let total = members.iter().map(Member::elements).sum();
        let found = mapped(files, &members, kind);
        let is_mapped = found.is_some();
        let places = match found {
            Some(places) => places,
            None => {
                let all = Tensor::f_empty([total], (kind, device));
                parts_of(&all.map_err(|error| too_large(total, error))?, &members)
            }
        };
        for (member, into) in members.into_iter().zip(places) {
            jobs.push(Job {
                name: member.name,
                place: member.place,
                kind: member.kind_in_file,
                into: into.view(member.shape.as_slice()),
                is_mapped,
            });
        }
    }
    // Large ones first, so that no reader is left alone with one at the end.
    jobs.sort_by_key(|job| std::cmp::Reverse(job.into.numel()));
    Ok(jobs)
}

/// The members of a group in their files, if all are there in this kind: together, or else each by itself.
fn mapped(files: &Files, members: &[Member], kind: Kind) -> Option<Vec<Tensor>> {
    if members.iter().any(|member| member.kind_in_file != kind) {
        return None;
    }
    let bytes = |members: &[Member]| files.together(members.iter().map(|member| member.place));
    let in_kind = |bytes: Tensor| bytes.f_view_dtype(kind).ok();
    if let Some(all) = bytes(members).and_then(in_kind) {
        return Some(parts_of(&all, members));
    }
    let each = members.chunks(1);
    each.map(|member| bytes(member).and_then(in_kind)).collect()
}

/// Places for the members of a group, one behind the other.
fn parts_of(all: &Tensor, members: &[Member]) -> Vec<Tensor> {
    let sizes: Vec<i64> = members.iter().map(Member::elements).collect();
    all.split_with_sizes(sizes, 0)
}

fn kind_in_file(name: &str, place: &Place, part: &Part) -> Result<Kind, Failure> {
    match place.dtype {
        Dtype::F32 => Ok(Kind::Float),
        Dtype::F16 => Ok(Kind::Half),
        Dtype::BF16 => Ok(Kind::BFloat16),
        other => Err(Failure::checkpoint(
            "the pretrained model cannot be used",
            format!(
                "tensor '{name}' in {} is of type {other:?}",
                part.tensors.file_of(place)
            ),
            "supported are F32, F16 and BF16: save the model in one of these",
        )),
    }
}

fn too_large(elements: i64, error: tch::TchError) -> Failure {
    Failure::environment(
        format!("there is no memory for {elements} weights"),
        error.to_string(),
        "use a machine or device with more memory, or precision = \"bf16\"",
    )
}
