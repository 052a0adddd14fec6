//! Files of weights as tensors, without a copy.

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt, TryStreamExt};
use mks2_dataset::pretrained::base::Part;
use mks2_dataset::pretrained::tensors::Place;
use mks2_proto::failure::Failure;
use tch::{Device, Kind, Tensor};
use tokio::runtime::Handle;

/// Files that are fetched at the same time.
const AT_ONCE: usize = 4;

/// The files of a model that are on this machine, each mapped into memory: their bytes, `[n]`.
///
/// What is mapped is read when it is first looked at, and shares its memory with every process that reads the same
/// file. Nothing that is done to it reaches the file.
#[derive(Debug, Default)]
pub(super) struct Files {
    maps: BTreeMap<String, Tensor>,
}

impl Files {
    /// Those of a model. A file that is not here is fetched first, where such are kept; one that cannot be mapped is
    /// left out, for its tensors to be read as others are.
    ///
    /// # Errors
    /// When one cannot be fetched.
    pub(super) fn map(part: &Part, runtime: &Handle) -> Result<Self, Failure> {
        let mut files = BTreeSet::new();
        for spec in &part.specs {
            files.insert(part.tensors.place(&spec.name)?.file.as_str());
        }
        let here = files.into_iter().map(|file| async move {
            let path = part.tensors.on_this_machine(file).await?;
            Ok::<_, Failure>((file, path))
        });
        let here = futures::stream::iter(here).buffer_unordered(AT_ONCE);
        let here: Vec<_> = runtime.block_on(here.try_collect())?;
        let maps = here.into_iter().filter_map(|(file, path)| {
            let path = path?;
            let bytes = std::fs::metadata(&path).ok()?.len() as i64;
            let (shared, options) = (false, (Kind::Uint8, Device::Cpu));
            let map = Tensor::f_from_file(path.to_str()?, shared, bytes, options).ok()?;
            Some((file.to_owned(), map))
        });
        let maps = maps.collect();
        Ok(Self { maps })
    }

    /// The bytes of these tensors as one, if they lie one behind the other in a mapped file.
    pub(super) fn together<'a>(
        &self,
        mut places: impl Iterator<Item = &'a Place>,
    ) -> Option<Tensor> {
        let first = places.next()?;
        let map = self.maps.get(&first.file)?;
        let mut range = first.range.clone();
        for place in places {
            if place.file != first.file || place.range.start != range.end {
                return None;
            }
            range.end = place.range.end;
        }
        let (start, bytes) = (range.start as i64, (range.end - range.start) as i64);
        // Refused where the file has been cut since its header was read.
        map.f_narrow(0, start, bytes).ok()
    }
}
