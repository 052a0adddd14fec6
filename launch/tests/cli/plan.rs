//! `mks2 plan`.

use crate::support::{JOB, Place};

#[test]
fn a_plan_tells_batches_parameters_and_costs() {
    let place = Place::new();
    let plan = place.run(&["plan", "job.toml", "--workers", "2", "--json"]);
    let plan: serde_json::Value = serde_json::from_str(&plan.done().out).expect("JSON");
    assert_eq!(plan["lanes_per_worker"], serde_json::json!([2, 2]));
    let memory = &plan["stages"][1];
    assert_eq!(memory["microbatch"], 4);
    assert_eq!(memory["sources"][0]["epochs"], 3.0);
    assert_eq!(memory["sources"][0]["bytes_per_epoch"], 5000);
    let trained = memory["trained_parameters"].as_u64().expect("a number");
    assert!(trained > 0);
    assert_eq!(memory["checkpoint_bytes"], trained * 12);
    assert!(memory["flops_per_token"].as_u64().expect("a number") > 4 * trained);
}

#[test]
fn a_plan_needs_no_corpora() {
    let place = Place::with_job(&JOB.replace("corpora/emoji", "corpora/nowhere"));
    let ended = place.run(&["plan", "job.toml"]);
    assert!(
        ended.done().out.contains("corpora/nowhere"),
        "{}",
        ended.out
    );
}

#[test]
fn more_workers_than_lanes_cannot_be_planned() {
    let ended = Place::new().run(&["plan", "job.toml", "--workers", "5"]);
    ended.refused(3, &["5 workers", "4 lanes", "--workers 4"]);
}

/// Parameters of the published models, as PyTorch counts those that transformers builds.
#[test]
fn the_jobs_of_the_paper_have_the_parameters_of_their_models() {
    for (job, decoder, memory) in [
        ("llama-2-7b", 6_738_415_616_u64, 402_653_184_u64),
        ("llama-2-13b", 13_015_864_320, 629_145_600),
    ] {
        let path = format!(
            "{}/../examples/paper/{job}.toml",
            env!("CARGO_MANIFEST_DIR")
        );
        let plan = Place::new().run(&["plan", &path, "--workers", "64", "--json"]);
        let plan: serde_json::Value = serde_json::from_str(&plan.done().out).expect("JSON");
        let parameters = |stage: usize, module: &str| {
            let modules = plan["stages"][stage]["parameters"].as_array();
            let mut modules = modules.expect("modules").iter();
            let found = modules
                .find(|found| found["module"] == module)
                .expect(module);
            found["parameters"].as_u64().expect("a number")
        };
        for stage in [0, 1, 2] {
            assert_eq!(parameters(stage, "decoder"), decoder, "{job}");
            assert_eq!(parameters(stage, "vision"), 303_966_208, "{job}");
        }
        assert_eq!(parameters(1, "memory.memory"), memory, "{job}");
    }
}
