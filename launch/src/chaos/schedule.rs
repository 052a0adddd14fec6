//! What goes wrong, and when: drawn from a seed before the run begins. Pure.
//!
//! A schedule does not know who will be alive: it draws a number, and the one who acts takes the
//! worker that the number falls on among those that are there.

use std::time::Duration;

use serde::Serialize;

use super::chance::Chance;

/// How often something goes wrong; zero: never.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Rhythm {
    /// Workers are killed.
    #[serde(serialize_with = "super::spans::seconds")]
    pub(super) kill: Duration,
    /// Workers are stopped for a while, by turns longer and shorter than the silence limit.
    #[serde(serialize_with = "super::spans::seconds")]
    pub(super) stop: Duration,
    /// Connections are cut, by turns a worker's to the coordinator and those to its peers.
    #[serde(serialize_with = "super::spans::seconds")]
    pub(super) cut: Duration,
    /// A worker is let go, and another one joins.
    #[serde(serialize_with = "super::spans::seconds")]
    pub(super) scale: Duration,
    /// The coordinator is killed, and started again.
    #[serde(serialize_with = "super::spans::seconds")]
    pub(super) coordinator: Duration,
    /// For so long.
    #[serde(serialize_with = "super::spans::seconds")]
    pub(super) length: Duration,
}

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Fault {
    /// `kill -9` of a worker.
    Kill,
    /// SIGSTOP of a worker, and SIGCONT after this time.
    Stop(#[serde(serialize_with = "super::spans::seconds")] Duration),
    /// The connections of a worker are cut for this time.
    Cut(
        Link,
        Cut,
        #[serde(serialize_with = "super::spans::seconds")] Duration,
    ),
    /// A worker is let go, and after this time another one joins.
    Scale(#[serde(serialize_with = "super::spans::seconds")] Duration),
    /// `kill -9` of the coordinator, and the next one after this time, at the same address or at
    /// another one.
    Coordinator {
        #[serde(serialize_with = "super::spans::seconds")]
        away: Duration,
        moves: bool,
    },
}

/// Which connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Link {
    /// From the worker to the coordinator.
    Coordinator,
    /// From its peers to the worker.
    Peers,
}

/// How connections are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Cut {
    /// Reset, and new ones are refused meanwhile.
    Reset,
    /// Nothing passes in either direction, and nobody is told.
    HalfOpen,
    /// Nothing passes in one direction.
    OneWay,
}

/// A fault with its time, counted from the beginning of the chaos.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Planned {
    #[serde(serialize_with = "super::spans::seconds")]
    pub(super) at: Duration,
    pub(super) fault: Fault,
    /// Falls on one of those that can be hit.
    pub(super) pick: u64,
}

/// How far a fault may be from the middle of its interval, as a share of the interval.
const SWAY: f64 = 0.3;
/// Shorter and longer than the limit of silence, which is 0.8 s.
const SHORT: [Duration; 2] = [Duration::from_millis(200), Duration::from_millis(600)];
const LONG: [Duration; 2] = [Duration::from_millis(1200), Duration::from_millis(3000)];
const CUT: [Duration; 2] = [Duration::from_millis(300), Duration::from_millis(2500)];
const AWAY: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(1500)];
/// A run is smaller for so long.
const SMALLER: [Duration; 2] = [Duration::from_secs(3), Duration::from_secs(8)];

/// Draws the fault of a number.
type Draw = fn(&mut Chance, u64) -> Fault;

/// Everything that goes wrong, in the order of time. The same seed and rhythm give the same.
pub(super) fn schedule(seed: u64, rhythm: &Rhythm) -> Vec<Planned> {
    let draws: [(&str, Duration, Draw); 5] = [
        ("kill", rhythm.kill, |_, _| Fault::Kill),
        ("stop", rhythm.stop, stop),
        ("cut", rhythm.cut, cut),
        ("scale", rhythm.scale, |chance, _| {
            Fault::Scale(chance.between(SMALLER[0], SMALLER[1]))
        }),
        ("coordinator", rhythm.coordinator, |chance, _| {
            Fault::Coordinator {
                away: chance.between(AWAY[0], AWAY[1]),
                moves: chance.one_of(&[true, false], true),
            }
        }),
    ];
    let mut all = Vec::new();
    for (purpose, every, draw) in draws {
        let mut chance = Chance::new(seed, purpose);
        for (number, middle) in (0..).zip(middles(every, rhythm.length)) {
            let sway = every.mul_f64(SWAY);
            let at = chance.between(middle.saturating_sub(sway), middle + sway);
            let fault = draw(&mut chance, number);
            let pick = chance.next();
            all.push(Planned { at, fault, pick });
        }
    }
    all.sort_by_key(|planned| planned.at);
    all
}

