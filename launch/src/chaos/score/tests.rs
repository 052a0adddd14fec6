use mks2_coordinator::journal::GenerationMember;
use mks2_coordinator::ledger::Leg;
use mks2_proto::ids::{Generation, Incarnation, MemberId};

use super::*;
use crate::chaos::schedule::Fault;
use crate::chaos::story::Life;

const N: u32 = 2;

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn commit(at: u64, step: u64, workers: u32, generation: u64) -> Commit {
    Commit {
        at: millis(at),
        took: Duration::ZERO,
        seen: millis(at),
        step,
        stage: "a".into(),
        workers,
        generation,
        bits: format!("bits of {step}"),
    }
}

fn formed(at: u64, members: &[&str], lost: &[&str], joined: &[&str]) -> Note {
    let ids = |names: &[&str]| -> Vec<MemberId> {
        names
            .iter()
            .map(|n| MemberId::new(n).expect("good"))
            .collect()
    };
    let members = ids(members).into_iter().map(|member| GenerationMember {
        member,
        incarnation: Incarnation(1),
        host: String::new(),
        data_address: String::new(),
        lanes: vec![0, 1],
    });
    Note {
        at: millis(at),
        entry: Entry::GenerationFormed {
            generation: Generation(at),
            members: members.collect(),
            after_step: 0,
            lost: ids(lost),
            left: Vec::new(),
            joined: ids(joined),
        },
    }
}

fn course() -> Course {
    Course {
        lanes: 4,
        seed: 1,
        legs: vec![Leg {
            name: "a".into(),
            from: Vec::new(),
            before: 0,
            steps: 100,
            batch: 16,
            corpora: Vec::new(),
        }],
    }
}

/// Steps of 100 ms with two workers, then of 150 ms with one.
fn quiet() -> Story {
    let with_two = (1..=20).map(|step| commit(step * 100, step, N, 1));
    let with_one = (21..=40).map(|step| commit(2000 + (step - 20) * 150, step, 1, 2));
    Story {
        commits: with_two.chain(with_one).collect(),
        weights: BTreeMap::from([(20, "w".to_owned())]),
        ..Story::default()
    }
}

/// One of two workers is killed at 1.05 s, noticed at 1.1 s, and back in at 1.6 s.
fn killed() -> Story {
    let mut commits: Vec<_> = (1..=10)
        .map(|step| commit(step * 100, step, N, 1))
        .collect();
    commits.push(commit(1300, 11, 1, 2));
    commits.push(commit(1450, 12, 1, 2));
    commits.push(commit(1600, 13, 1, 2));
    commits.extend((14..=20).map(|step| commit(1700 + (step - 14) * 100, step, N, 3)));
    let both = ["worker-0", "worker-1"];
    let up = |at, name: &str| (millis(at), name.to_owned(), Life::Up);
    Story {
        lines: commits.iter().map(|commit| (commit.step, 1)).collect(),
        commits,
        notes: vec![
            formed(0, &both, &[], &[]),
            formed(1100, &both[..1], &["worker-1"], &[]),
            formed(1601, &both, &[], &["worker-1"]),
        ],
        injected: vec![Injected {
            at: millis(1050),
            over: Some(millis(1050)),
            fault: Fault::Kill,
            whom: "worker-1".into(),
            is_headless: false,
        }],
        lives: vec![
            up(0, "worker-0"),
            up(0, "worker-1"),
            (millis(1050), "worker-1".into(), Life::Down),
            up(1300, "worker-1"),
        ],
        weights: BTreeMap::from([(20, "w".to_owned())]),
        scored: vec![(millis(500), millis(2300))],
        ended: millis(2300),
        ..Story::default()
    }
}

#[test]
fn what_was_possible_depends_on_who_was_alive() {
    let score = score(&killed(), &quiet(), &course());
    assert_eq!(score.steps_useful, 15);
    // 1.55 s with two workers alive at 0.1 s a step, 0.25 s with one at 0.15 s.
    let possible = 1.55 / 0.1 + 0.25 / 0.15;
    assert!((score.steps_possible - possible).abs() < 1e-6, "{score:?}");
    assert!((score.goodput - 15.0 / possible).abs() < 1e-6);
    // All of its own calm steps take 0.1 s, also with one worker.
    let possible = 1.8 / 0.1;
    let at_own_rate = score.goodput_at_own_rate.expect("calm steps");
    assert!((at_own_rate - 15.0 / possible).abs() < 1e-6);
    let lost: f64 = score.lost_to.values().sum();
    assert!((lost - (1.0 - score.goodput)).abs() < 1e-6, "{score:?}");
    assert!(score.lost_to["kill"] > 0.0 && score.lost_to["workers that start"] > 0.0);
    let kills = &score.faults["kill"];
    assert_eq!((kills.count, kills.lost, score.lanes_again), (1, 1, 2));
    assert!(score.is_clean());
    assert_eq!(
        (score.bits.steps_compared, score.bits.checkpoints_compared),
        (20, 1)
    );
}

#[test]
fn what_is_lost_doubled_or_different_is_counted() {
    let mut story = killed();
    story.lines.remove(&7);
    story.lines.insert(9, 3);
    story.commits[4].bits = "other bits".into();
    story.weights.insert(20, "other weights".into());
    let score = score(&story, &quiet(), &course());
    assert_eq!((score.rows_lost, score.rows_doubled), (16, 32));
    assert_eq!(score.bits.different, 2);
    assert!(!score.is_clean());
}

#[test]
fn a_stopped_worker_is_not_alive() {
    let mut story = killed();
    let hindered = |at, life| (millis(at), "worker-0".to_owned(), life);
    story.lives.push(hindered(1700, Life::Hindered));
    story.lives.push(hindered(1900, Life::Free));
    let alive = story.alive();
    assert_eq!(
        alive.stretches(millis(1600), millis(2000)),
        [(2, 0.1), (1, 0.2), (2, 0.1)]
    );
}

/// What lies between two sections under fire counts neither as work nor as time.
#[test]
fn only_the_sections_under_fire_are_scored() {
    let mut story = killed();
    story.scored = vec![(millis(200), millis(500)), (millis(1700), millis(2000))];
    let score = score(&story, &quiet(), &course());
    assert_eq!(score.steps_useful, 6);
    assert!((score.scored_seconds - 0.6).abs() < 1e-9, "{score:?}");
    assert!((score.goodput - 1.0).abs() < 1e-9, "{score:?}");
    assert_eq!(story.scored_until(millis(1000)), millis(300));
    assert_eq!(story.scored_until(millis(1800)), millis(400));
}

#[test]
fn all_that_ran_are_down_at_the_end_of_a_section() {
    let mut story = killed();
    story.all_down(millis(2500));
    let alive = story.alive();
    assert_eq!(
        alive.stretches(millis(2400), millis(2600)),
        [(2, 0.1), (0, 0.1)]
    );
    story.all_down(millis(2700));
    let downs = story
        .lives
        .iter()
        .filter(|(_, _, life)| *life == Life::Down);
    assert_eq!(downs.count(), 3, "nobody ends twice");
}
