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

/// What PyTorch counts of a model that it builds without memory: `worker/tests/reference/count_models.py`.
const COUNTS: &str = include_str!("../../../proto/tests/fixtures/counts.json");

/// The plan of a job of the paper, whose corpora and models are not there.
fn paper(job: &str, arguments: &[&str]) -> String {
    let path = format!(
        "{}/../examples/paper/{job}.toml",
        env!("CARGO_MANIFEST_DIR")
    );
    let plan = Place::new().run(&[&["plan", &path], arguments].concat());
    plan.done().out.clone()
}

#[test]
fn the_jobs_of_the_paper_cost_what_pytorch_counts() {
    let counts: serde_json::Value = serde_json::from_str(COUNTS).expect("JSON");
    let counts = counts.as_array().expect("a list");
    for job in ["llama-2-7b", "llama-2-13b"] {
        let plan = paper(job, &["--workers", "64", "--json"]);
        let plan: serde_json::Value = serde_json::from_str(&plan).expect("JSON");
        for stage in ["memory", "experts"] {
            let is_it = |case: &&serde_json::Value| case["name"] == format!("{job}, {stage}");
            let counted = counts.iter().find(is_it).expect("a case");
            let mut stages = plan["stages"].as_array().expect("stages").iter();
            let planned = stages.find(|planned| planned["name"] == stage);
            let planned = planned.expect("a stage");
            let modules = planned["parameters"].as_array().expect("modules").iter();
            let modules: serde_json::Map<_, _> = modules
                .map(|module| {
                    let name = module["module"].as_str().expect("a name").to_owned();
                    (name, module["parameters"].clone())
                })
                .collect();
            assert_eq!(serde_json::Value::Object(modules), counted["parameters"]);
            for field in ["trained_parameters", "flops_per_step"] {
                assert_eq!(planned[field], counted[field], "{job}, {stage}: {field}");
            }
        }
    }
}

#[test]
fn a_plan_says_on_which_gpus_it_fits_and_what_it_could_not_read() {
    let text = paper("llama-2-7b", &["--workers", "64"]);
    for words in [
        "H200",
        "141 GB",
        "data/pairs",
        "Llama-2-7b-hf",
        "as it stands",
    ] {
        assert!(text.contains(words), "{words} in\n{text}");
    }
    let plan = paper("llama-2-13b", &["--workers", "64", "--json"]);
    let plan: serde_json::Value = serde_json::from_str(&plan).expect("JSON");
    let fits = |gpu: usize| plan["gpus"][gpu]["fits"].as_array().expect("names").len();
    assert!(fits(0) == 0 && fits(4) > 0, "{}", plan["gpus"]);
    let problem = plan["models"][0]["problem"].as_str().expect("a problem");
    assert!(problem.contains("Llama-2-13b-hf"), "{problem}");
}
