//! Files of weights as tensors, without a copy.

use std::collections::BTreeMap;

use mks2_dataset::pretrained::base::Part;
use mks2_dataset::pretrained::tensors::Place;
use mks2_proto::failure::Failure;
use tch::{Device, Kind, Tensor};
use tokio::runtime::Handle;

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
        let mut maps = BTreeMap::new();
        for spec in &part.specs {
            let file = &part.tensors.place(&spec.name)?.file;
            if maps.contains_key(file) {
                continue;
            }
            let here = runtime.block_on(part.tensors.on_this_machine(file))?;
            let path = here.as_ref().and_then(|here| here.to_str());
            let size = here.as_ref().and_then(|here| std::fs::metadata(here).ok());
            let (Some(path), Some(size)) = (path, size) else {
                continue;
            };
            let (shared, bytes) = (false, size.len() as i64);
            let map = Tensor::f_from_file(path, shared, bytes, (Kind::Uint8, Device::Cpu));
            if let Ok(map) = map {
                maps.insert(file.clone(), map);
            }
        }
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
