//! How long a worker waits for its coordinator and for the machines of the others. The worker waits
//! so long, and the simulation of the control protocol.

use std::time::Duration;

/// How long the coordinator may be out of reach at the start.
pub const JOIN: Duration = Duration::from_secs(30);
/// How long one attempt may take: the next address may be the right one.
pub const ATTEMPT: Duration = Duration::from_secs(3);
/// The pause before the next attempt, which doubles each time.
pub const FIRST_RETRY: Duration = Duration::from_millis(50);
/// The longest of these pauses.
pub const LONGEST_RETRY: Duration = Duration::from_millis(500);
/// How long the coordinator has to end its side of the stream.
pub const LAST_WORDS: Duration = Duration::from_secs(4);
/// How long the end of a session waits for the coordinator to take the last report.
pub const GOODBYE: Duration = Duration::from_secs(5);
/// Pause before a commit is tried again for want of a coordinator.
pub const COMMIT_RETRY: Duration = Duration::from_millis(200);
/// How long a worker whose failure ends the run waits for the coordinator's account of it: another
/// one may have failed before.
pub const CAUSE: Duration = Duration::from_secs(4);
/// Longest time in which another worker's machine does not answer.
pub const PULSE: Duration = Duration::from_millis(700);
