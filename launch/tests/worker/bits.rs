//! P4: the weights do not depend on the number of workers.

use crate::lab::{Lab, TOTAL, digests, ended};

#[test]
fn one_to_four_workers_train_the_same_bits_in_every_stage() {
    let lab = Lab::enter();
    assert_eq!(lab.quiet()["workers"], 2);
    assert_eq!(lab.quiet()["reduction"], "exact");
    for workers in [1, 3, 4] {
        let run = format!("workers-{workers}");
        ended(lab.train(&run, workers, &[])).done();
        lab.equals_quiet(&run);
        assert_eq!(lab.report(&run)["workers"], workers);
    }
}

#[test]
fn the_fast_mode_runs_and_says_so() {
    let lab = Lab::enter();
    let run = ended(lab.train("fast", 2, &["reduction=fast"]));
    assert!(run.done().out.contains("reduction fast"), "{}", run.out);
    assert_eq!(lab.report("fast")["reduction"], "fast");
    assert_eq!(lab.steps("fast").len(), TOTAL);
}

#[test]
fn what_is_computed_again_changes_no_bit() {
    let lab = Lab::enter();
    ended(lab.train("recomputed", 2, &["recompute=blocks"])).done();
    lab.equals_quiet("recomputed");
}

#[test]
fn bf16_has_bits_of_its_own_for_any_number_of_workers() {
    let lab = Lab::enter();
    let run = |workers: usize| {
        let name = format!("bf16-{workers}");
        ended(lab.train(&name, workers, &["precision=bf16"])).done();
        digests(&lab.report(&name))
    };
    let alone = run(1);
    assert_eq!(alone, run(3));
    assert_ne!(alone, digests(lab.quiet()));
}