/// The middles of the whole intervals in a length.
fn middles(every: Duration, length: Duration) -> impl Iterator<Item = Duration> {
    let number = match every.is_zero() {
        true => 0,
        false => length.as_nanos() / every.as_nanos(),
    };
    let number = u32::try_from(number).unwrap_or(u32::MAX);
    (0..number).map(move |index| every * index + every / 2)
}

fn stop(chance: &mut Chance, number: u64) -> Fault {
    let [from, to] = match number % 2 {
        0 => LONG,
        _ => SHORT,
    };
    Fault::Stop(chance.between(from, to))
}

fn cut(chance: &mut Chance, number: u64) -> Fault {
    let link = match number % 2 {
        0 => Link::Coordinator,
        _ => Link::Peers,
    };
    let how = chance.one_of(&[Cut::Reset, Cut::HalfOpen, Cut::OneWay], Cut::Reset);
    Fault::Cut(link, how, chance.between(CUT[0], CUT[1]))
}

impl Fault {
    /// Its kind, as it is counted.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Stop(time) if *time >= LONG[0] => "stop",
            Self::Stop(_) => "pause",
            Self::Cut(Link::Coordinator, ..) => "cut from the coordinator",
            Self::Cut(Link::Peers, ..) => "cut from peers",
            Self::Scale(_) => "leave and join",
            Self::Coordinator { .. } => "coordinator killed",
        }
    }

    /// What happens, in words, to whom.
    pub(super) fn words(&self, whom: &str) -> String {
        let seconds = |time: &Duration| format!("{:.1} s", time.as_secs_f64());
        match self {
            Self::Kill => format!("kill -9 of {whom}"),
            Self::Stop(time) => format!("SIGSTOP of {whom} for {}", seconds(time)),
            Self::Cut(link, how, time) => {
                let how = match how {
                    Cut::Reset => "reset",
                    Cut::HalfOpen => "half-open",
                    Cut::OneWay => "half-open, one way",
                };
                let from = match link {
                    Link::Coordinator => "the coordinator",
                    Link::Peers => "its peers",
                };
                format!("{whom} cut from {from} ({how}) for {}", seconds(time))
            }
            Self::Scale(time) => format!("one worker fewer for {}", seconds(time)),
            Self::Coordinator { away, moves } => {
                let place = match moves {
                    true => "another address",
                    false => "the same address",
                };
                format!(
                    "kill -9 of the coordinator, the next one at {place} after {}",
                    seconds(away)
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rhythm() -> Rhythm {
        let seconds = Duration::from_secs;
        Rhythm {
            kill: seconds(15),
            stop: seconds(120),
            cut: seconds(120),
            scale: seconds(120),
            coordinator: seconds(60),
            length: seconds(600),
        }
    }

    fn of_kind<'a>(all: &'a [Planned], kind: &str) -> Vec<&'a Planned> {
        let of_kind = all.iter().filter(|planned| planned.fault.kind() == kind);
        of_kind.collect()
    }

    #[test]
    fn a_seed_gives_the_same_schedule_and_another_one_another() {
        let first = schedule(7, &rhythm());
        assert_eq!(first, schedule(7, &rhythm()));
        assert_ne!(first, schedule(8, &rhythm()));
    }

    #[test]
    fn everything_happens_as_often_as_it_should_and_in_order() {
        let all = schedule(1, &rhythm());
        assert!(all.windows(2).all(|pair| pair[0].at <= pair[1].at));
        assert!(all.iter().all(|planned| planned.at < rhythm().length));
        assert_eq!(of_kind(&all, "kill").len(), 40);
        assert_eq!(of_kind(&all, "coordinator killed").len(), 10);
        assert_eq!(
            of_kind(&all, "stop").len() + of_kind(&all, "pause").len(),
            5
        );
        assert_eq!(of_kind(&all, "leave and join").len(), 5);
        assert!(!of_kind(&all, "cut from peers").is_empty());
        assert!(!of_kind(&all, "cut from the coordinator").is_empty());
    }

    #[test]
    fn what_never_happens_changes_nothing_of_the_rest() {
        let kills = Rhythm {
            stop: Duration::ZERO,
            cut: Duration::ZERO,
            scale: Duration::ZERO,
            coordinator: Duration::ZERO,
            ..rhythm()
        };
        let kills = schedule(3, &kills);
        let all = schedule(3, &rhythm());
        let among_all = of_kind(&all, "kill").into_iter().copied();
        assert_eq!(kills, among_all.collect::<Vec<_>>());
    }
}
