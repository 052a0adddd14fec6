//! Tensors as safetensors in files of bounded size, with the index that Hugging Face has beside them.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs;
use std::ops::Range;
use std::path::Path;

use mks2_proto::export::Dtype;
use mks2_proto::failure::Failure;
use safetensors::{SafeTensorError, View};
use serde_json::{Map, Value, json};
use tch::{Kind, Tensor};

use super::{put_json, unwritten};

/// How many bytes were written, and in how many files.
pub(super) struct Sizes {
    pub(super) bytes: u64,
    pub(super) files: u64,
}

/// Writes tensors as `model.safetensors`, or as several files with an index where they have more than
/// `most` bytes together.
pub(super) fn write(
    tensors: &[(String, Tensor)],
    (dtype, most): (Dtype, u64),
    folder: &Path,
) -> Result<Sizes, Failure> {
    let sizes = tensors
        .iter()
        .map(|(_, tensor)| tensor.numel() as u64 * dtype.bytes());
    let sizes: Vec<u64> = sizes.collect();
    let bytes = sizes.iter().sum();
    let shards = deal(&sizes, most);
    let count = shards.len();
    let mut places = Map::new();
    for (number, shard) in (1..).zip(shards) {
        let name = match count {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{number:05}-of-{count:05}.safetensors"),
        };
        file(&tensors[shard.clone()], dtype, &folder.join(&name))?;
        let named = tensors[shard].iter().map(|(tensor, _)| tensor.clone());
        places.extend(named.map(|tensor| (tensor, Value::from(name.as_str()))));
    }
    if count > 1 {
        let index = json!({"metadata": {"total_size": bytes}, "weight_map": places});
        put_json(folder, "model.safetensors.index.json", &index)?;
    }
    Ok(Sizes {
        bytes,
        files: count as u64,
    })
}

/// Writes one file, tensor by tensor.
pub(super) fn file(tensors: &[(String, Tensor)], dtype: Dtype, path: &Path) -> Result<(), Failure> {
    let failed = |error| unwritten(path, error);
    // What is written is its owner's alone, unlike other files.
    let usual = fs::File::create(path).and_then(|file| file.metadata());
    let usual = usual.map_err(failed)?.permissions();
    let views = tensors.iter();
    let views = views.map(|(name, tensor)| (name, Stored::new(tensor, dtype)));
    // Transformers does not read a file that does not say it.
    let about = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(views, Some(about), path).map_err(|error| match error {
        SafeTensorError::IoError(error) => failed(error),
        other => {
            let what = format!("{} cannot be written", path.display());
            Failure::internal(what, other.to_string())
        }
    })?;
    fs::set_permissions(path, usual).map_err(failed)
}

/// Deals sizes to shards in their order: a new one where the sum would pass `most`. A larger one is a
/// shard of its own.
fn deal(sizes: &[u64], most: u64) -> Vec<Range<usize>> {
    let mut shards = Vec::new();
    let (mut begin, mut sum) = (0, 0);
    for (at, size) in sizes.iter().enumerate() {
        if at > begin && sum + size > most {
            shards.push(begin..at);
            (begin, sum) = (at, 0);
        }
        sum += size;
    }
    shards.push(begin..sizes.len());
    shards
}

/// A tensor that becomes bytes when it is written.
struct Stored<'a> {
    tensor: &'a Tensor,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl<'a> Stored<'a> {
    fn new(tensor: &'a Tensor, dtype: Dtype) -> Self {
        let shape = tensor.size().iter().map(|size| *size as usize).collect();
        Self {
            tensor,
            dtype,
            shape,
        }
    }
}

impl View for Stored<'_> {
    fn dtype(&self) -> safetensors::Dtype {
        match self.dtype {
            Dtype::Fp32 => safetensors::Dtype::F32,
            Dtype::Bf16 => safetensors::Dtype::BF16,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let kind = match self.dtype {
            Dtype::Fp32 => Kind::Float,
            Dtype::Bf16 => Kind::BFloat16,
        };
        let mut bytes = vec![0; self.data_len()];
        let tensor = self.tensor.to_kind(kind).contiguous();
        tensor.copy_data_u8(&mut bytes, tensor.numel());
        bytes.into()
    }

    fn data_len(&self) -> usize {
        self.tensor.numel() * self.dtype.bytes() as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_as_large_as_they_may_be() {
        assert_eq!(deal(&[3, 3, 4], 10).len(), 1);
        assert_eq!(deal(&[3, 3, 4], 9), [0..2, 2..3]);
        assert_eq!(deal(&[30, 3, 4], 9), [0..1, 1..3]);
        assert_eq!(deal(&[3, 30, 4], 9), [0..1, 1..2, 2..3]);
        assert_eq!(deal(&[3, 3], 0), [0..1, 1..2]);
    }

    #[test]
    fn what_is_read_is_what_was_written_or_its_nearest() {
        let folder = tempfile::tempdir().expect("a folder");
        let values = [1.0_f32, -2.5, 0.1, 3.0e38, 0.0, 1.0e-20];
        let turned = Tensor::from_slice(&values).view([3, 2]).transpose(0, 1);
        let tensors = [("a".to_owned(), turned)];
        for (dtype, near) in [(Dtype::Fp32, 0.0), (Dtype::Bf16, 0.004)] {
            write(&tensors, (dtype, 1 << 20), folder.path()).expect("written");
            let path = folder.path().join("model.safetensors");
            let read = Tensor::read_safetensors(path).expect("read").remove(0).1;
            assert_eq!(read.size(), [2, 3]);
            let read = Vec::<f32>::try_from(read.to_kind(Kind::Float).view([-1])).expect("read");
            for (read, wanted) in read.iter().zip([1.0, 0.1, 0.0, -2.5, 3.0e38, 1.0e-20]) {
                assert!(
                    (read - wanted).abs() <= near * wanted.abs(),
                    "{read} {wanted}"
                );
            }
        }
    }
}
