//! A whole run against a real OTLP receiver: launcher, coordinator and worker in one trace.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

#[path = "../../proto/tests/support/receiver.rs"]
mod receiver;

use receiver::Receiver;

const LIMIT: Duration = Duration::from_secs(20);

/// A job that is over as soon as it has begun.
const JOB: &str = r#"
name = "traced"
lanes = 2
[data]
emoji.url = "CORPUS"
[tokenizer]
vocab_size = 320
[model.decoder]
hidden_size = 16
intermediate_size = 32
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
max_text_tokens = 16
[model.vision]
image_size = 32
patch_size = 16
hidden_size = 16
intermediate_size = 32
num_hidden_layers = 1
num_attention_heads = 2
projection_dim = 16
[model.text_tower]
hidden_size = 16
intermediate_size = 32
num_hidden_layers = 1
num_attention_heads = 2
[model.memory]
width = 16
[[stage]]
name = "bootstrap"
kind = "bootstrap"
steps = 2
batch_size = 4
data = [{ corpus = "emoji" }]
optimizer = { warmup_steps = 1 }
"#;

fn mks2(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the checkout");
    let mut command = Command::new(env!("CARGO_BIN_EXE_mks2"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("OTEL_")) {
        command.env_remove(name);
    }
    let output = command
        .args(arguments)
        .current_dir(root)
        .envs(variables.iter().copied())
        .output();
    output.expect("mks2 starts")
}

#[test]
fn a_command_exports_its_span_only_when_it_is_asked_to() {
    let receiver = Receiver::start();
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint.as_str());
    let plain = mks2(&["config", "schema"], &[]);
    assert!(plain.status.success(), "{plain:?}");
    let off = mks2(
        &["config", "schema"],
        &[endpoint, ("OTEL_SDK_DISABLED", "true")],
    );
    assert!(
        off.status.success() && receiver.spans().is_empty(),
        "{off:?}"
    );
    let traced = mks2(&["config", "schema"], &[endpoint]);
    assert_eq!(traced.stdout, plain.stdout, "telemetry changes no output");
    receiver.wait(LIMIT, |got| !got.traces.is_empty());
    let spans = receiver.spans();
    assert!(
        spans
            .iter()
            .any(|(who, span)| who == "mks2" && span.name == "mks2"),
        "{spans:?}"
    );
}

#[test]
fn launcher_coordinator_and_worker_are_one_trace() {
    let folder = tempfile::tempdir().expect("a folder");
    let place = |name: &str| folder.path().join(name).display().to_string();
    let corpus = place("emoji");
    let tar = "examples/emoji/corpus/emoji-00003.tar";
    let imported = mks2(&["data", "import", tar, "--out", &corpus], &[]);
    assert!(imported.status.success(), "{imported:?}");
    std::fs::write(place("job.toml"), JOB.replace("CORPUS", &corpus)).expect("written");

    let receiver = Receiver::start();
    let run = mks2(
        &["train", &place("job.toml"), "--run", &place("run")],
        &[("OTEL_EXPORTER_OTLP_ENDPOINT", &receiver.endpoint)],
    );
    assert!(
        run.status.success(),
        "{}",
        String::from_utf8_lossy(&run.stderr)
    );
    receiver.wait(LIMIT, |got| {
        let all = format!("{:?}", got.traces);
        all.contains("\"coordinator.register\"")
            && all.contains("\"step\"")
            && all.contains("\"mks2\"")
    });

    check_trace(&receiver);
    receiver.look(|got| {
        assert!(
            format!("{:?}", got.metrics).contains("mks2.step.duration"),
            "metrics of the worker"
        );
    });
}

/// Launcher, coordinator and worker share one trace, each the child of the one that called it.
fn check_trace(receiver: &Receiver) {
    let spans = receiver.spans();
    let find = |service: &str, name: &str| {
        let found = spans
            .iter()
            .find(|(who, span)| who == service && span.name == name);
        let names: Vec<_> = spans
            .iter()
            .map(|(who, span)| format!("{who}: {}", span.name))
            .collect();
        found
            .map(|(_, span)| span)
            .unwrap_or_else(|| panic!("no {name} of {service} in {names:?}"))
    };
    let command = find("mks2", "mks2");
    let work = find("mks2-worker", "run");
    let register = find("mks2", "coordinator.register");
    let step = find("mks2-worker", "step");
    assert_eq!(
        work.parent_span_id, command.span_id,
        "the worker is the launcher's child"
    );
    assert_eq!(
        register.parent_span_id, work.span_id,
        "context travels over gRPC"
    );
    for span in [work, register, step] {
        assert_eq!(
            span.trace_id, command.trace_id,
            "{} is in the trace",
            span.name
        );
    }
    for phase in ["load", "compute", "reduce", "vote", "update"] {
        assert_eq!(find("mks2-worker", phase).trace_id, command.trace_id);
    }
}
