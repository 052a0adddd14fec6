//! Corpora on object storage: import, inspection, the plan, the loader; and the files of pretrained models,
//! checkpoints and memories. No tensor library.
//!
//! | module | what |
//! |---|---|
//! | [`store`] | object stores by path or URL |
//! | [`manifest`] | what a corpus holds, with digests |
//! | [`row`] | a sample, and text templates filled from it |
//! | [`picture`] | decoding under limits, scaling to a square |
//! | [`shard`] | parquet: schema, rows to batches and back |
//! | [`import`](mod@import) | WebDataset tars and JSON lines to a corpus |
//! | [`reader`] | opening a corpus, reading row groups |
//! | [`loader`] | microbatches of the plan, read and decoded ahead of time |
//! | [`inspect`](mod@inspect), [`verify`](mod@verify) | a look at a corpus, and the proof that it is whole |
//! | [`error`] | what can go wrong, and what a user is told |
//! | [`plan`] | which rows a lane gets at a step, as a pure function |
//! | [`pretrained`] | models as Hugging Face ships them: configuration and tensors |
//! | [`checkpoint`] | the files of a run's checkpoints: manifest and parts |
//! | [`memory`](mod@memory) | visual memories as artefacts that runs share |
//! | [`task`] | what models are measured on: task files and their data |

pub mod checkpoint;
pub mod error;
pub mod import;
pub mod inspect;
pub mod loader;
pub mod manifest;
pub mod memory;
pub mod picture;
pub mod plan;
pub mod pretrained;
pub mod reader;
pub mod row;
pub mod shard;
pub mod store;
pub mod task;
pub mod verify;
