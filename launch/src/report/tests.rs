//! Whole reports of run directories made by hand.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::compose;

const JOB: &str = include_str!("../../../examples/emoji/quick.toml");
const PIXEL: &str = "data:image/png;base64,iVBORw0KGgo=";
const HOSTILE: &str = "<script>alert('x')</script> \"><img src=http://evil.example/a.png>";

/// A run directory under way: two steps of the job's first stage.
fn run_under_way() -> tempfile::TempDir {
    let run = tempfile::tempdir().unwrap();
    let job = mks2_proto::job::load::parse(JOB).unwrap();
    let stage = &job.stages[0].name;
    let line = |step: u64, loss: Value| {
        json!({"step": step, "stage": stage, "loss": loss, "grad_norm": 2.0, "lr": 1e-3,
               "samples": 64 * step, "step_seconds": 0.5, "workers": 2})
        .to_string()
    };
    let lines = [line(1, json!(5.5)), line(2, Value::Null)].join("\n");
    put(run.path(), "config.resolved.toml", JOB);
    put(run.path(), "metrics.jsonl", &lines);
    let about = json!({"run_id": HOSTILE, "program_version": "0.1.0", "started_ms": 0,
                       "corpora": {HOSTILE: "abc"}});
    put(run.path(), "run.json", &about.to_string());
    record(run.path(), 1, &json!({"kind": "term-taken"}));
    run
}

fn put(run: &Path, name: &str, text: &str) {
    let path = run.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn record(run: &Path, number: u64, entry: &Value) {
    let record = json!({"number": number, "term": 1, "writer": 1, "at_ms": 0, "previous": "",
                        "entry": entry, "digest": ""});
    put(
        run,
        &format!("journal/{number:020}.json"),
        &record.to_string(),
    );
}

fn finish_first_stage(run: &Path) {
    let job = mks2_proto::job::load::parse(JOB).unwrap();
    let manifest = json!({"step": 2, "stage": job.stages[0].name, "stage_step": 2, "final": true,
                          "loss": 5.0, "seconds": 1.0, "weights_digest": "0123456789abcdef",
                          "made_with": "mks2 0.1.0, libtorch 2.11.0, cpu"});
    put(
        run,
        "checkpoints/step-00000002/manifest.json",
        &manifest.to_string(),
    );
}

fn evaluate(run: &Path) {
    let near = json!({"key": "k", "picture": PIXEL, "similarity": 0.8, "own": true});
    let outside = json!({"key": "k", "picture": "http://evil.example/b.png", "similarity": 0.1});
    let found = json!({
        "weights_digest": "feedbeef",
        "retrieval": {"r1": 0.9, "r5": 0.95, "r10": 1.0, "n": 1580},
        "caption": {"loss": 1.25, "loss_without_image": 2.5},
        "questions": {"majority": 0.25, "lora": 0.24, "mks2": 0.6, "shuffled": 0.3, "n": 93,
            "details": [{"key": "k", "question": HOSTILE, "answer": "red",
                         "given": {"mks2": "red", "lora": HOSTILE}}]},
        "probes": {"image": 0.75, "with_memory": 0.7, "without_memory": 0.25},
        "examples": [{"key": "k", "picture": PIXEL, "caption": HOSTILE, "generated": HOSTILE,
                      "query": HOSTILE, "nearest": [near, outside]}],
        "tasks": [{"task": HOSTILE, "stage": "experts", "version": "1", "digest": "00", "items": 99,
                   "measured": 93, "settings": {"kind": "multiple-choice"},
                   "metrics": [{"name": "acc", "value": 0.5, "stderr": 0.05, "interval": [0.4, 0.6]}]}],
        "router": [{"block": 4, "begin": 0.1, "question": 0.5, "answer": 0.875}],
    });
    put(run, "evaluation.json", &found.to_string());
}

async fn composed(run: &Path) -> (Value, String) {
    compose(run.to_str().unwrap()).await.unwrap();
    let json = fs::read_to_string(run.join("report.json")).unwrap();
    let html = fs::read_to_string(run.join("report.html")).unwrap();
    (serde_json::from_str(&json).unwrap(), html)
}

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    keys.sort_unstable();
    keys
}

