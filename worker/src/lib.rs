//! The data plane of mks2: model, collectives, training loop, checkpoints, on libtorch.
//!
//! ```text
//! app ─► session (control plane)          who takes part, where to start, what is committed
//!  ├──► team     the workers of a generation, and of the next when one is lost ─► collectives
//!  └──► run      the job graph: stage after stage
//!        ├─ train      one step: load, gather, compute, reduce, vote, update
//!        │   ├─ objective    what a stage trains for; uses text, pixels, model
//!        │   ├─ exact        the exact sum over lanes        ─► collectives
//!        │   └─ flat, optim  buffers, AdamW, clipping        ─► dispatch
//!        ├─ audit      whether the members' copies of the state are alike
//!        ├─ saver      checkpoints behind the trainer's back ─► checkpoint
//!        ├─ lineage    what finished stages have left
//!        ├─ pretrained models that were published elsewhere
//!        ├─ vocabulary the tokenizer that a stage trains
//!        └─ evaluate   retrieval, captions, questions, probes, tasks
//!
//! generate          answers of a model that is trained  ─► trained, model, text, pixels
//! evaluate::program tasks alone, for a user        ─► generate
//! export            the same model as a folder that other programs read ─► trained
//! bench, gpu_check ─► rehearsal   one stage alone in this process ─► train
//! ```

pub mod app;
mod attached;
pub mod audit;
pub mod bench;
pub mod checkpoint;
pub mod collectives;
pub mod control;
pub mod cuda;
pub mod device;
pub mod dispatch;
pub mod evaluate;
pub mod exact;
mod exchange;
pub mod export;
mod eyes;
pub mod flat;
pub mod generate;
mod generator;
pub mod gpu_check;
pub mod lineage;
pub mod model;
pub mod objective;
mod openmp;
pub mod optim;
mod pixels;
mod pretrained;
mod rehearsal;
pub mod replica;
pub mod run;
pub mod saver;
pub mod session;
mod sources;
pub mod team;
pub mod text;
pub mod train;
mod trained;
mod vocabulary;
mod whiten;
