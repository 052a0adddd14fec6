//! Checkpoints under fire: stores that fail, hang and are cut, and processes that are killed at any
//! moment of saving. A real coordinator commits, the real saver saves.

#[path = "saving/kills.rs"]
mod kills;
#[path = "saving/trouble.rs"]
mod trouble;
#[path = "saving/workshop.rs"]
mod workshop;
