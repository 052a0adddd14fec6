//! The files of a checkpoint in a run directory: a manifest, and safetensors that it names with their
//! digests. The worker makes them; whoever wants what was trained reads them, without a tensor library.

mod error;
mod manifest;
mod read;

pub use error::CheckpointError;
pub use manifest::{Facts, Group, Kind, Manifest, Part, TensorEntry, VERSION, digest};
pub use read::{LoadedTensor, computed, read_manifest, read_part};

/// Result of everything in this module.
pub type Result<T, E = CheckpointError> = std::result::Result<T, E>;
