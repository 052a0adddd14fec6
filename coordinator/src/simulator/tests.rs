//! The simulator at work: a fixed share of seeds, proofs that it finds what it should, and ways to
//! look closer.

use std::{
    env,
    time::{Duration, Instant},
};

use super::{
    Scenario,
    planted::Planted,
    shrink::explain,
    weather::{KINDS, Kind},
};

/// Seeds of the fixed share: about a minute of one core in a development build.
const SHARE: u64 = 7_000;
/// Seeds within which a planted fault is found in the weather that it dreads.
const SEEDS: u64 = 3_000;
/// Where the search for the rarest begins, to be quick: it goes through all seeds all the same.
const RARE: u64 = 1_800;

/// In which weather each fault that can be planted is found soon; none: in any.
const DREADED: [(Planted, &[Kind]); 40] = [
    (Planted::NoFence, &[Kind::Replace, Kind::PauseWorker]),
    (
        Planted::LostJournalIgnored,
        &[Kind::Replace, Kind::PauseWorker],
    ),
    (
        Planted::NoOfficeCheck,
        &[Kind::Replace, Kind::PauseOffice, Kind::KillWorker],
    ),
    (Planted::AnnouncedBeforeRecorded, &[]),
    (Planted::NeverLooked, &[Kind::Rival, Kind::KillAll]),
    (Planted::TermForgotten, &[Kind::KillOffice]),
    (Planted::CountedManifestsDeleted, &[Kind::KillOffice]),
    (Planted::VoidDeletedBlindly, &[Kind::Stumble, Kind::KillAll]),
    (Planted::LaneDealtTwice, &[]),
    (Planted::GenerationReused, &[]),
    (Planted::StaleWorkerAdmitted, &[]),
    (Planted::NamesakeInPlace, &[Kind::Leave, Kind::KillOffice]),
    (Planted::HeldAtTheEnd, &[]),
    (
        Planted::HeldAgainstItsWill,
        &[Kind::Leave, Kind::KillWorker],
    ),
    (Planted::NothingHandedOver, &[Kind::KillWorker]),
    (Planted::CommitBeforeManifest, &[]),
    (
        Planted::CommitBeforeNews,
        &[Kind::SlowNetwork, Kind::KillAll],
    ),
    (Planted::AnsweredBeforeRecorded, &[]),
    (Planted::LatestReleased, &[]),
    (Planted::MeasuredTwice, &[Kind::KillOffice]),
    (Planted::OldBeginning, &[Kind::KillOffice, Kind::KillWorker]),
    (
        Planted::ForgottenInSilence,
        &[Kind::PauseWorker, Kind::KillWorker],
    ),
    (Planted::BlamedWhenCutOff, &[Kind::Isolate]),
    (Planted::LostMemberKept, &[Kind::KillWorker]),
    (
        Planted::NotAnnouncedAgain,
        &[Kind::Reset, Kind::KillWorker, Kind::Appointment],
    ),
    (
        Planted::FirstWelcomeKept,
        &[Kind::Replace, Kind::FailWorker],
    ),
    (Planted::NotTakenBack, &[Kind::LoseBit]),
    (Planted::BackToLatest, &[Kind::LoseBit]),
    (
        Planted::HandedOverUncompared,
        &[Kind::LoseBit, Kind::KillWorker],
    ),
    (Planted::DifferencesIgnored, &[Kind::LoseBit]),
    (Planted::SavedUncompared, &[Kind::LoseBit]),
    (Planted::VoteBeforeHeld, &[Kind::Appointment]),
    (Planted::StepsDoneAgain, &[Kind::Appointment]),
    (Planted::LanesSummedAgain, &[Kind::KillWorker]),
    (Planted::StopAlone, &[Kind::Stop]),
    (Planted::CommitBeforeUpload, &[]),
    (Planted::BorderBeforeSaved, &[]),
    (
        Planted::NewsNotRepeated,
        &[Kind::KillWorker, Kind::KillOffice],
    ),
    (Planted::StepsToldOnce, &[Kind::KillOffice]),
    (Planted::LeavingToldOnce, &[Kind::Leave, Kind::KillOffice]),
];

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 0..50 {
        let [first, second] = [(); 2].map(|()| Scenario::of(seed, &[], None).play(false));
        assert_eq!(first.digest, second.digest, "seed {seed}");
        assert_eq!(first.time, second.time, "seed {seed}");
    }
    let [first, second] = [0, 1].map(|seed| Scenario::of(seed, &[], None).play(false));
    assert_ne!(first.digest, second.digest);
}