const SECTIONS: [&str; 8] = [
    "Knowledge from pictures, asked in text",
    "Text-to-image retrieval",
    "Captions",
    "Tasks",
    "The router's use of memory",
    "Stages",
    "Curves",
    "The exact job",
];

fn sections(html: &str) -> Vec<&str> {
    let after = html.split("<h2>").skip(1);
    after
        .filter_map(|part| part.split("</h2>").next())
        .collect()
}

#[tokio::test]
async fn a_finished_run_has_every_section_in_order() {
    let run = run_under_way();
    finish_first_stage(run.path());
    evaluate(run.path());
    record(run.path(), 2, &json!({"kind": "run-finished", "step": 2}));
    let (_, html) = composed(run.path()).await;
    assert_eq!(sections(&html), SECTIONS);
    assert!(html.contains("✓ finished") && !html.contains("class=note"));
    for number in [
        "90.0 %",
        "60.0 % <small>± 5.1</small>",
        "1.250",
        "87.5 %",
        "75.0 %",
    ] {
        assert!(html.contains(number), "{number}");
    }
}

#[tokio::test]
async fn what_is_not_there_yet_is_left_out_and_said() {
    let run = run_under_way();
    let (json, html) = composed(run.path()).await;
    assert_eq!(sections(&html), SECTIONS[5..]);
    assert!(html.contains("not finished") && html.contains("There is no evaluation yet"));
    assert!(html.contains("1 value not finite") && !html.contains("NaN"));
    assert_eq!(json["weights_digest"], Value::Null);
    assert_eq!(json["stages"], json!([]));
    assert!(json.get("evaluation").is_none());
}

#[tokio::test]
async fn the_first_moment_of_a_run_has_a_report_too() {
    let run = tempfile::tempdir().unwrap();
    put(run.path(), "config.resolved.toml", JOB);
    let (json, html) = composed(run.path()).await;
    assert_eq!(sections(&html), ["Stages", "The exact job"]);
    assert_eq!(
        (&json["workers"], &json["failures"]),
        (&json!(0), &json!(0))
    );
}

#[tokio::test]
async fn hostile_texts_stay_texts_and_nothing_is_fetched() {
    let run = run_under_way();
    evaluate(run.path());
    let failed = json!({"kind": "run-failed", "what": HOSTILE, "why": HOSTILE, "lost": null});
    record(run.path(), 2, &failed);
    let (_, html) = composed(run.path()).await;
    assert!(html.contains("&lt;script&gt;alert(&#39;x&#39;)"));
    let lower = html.to_lowercase();
    for danger in [
        "<script",
        "<link",
        "<iframe",
        "src=\"http",
        "src=http://evil.example/a.png>",
        "href=",
        "url(",
        "@import",
    ] {
        assert!(!lower.contains(danger), "{danger}");
    }
    let images = html.matches("<img").count();
    assert_eq!(images, html.matches("src=\"data:image/png;base64,").count());
    assert!(images > 0);
}

#[tokio::test]
async fn report_json_has_exactly_the_documented_fields() {
    let run = run_under_way();
    finish_first_stage(run.path());
    evaluate(run.path());
    let (json, _) = composed(run.path()).await;
    let all = [
        "evaluation",
        "failures",
        "interruptions",
        "reduction",
        "stages",
        "weights_digest",
        "workers",
    ];
    assert_eq!(keys(&json), all);
    assert_eq!(
        keys(&json["stages"][0]),
        ["loss", "name", "seconds", "steps", "weights_digest"]
    );
    let evaluation = &json["evaluation"];
    assert_eq!(
        keys(evaluation),
        ["caption", "probes", "questions", "retrieval", "tasks"]
    );
    assert_eq!(
        keys(&evaluation["tasks"][0]),
        ["digest", "measured", "metrics", "stage", "task"]
    );
    assert_eq!(keys(&evaluation["retrieval"]), ["n", "r1", "r10", "r5"]);
    assert_eq!(keys(&evaluation["caption"]), ["loss", "loss_without_image"]);
    assert_eq!(
        keys(&evaluation["questions"]),
        ["lora", "majority", "mks2", "n", "shuffled"]
    );
    assert_eq!(
        keys(&evaluation["probes"]),
        ["image", "with_memory", "without_memory"]
    );
    assert_eq!(json["weights_digest"], "feedbeef");
    assert_eq!(
        (&json["workers"], &json["reduction"]),
        (&json!(2), &json!("exact"))
    );
}

