//! The tensors of a published model, from their files into the memory that the model computes from.
//!
//! ```text
//! file ── bytes of a tensor ──► its place, or a buffer and then converted, where its type or device is another
//! ```
//!
//! Matrices that read the same input lie one behind the other, `q k v` and `gate up`, so that the model
//! takes them as one ([`Weights::fused`]) and nothing is there twice. Several threads read; each has the
//! memory of the tensor that it reads to itself.

use std::collections::BTreeMap;
use std::sync::Mutex;

use mks2_dataset::pretrained::base::Part;
use mks2_dataset::pretrained::tensors::Place;
use mks2_proto::failure::Failure;
use mks2_proto::job::Precision;
use safetensors::Dtype;
use tch::{Device, Kind, Tensor};
use tokio::runtime::Handle;

use crate::flat::bytes_mut;
use crate::model::{Weights, follows_precision, kind_of};

/// Tensors that are read at the same time.
const READERS: usize = 4;

/// What reads the same input, in the order in which it lies in memory.
const TOGETHER: [&[&str]; 2] = [&["q_proj", "k_proj", "v_proj"], &["gate_proj", "up_proj"]];

/// The weights of a model in this precision on this device, and a digest of its files: blake3 over the
/// name, type and shape of each tensor and the digest of its bytes, in the order of names.
///
/// # Errors
/// When a file cannot be read, or a tensor is of another type or has a value that is no number.
pub(crate) fn weights(
    part: &Part,
    (precision, device): (Precision, Device),
    runtime: &Handle,
) -> Result<(Weights, blake3::Hash), Failure> {
    let jobs = laid_out(part, precision, device)?;
    let mut weights = Weights::new();
    for job in &jobs {
        weights.insert_frozen(job.name, &job.into);
    }
    let waiting = Mutex::new(jobs.into_iter());
    let next = || waiting.lock().ok().and_then(|mut jobs| jobs.next());
    let read_all = || {
        let mut digests = Vec::new();
        while let Some(job) = next() {
            let name = job.name;
            let digest = job.read(part, runtime);
            if digest.is_err() {
                // Nobody wants the others any more.
                while next().is_some() {}
            }
            digests.push((name, digest?));
        }
        Ok::<_, Failure>(digests)
    };
    let read = std::thread::scope(|scope| {
        let readers = [(); READERS].map(|()| scope.spawn(read_all));
        let ended = readers.map(|reader| {
            let panicked = |_| Err(Failure::internal("a weight was not read", "it panicked"));
            reader.join().unwrap_or_else(panicked)
        });
        ended.into_iter().collect::<Result<Vec<_>, Failure>>()
    });
    let digests: BTreeMap<&str, blake3::Hash> = read?.into_iter().flatten().collect();
    let mut hasher = blake3::Hasher::new();
    for (name, digest) in &digests {
        let place = part.tensors.place(name)?;
        let about = format!("{name} {:?} {:?}\n", place.dtype, place.shape);
        hasher.update(about.as_bytes()).update(digest.as_bytes());
    }
    Ok((weights, hasher.finalize()))
}

/// A tensor that is to be read.
struct Job<'a> {
    name: &'a str,
    place: &'a Place,
    /// The kind of its file.
    kind: Kind,
    into: Tensor,
}

impl Job<'_> {
    /// Reads it; gives the digest of its bytes.
    fn read(self, part: &Part, runtime: &Handle) -> Result<blake3::Hash, Failure> {
        let Self {
            name,
            place,
            kind,
            mut into,
        } = self;
        let is_as_it_lies = into.kind() == kind && into.device() == Device::Cpu;
        let mut buffer = match is_as_it_lies {
            true => into.shallow_clone(),
            false => Tensor::empty(into.size(), (kind, Device::Cpu)),
        };
        let bytes = bytes_mut(&mut buffer)?;
        runtime.block_on(part.tensors.read(place, bytes))?;
        let digest = blake3::hash(bytes);
        if !has_numbers_only(&buffer) {
            return Err(Failure::checkpoint(
                "the pretrained model cannot be used",
                format!(
                    "tensor '{name}' in {} has values that are infinite or no numbers",
                    part.tensors.file_of(place)
                ),
                "get the file again from where it was published; what was fetched from another machine is kept in \
                 MKS2_MODEL_CACHE",
            ));
        }
        if !is_as_it_lies {
            into.copy_(&buffer);
        }
        Ok(digest)
    }
}

/// A sum of numbers is one, unless it is too large; then each is looked at.
fn has_numbers_only(tensor: &Tensor) -> bool {
    let sum = tensor.sum(Kind::Float).double_value(&[]);
    sum.is_finite() || tensor.isfinite().all().int64_value(&[]) != 0
}

/// A tensor of a group: its place there, its name and shape.
type Member<'a> = (usize, &'a str, Vec<i64>);

/// Memory for all tensors.
fn laid_out(part: &Part, precision: Precision, device: Device) -> Result<Vec<Job<'_>>, Failure> {
    let mut groups: BTreeMap<String, Vec<Member>> = BTreeMap::new();
    for spec in &part.specs {
        let (group, rank) = group_of(&spec.name);
        let shape = spec.shape.iter().map(|size| *size as i64).collect();
        let group = groups.entry(group).or_default();
        group.push((rank, &spec.name, shape));
    }
    let mut jobs = Vec::with_capacity(part.specs.len());
    for mut members in groups.into_values() {
        members.sort_unstable();
        let elements = |shape: &[i64]| shape.iter().product::<i64>();
        let total = members.iter().map(|(_, _, shape)| elements(shape)).sum();
        let follows = |(_, name, shape): &Member| follows_precision(name, shape.len());
        let kind = match members.iter().all(follows) {
            true => kind_of(precision),
            false => Kind::Float,
        };
        let all = Tensor::f_empty([total], (kind, device));
        let all = all.map_err(|error| too_large(total, error))?;
        let mut first = 0;
        for (_, name, shape) in members {
            let place = part.tensors.place(name)?;
            let into = all
                .narrow(0, first, elements(&shape))
                .view(shape.as_slice());
            first += elements(&shape);
            jobs.push(Job {
                name,
                place,
                kind: kind_in_file(name, place, part)?,
                into,
            });
        }
    }
    // Large ones first, so that no reader is left alone with one at the end.
    jobs.sort_by_key(|job| std::cmp::Reverse(job.into.numel()));
    Ok(jobs)
}

/// What a tensor lies together with, and at which place; alone under its own name.
fn group_of(name: &str) -> (String, usize) {
    for together in TOGETHER {
        for (rank, part) in together.iter().enumerate() {
            if name.contains(part) {
                return (name.replace(part, &together.concat()), rank);
            }
        }
    }
    (name.to_owned(), 0)
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