#[test]
fn a_fixed_share_of_seeds_holds() {
    let (began, mut time) = (Instant::now(), Duration::ZERO);
    for seed in 0..SHARE {
        let scenario = Scenario::of(seed, &[], None);
        let report = scenario.play(false);
        if report.violation.is_some() {
            panic!("{}", explain(&scenario).unwrap_or_default());
        }
        time += report.time;
    }
    say(SHARE, time, began);
}

#[test]
fn every_planted_fault_is_found() {
    for planted in Planted::ALL {
        let began = Instant::now();
        let known = DREADED.iter().find(|(known, _)| known == planted);
        let (_, kinds) = known.expect("its weather");
        let first = match planted {
            Planted::NoOfficeCheck => RARE,
            _ => 0,
        };
        let found = (first..SEEDS).chain(0..first).find_map(|seed| {
            let violation = Scenario::of(seed, kinds, Some(*planted))
                .play(false)
                .violation;
            violation.map(|violation| (seed, violation.rule))
        });
        let (seed, rule) = found.unwrap_or_else(|| panic!("{planted:?} was not found"));
        let quiet = Scenario::of(seed, kinds, None).play(false);
        assert_eq!(quiet.violation, None, "seed {seed} without {planted:?}");
        let took = began.elapsed().as_secs_f64();
        println!("{planted:?}: seed {seed}, {took:.2} s: {rule}");
    }
}

#[test]
fn what_is_left_of_a_failing_seed_suffices() {
    let found = (0..SEEDS).find_map(|seed| {
        let scenario = Scenario::of(seed, &[], Some(Planted::GenerationReused));
        let is_rich = scenario.faults.len() > 4;
        let words = is_rich.then(|| explain(&scenario)).flatten()?;
        Some((scenario, words))
    });
    let (scenario, words) = found.expect("a failing seed");
    let command = words.lines().last().expect("a command");
    let kept = command.split("MKS2_SIM_FAULTS=").nth(1).expect("faults");
    let kept = kept
        .split(' ')
        .next()
        .unwrap_or_default()
        .split(',')
        .count();
    assert!(kept < scenario.faults.len(), "{words}");
    assert!(
        command.contains("MKS2_SIM_PLANT=GenerationReused"),
        "{words}"
    );
}

#[test]
fn replay() {
    let Some(seed) = number("MKS2_SIM_SEED") else {
        return;
    };
    let mut scenario = Scenario::of(seed, &kinds(), planted());
    if let Ok(kept) = env::var("MKS2_SIM_FAULTS") {
        let kept: Vec<usize> = kept.split(',').filter_map(|at| at.parse().ok()).collect();
        scenario.faults.retain(|(at, _)| kept.contains(at));
    }
    for (at, fault) in &scenario.faults {
        println!("fault {at}: {fault}");
    }
    let report = scenario.play(true);
    for line in &report.lines {
        println!("{line}");
    }
    println!("digest {:016x}, {:?}", report.digest, report.time);
    assert_eq!(report.violation, None);
}

#[test]
#[ignore = "looks for as long as MKS2_SIM_SECONDS says"]
fn hunt() {
    let limit = Duration::from_secs(number("MKS2_SIM_SECONDS").unwrap_or(60));
    let first = number("MKS2_SIM_SEED").unwrap_or(0);
    let (began, planted, kinds) = (Instant::now(), planted(), kinds());
    let (mut seeds, mut found, mut time) = (0, 0, Duration::ZERO);
    while began.elapsed() < limit && found < 5 {
        let scenario = Scenario::of(first + seeds, &kinds, planted);
        let report = scenario.play(false);
        if report.violation.is_some() {
            println!("{}\n", explain(&scenario).unwrap_or_default());
            found += 1;
        }
        time += report.time;
        seeds += 1;
    }
    say(seeds, time, began);
    assert!(planted.is_some() || found == 0, "{found} seeds failed");
}

fn say(seeds: u64, time: Duration, began: Instant) {
    let (time, took) = (time.as_secs_f64(), began.elapsed().as_secs_f64());
    let rate = time / took;
    println!("{seeds} seeds, {time:.0} s in {took:.1} s: {rate:.0} times real time");
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok()?.parse().ok()
}

fn planted() -> Option<Planted> {
    let name = env::var("MKS2_SIM_PLANT").ok()?;
    Some(Planted::named(&name).expect("the name of a fault in planted.rs"))
}

fn kinds() -> Vec<Kind> {
    let names = env::var("MKS2_SIM_KINDS").unwrap_or_default();
    let named = |name: &str| KINDS.into_iter().find(|kind| format!("{kind:?}") == name);
    names.split(',').filter_map(named).collect()
}
