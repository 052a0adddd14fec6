//! The simulator at work: a fixed share of seeds, proofs that it finds what it should, and ways to
//! look closer.

use std::{
    env,
    time::{Duration, Instant},
};

use super::{Scenario, planted::Planted, shrink::explain};

fn number(name: &str) -> Option<u64> {
    env::var(name).ok()?.parse().ok()
}

fn planted() -> Option<Planted> {
    let name = env::var("MKS2_SIM_PLANT").ok()?;
    Some(Planted::named(&name).expect("the name of a fault in planted.rs"))
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 0..20 {
        let [first, second] = [(); 2].map(|()| Scenario::of(seed, None).play(false));
        assert_eq!(first.digest, second.digest, "seed {seed}");
    }
}

#[test]
fn a_fixed_share_of_seeds_holds() {
    let (began, mut time) = (Instant::now(), Duration::ZERO);
    for seed in 0..200 {
        let scenario = Scenario::of(seed, None);
        let report = scenario.play(false);
        if report.violation.is_some() {
            panic!("{}", explain(&scenario).unwrap_or_default());
        }
        time += report.time;
    }
    let took = began.elapsed();
    println!(
        "{:.0} virtual seconds in {:.1} s: {:.0} times real time",
        time.as_secs_f64(),
        took.as_secs_f64(),
        time.as_secs_f64() / took.as_secs_f64()
    );
}

#[test]
fn replay() {
    let Some(seed) = number("MKS2_SIM_SEED") else {
        return;
    };
    let mut scenario = Scenario::of(seed, planted());
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
    let (began, planted) = (Instant::now(), planted());
    let first = number("MKS2_SIM_SEED").unwrap_or(0);
    let (mut seeds, mut found, mut time) = (0, 0, Duration::ZERO);
    while began.elapsed() < limit && found < 5 {
        let scenario = Scenario::of(first + seeds, planted);
        let report = scenario.play(false);
        if report.violation.is_some() {
            println!("{}\n", explain(&scenario).unwrap_or_default());
            found += 1;
        }
        time += report.time;
        seeds += 1;
    }
    let rate = time.as_secs_f64() / began.elapsed().as_secs_f64();
    println!("{found} of {seeds} seeds failed, {rate:.0} times real time");
    assert!(planted.is_some() || found == 0);
}
