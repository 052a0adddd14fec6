//! Reads that are slow, fail or never end, as a test says.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use object_store::Result;
use object_store::path::Path;

use crate::store::injected::{Act, Fault, failed};

/// What happens to reads of shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Reads {
    Pass,
    Slow,
    Fail,
    Stall,
}

/// Trouble that a test chooses, and changes.
#[derive(Debug)]
pub(super) struct Trouble(AtomicU8);

impl Trouble {
    pub(super) fn none() -> Self {
        Self(AtomicU8::new(Reads::Pass as u8))
    }

    pub(super) fn set(&self, reads: Reads) {
        self.0.store(reads as u8, Ordering::SeqCst);
    }
}

#[async_trait::async_trait]
impl Fault for Trouble {
    async fn meet(&self, act: Act, at: &Path) -> Result<()> {
        let now = self.0.load(Ordering::SeqCst);
        let is_shard = at.as_ref().ends_with(".parquet");
        if act != Act::Read || !is_shard || now == Reads::Pass as u8 {
            return Ok(());
        }
        if now == Reads::Stall as u8 {
            return std::future::pending().await;
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
        if now == Reads::Fail as u8 {
            return Err(failed("connection reset"));
        }
        Ok(())
    }
}
