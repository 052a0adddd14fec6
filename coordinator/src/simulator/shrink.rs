//! The few faults of a failing seed that suffice, and the command that replays them.

use super::Scenario;

/// Leaves faults out, one after the other, as long as the same rule does not hold without them.
pub(super) fn shrink(scenario: &Scenario, rule: &str) -> Scenario {
    let fails = |candidate: &Scenario| {
        let violation = candidate.play(false).violation;
        violation.is_some_and(|violation| violation.rule == rule)
    };
    let mut smallest = scenario.clone();
    let mut at = 0;
    while at < smallest.faults.len() {
        let mut candidate = smallest.clone();
        candidate.faults.remove(at);
        if fails(&candidate) {
            smallest = candidate;
            // What was needed before may not be any more.
            at = 0;
        } else {
            at += 1;
        }
    }
    smallest
}

/// What replays a scenario.
fn command(scenario: &Scenario) -> String {
    let kept = scenario.faults.iter().map(|(at, _)| at.to_string());
    let kept: Vec<String> = kept.collect();
    let kinds = scenario.kinds.iter().map(|kind| format!("{kind:?}"));
    let kinds: Vec<String> = kinds.collect();
    let kinds = match kinds.is_empty() {
        true => String::new(),
        false => format!("MKS2_SIM_KINDS={} ", kinds.join(",")),
    };
    let planted = scenario.planted.map_or_else(String::new, |planted| {
        format!("MKS2_SIM_PLANT={planted:?} ")
    });
    format!(
        "MKS2_SIM_SEED={} {kinds}MKS2_SIM_FAULTS={} {planted}cargo test --workspace --lib \
         simulator::tests::replay -- --nocapture",
        scenario.seed,
        kept.join(",")
    )
}

/// A failing seed in words: what was violated, with which faults at least, and how to see it again.
pub(super) fn explain(scenario: &Scenario) -> Option<String> {
    let violation = scenario.play(false).violation?;
    let smallest = shrink(scenario, &violation.rule);
    let violation = smallest.play(false).violation?;
    let faults: Vec<String> = smallest
        .faults
        .iter()
        .map(|(at, fault)| format!("  {at}: {fault}"))
        .collect();
    Some(format!(
        "seed {}: \"{}\" does not hold at {:.3} s: {}\nwith {} of {} faults:\n{}\n{}",
        scenario.seed,
        violation.rule,
        violation.at.as_secs_f64(),
        violation.words,
        smallest.faults.len(),
        scenario.faults.len(),
        faults.join("\n"),
        command(&smallest)
    ))
}
