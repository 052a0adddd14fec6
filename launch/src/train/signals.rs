//! Requests to end: Ctrl-C, SIGTERM from a scheduler, SIGHUP from a closed terminal unless `nohup`
//! was asked to keep it away.

use mks2_proto::failure::Failure;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Listens for requests to end, from the moment it is made.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Option<Signal>,
}

impl Signals {
    /// Listens from now on.
    ///
    /// # Errors
    /// When the operating system refuses (exit 1).
    pub(crate) fn listen() -> Result<Self, Failure> {
        let open = |kind| {
            signal(kind).map_err(|error| {
                Failure::internal("signal handlers cannot be installed", error.to_string())
            })
        };
        Ok(Self {
            interrupt: open(SignalKind::interrupt())?,
            terminate: open(SignalKind::terminate())?,
            hangup: match ignores_hangups() {
                true => None,
                false => Some(open(SignalKind::hangup())?),
            },
        })
    }

    /// The next request, as words.
    pub(crate) async fn next(&mut self) -> &'static str {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => "Ctrl-C",
            _ = self.terminate.recv() => "SIGTERM",
            _ = hangup => "the terminal was closed",
        }
    }
}

/// Whether this process was started to live on when its terminal is closed. A handler of its own
/// would undo what `nohup` did.
fn ignores_hangups() -> bool {
    // proc(5): the mask of ignored signals in hex; SIGHUP is signal 1, its lowest bit.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut masks = status
        .lines()
        .filter_map(|line| line.strip_prefix("SigIgn:"));
    let mask = masks
        .next()
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    mask.is_some_and(|mask| mask & 1 == 1)
}
