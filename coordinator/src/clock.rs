//! Time as the coordinator sees it: the system's, or in a simulation a virtual one.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

#[cfg(test)]
use crate::simulator::executor as virtual_time;

/// The present moment of a clock that only goes forward.
pub(crate) fn now() -> Instant {
    #[cfg(test)]
    if let Some(now) = virtual_time::instant() {
        return now;
    }
    Instant::now()
}

/// How long ago that was.
pub(crate) fn since(moment: Instant) -> Duration {
    now().saturating_duration_since(moment)
}

/// Milliseconds since 1970, for people; nothing is decided by it.
pub(crate) fn wall_ms() -> u64 {
    #[cfg(test)]
    if let Some(wall) = virtual_time::wall_ms() {
        return wall;
    }
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Lets time pass.
pub(crate) async fn sleep(time: Duration) {
    #[cfg(test)]
    if virtual_time::instant().is_some() {
        return virtual_time::sleep(time).await;
    }
    tokio::time::sleep(time).await;
}

/// A beat at once and then in intervals. After a late one the next comes a whole interval later:
/// what was missed is not made up for.
#[derive(Debug)]
pub(crate) struct Pulse {
    interval: Duration,
    last: Option<Instant>,
}

impl Pulse {
    pub(crate) fn new(interval: Duration) -> Self {
        let last = None;
        Self { interval, last }
    }

    /// Waits for the next beat. Cancel safe.
    pub(crate) async fn beat(&mut self) {
        if let Some(last) = self.last {
            let rest = self.interval.saturating_sub(since(last));
            if !rest.is_zero() {
                sleep(rest).await;
            }
        }
        self.last = Some(now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pulse_beats_at_once_and_does_not_make_up_for_what_it_missed() {
        let interval = Duration::from_millis(20);
        let (began, mut pulse) = (Instant::now(), Pulse::new(interval));
        pulse.beat().await;
        std::thread::sleep(3 * interval);
        pulse.beat().await;
        let late = Instant::now();
        pulse.beat().await;
        assert!(late.elapsed() >= interval / 2, "{:?}", late.elapsed());
        assert!(began.elapsed() >= 4 * interval);
    }
}