#[tokio::test]
async fn failures_are_the_records_of_a_failure_and_no_others() {
    let run = run_under_way();
    let failed = json!({"kind": "run-failed", "what": "a worker was lost", "why": "killed", "lost": "worker-1"});
    record(run.path(), 2, &failed);
    record(run.path(), 3, &json!({"kind": "term-taken"}));
    record(
        run.path(),
        4,
        &json!({"kind": "stop-requested", "reason": "\"failed\""}),
    );
    record(run.path(), 5, &failed);
    // A snapshot repeats what its records say.
    let snapshot = json!({"number": 64, "last": "", "history": {"ending": "failed"}, "digest": ""});
    put(
        run.path(),
        "journal/snapshot-00000000000000000064.json",
        &snapshot.to_string(),
    );
    let (json, html) = composed(run.path()).await;
    assert_eq!(json["failures"], 2);
    assert!(
        html.contains("✗ failed")
            && html.contains("a worker was lost")
            && html.contains("2 failures")
    );
}

#[tokio::test]
async fn terms_that_left_no_word_on_their_end_are_interruptions() {
    let run = run_under_way();
    let formed = json!({"kind": "generation-formed", "generation": 1, "members": []});
    let taken = json!({"kind": "term-taken"});
    // Killed at work; then before any work; then stopped on request.
    let asked = json!({"kind": "stop-requested", "reason": "Ctrl-C"});
    let entries = [&formed, &taken, &taken, &formed, &asked, &taken];
    for (number, entry) in (2..).zip(entries) {
        record(run.path(), number, entry);
    }
    let (json, html) = composed(run.path()).await;
    assert_eq!(
        (&json["interruptions"], &json["failures"]),
        (&json!(1), &json!(0))
    );
    assert!(html.contains("1 interruption"));
}

#[tokio::test]
async fn the_evaluation_has_a_time_where_it_is_known() {
    let run = run_under_way();
    evaluate(run.path());
    let (json, html) = composed(run.path()).await;
    assert!(json.get("evaluation_seconds").is_none() && !html.contains("libtorch"));
    let formed = json!({"kind": "generation-formed", "generation": 1, "members": []});
    for (number, at_ms, entry) in [
        (2, 1_000, formed),
        (3, 8_500, json!({"kind": "run-finished", "step": 2})),
    ] {
        let record = json!({"number": number, "term": 1, "writer": 1, "at_ms": at_ms,
                            "previous": "", "entry": entry, "digest": ""});
        let name = format!("journal/{number:020}.json");
        put(run.path(), &name, &record.to_string());
    }
    let (json, html) = composed(run.path()).await;
    assert_eq!(json["evaluation_seconds"], 7.5);
    assert!(html.contains("0:07"));
}

#[tokio::test]
async fn a_directory_without_a_run_is_refused_with_a_cure() {
    let empty = tempfile::tempdir().unwrap();
    let failure = compose(empty.path().to_str().unwrap()).await.unwrap_err();
    assert!(
        failure.exit.code() == 2 && failure.what.contains("no run at") && !failure.cure.is_empty()
    );
}

#[tokio::test]
async fn what_the_stages_were_made_with_is_shown() {
    let run = run_under_way();
    let (_, html) = composed(run.path()).await;
    assert!(html.contains("<th>trained by<td><code>mks2 0.1.0</code>"));
    finish_first_stage(run.path());
    let (_, html) = composed(run.path()).await;
    assert!(html.contains("<code>mks2 0.1.0, libtorch 2.11.0, cpu</code>"));
}
