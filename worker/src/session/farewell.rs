//! SIGTERM: the machine is wanted back. The worker asks to be let go at the next step boundary, of the next
//! coordinator if there is none, and is gone when the time that it was given is over, or when it is
//! asked again.

use std::sync::Arc;

use mks2_proto::env;
use mks2_proto::failure::TERMINATED;
use mks2_proto::retelling::Labelled;
use mks2_proto::v1::{Leaving, report::Kind};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::WeakSender;
use tracing::{info, warn};

use super::shared::Shared;

/// Listens for SIGTERM as long as the process lives.
pub(super) async fn listen(shared: Arc<Shared>, reports: WeakSender<Labelled>) {
    let mut asked = match signal(SignalKind::terminate()) {
        Ok(asked) => asked,
        Err(error) => return warn!(%error, "no handler for SIGTERM: it ends this worker at once"),
    };
    asked.recv().await;
    let has_come = shared.generation() > 0 || shared.client().is_some();
    let is_needed = has_come && shared.over().is_none();
    let Some(reports) = reports.upgrade().filter(|_| is_needed) else {
        // Nobody knows of it yet, or nothing is left to do.
        std::process::exit(TERMINATED);
    };
    info!("SIGTERM: leaving at the next step boundary");
    let reason = "SIGTERM".to_owned();
    let report = (shared.generation(), Kind::Leaving(Leaving { reason }));
    if reports.send(report).await.is_ok() {
        // The sender must not keep the session open.
        drop(reports);
        let _again = tokio::time::timeout(env::grace(), asked.recv()).await;
    }
    warn!("the time to leave is over");
    std::process::exit(TERMINATED);
}
