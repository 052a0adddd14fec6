//! Corpora as a user makes and meets them: real tars, real JSON lines, real damage.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "corpus/again.rs"]
mod again;
#[path = "corpus/bad.rs"]
mod bad;
#[path = "corpus/damage.rs"]
mod damage;
#[path = "corpus/lines.rs"]
mod lines;
#[path = "corpus/support.rs"]
mod support;
#[path = "corpus/tars.rs"]
mod tars;
