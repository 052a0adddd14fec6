//! A store that dies after a number of operations that change something.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use object_store::path::Path;
use object_store::{ObjectStore, Result};

use injected::{Act, Fault, Injected, failed};

#[path = "../../../../dataset/src/store/injected.rs"]
mod injected;

/// Passes everything on until `operations` puts and deletes have happened; then every operation
/// fails.
pub(super) fn faulty(inner: Arc<dyn ObjectStore>, operations: i64) -> Arc<dyn ObjectStore> {
    let left = Arc::new(Left(AtomicI64::new(operations)));
    Arc::new(Injected::new(inner, left))
}

/// Changes that are left.
#[derive(Debug)]
struct Left(AtomicI64);

#[async_trait::async_trait]
impl Fault for Left {
    async fn meet(&self, act: Act, _at: &Path) -> Result<()> {
        let cost = i64::from(act == Act::Change);
        if self.0.fetch_sub(cost, Ordering::SeqCst) < cost {
            return Err(failed("the store is gone"));
        }
        Ok(())
    }
}
