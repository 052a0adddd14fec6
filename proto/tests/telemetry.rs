//! Telemetry against a real OTLP receiver. Each case runs in a process of its own, since a
//! process has one subscriber: the tests start this test binary again as a child.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use mks2_proto::telemetry::{self, Instruments, LogFormat, Options, StepSample};
use tonic::metadata::MetadataMap;

#[path = "support/receiver.rs"]
mod receiver;

use receiver::{Receiver, text};

const LIMIT: Duration = Duration::from_secs(60);

/// Runs the test `name` of this binary as a process with these variables.
fn child(name: &str, variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    command.args([
        name,
        "--exact",
        "--ignored",
        "--nocapture",
        "--test-threads=1",
    ]);
    for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("OTEL_")) {
        command.env_remove(key);
    }
    command
        .env_remove("RUST_LOG")
        .env_remove("MKS2_LOG")
        .env_remove("TRACEPARENT");
    command
        .envs(variables.iter().copied())
        .output()
        .expect("the child starts")
}

fn options() -> Options {
    Options {
        service: "mks2-test",
        log_format: LogFormat::Json,
        verbosity: 0,
        no_color: true,
    }
}

#[test]
#[ignore = "run as a child process by the other tests"]
fn works_a_little() {
    let guard = telemetry::init(&options()).expect("telemetry starts");
    let run = tracing::info_span!(target: "mks2_test", "run");
    telemetry::continue_from_environment(&run);
    run.in_scope(|| {
        let mut metadata = MetadataMap::new();
        let call = tracing::info_span!(target: "mks2_test", "call", step = 7_i64);
        call.in_scope(|| telemetry::inject(&call, &mut metadata));
        // What the other side of a gRPC call would do.
        let serve = tracing::info_span!(target: "mks2_test", parent: None, "serve");
        telemetry::continue_from(&serve, &metadata);
        serve.in_scope(|| {
            tracing::info!(target: "mks2_test", rank = 1_i64, "a line");
            tracing::info_span!(target: "hyper::client", "noise").in_scope(|| {});
        });
    });
    drop(run);
    Instruments::new().record_step(&StepSample {
        stage: "memory",
        samples: 64,
        tokens: 640,
        loss: 1.5,
        step_seconds: 0.2,
        data_wait_seconds: 0.001,
        comm_wait_seconds: 0.002,
    });
    println!("exporting={}", guard.is_exporting());
    println!("sockets={} threads={:?}", sockets(), thread_names());
    println!("flushed={}", guard.shutdown(LIMIT));
}

/// Sockets that this process holds, wherever they lead.
fn sockets() -> usize {
    let open = std::fs::read_dir("/proc/self/fd").expect("procfs");
    let links = open
        .flatten()
        .filter_map(|entry| std::fs::read_link(entry.path()).ok());
    links
        .filter(|link| link.to_string_lossy().starts_with("socket:"))
        .count()
}

fn thread_names() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").expect("procfs");
    tasks
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok())
        .map(|name| name.trim().to_owned())
        .collect()
}

#[test]
fn spans_metrics_and_logs_of_a_process_arrive_with_their_parents() {
    let receiver = Receiver::start();
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let output = child(
        "works_a_little",
        &[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &receiver.endpoint),
            ("TRACEPARENT", parent),
        ],
    );
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(
        printed.contains("exporting=true") && printed.contains("flushed=true"),
        "{output:?}"
    );
    receiver.wait(LIMIT, |got| {
        !got.traces.is_empty() && !got.metrics.is_empty() && !got.logs.is_empty()
    });

    check_parents(&receiver);
    receiver.look(|got| {
        let resource = got.traces[0].resource_spans[0]
            .resource
            .as_ref()
            .expect("a resource");
        assert_eq!(
            text(&resource.attributes, "service.version"),
            env!("CARGO_PKG_VERSION")
        );
        assert_eq!(text(&resource.attributes, "service.instance.id").len(), 32);
        let metrics = format!("{:?}", got.metrics);
        for name in [
            "mks2.step.duration",
            "mks2.step.data_wait",
            "mks2.samples",
            "mks2.tokens",
        ] {
            assert!(metrics.contains(name), "no metric {name}");
        }
        let logs = format!("{:?}", got.logs);
        assert!(logs.contains("a line"), "the log record arrived");
    });
}

/// The spans hang together as the process made them.
fn check_parents(receiver: &Receiver) {
    let spans = receiver.spans();
    let find = |name: &str| {
        let found = spans.iter().find(|(_, span)| span.name == name);
        found.unwrap_or_else(|| panic!("no span {name} in {spans:?}"))
    };
    let (run, call, serve) = (find("run"), find("call"), find("serve"));
    assert_eq!(run.0, "mks2-test");
    assert_eq!(hex(&run.1.trace_id), "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(
        hex(&run.1.parent_span_id),
        "b7ad6b7169203331",
        "the launcher's span is the parent"
    );
    assert_eq!(
        call.1.parent_span_id, run.1.span_id,
        "the call happens inside the run"
    );
    assert_eq!(
        serve.1.parent_span_id, call.1.span_id,
        "metadata carries the context"
    );
    assert_eq!(
        serve.1.trace_id, run.1.trace_id,
        "one trace over all of them"
    );
    assert!(
        spans.iter().all(|(_, span)| span.name != "noise"),
        "the gRPC stack is kept out"
    );
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn without_the_variable_there_is_no_connection_and_no_thread() {
    let output = child("works_a_little", &[]);
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(printed.contains("exporting=false"), "{printed}");
    assert!(printed.contains("sockets=0"), "{printed}");
    assert!(!printed.contains("telemetry\""), "{printed}");
    let line = String::from_utf8_lossy(&output.stderr);
    let line = line
        .lines()
        .find(|line| line.contains("a line"))
        .expect("the log line");
    let line: serde_json::Value = serde_json::from_str(line).expect("one JSON object per line");
    assert_eq!(line["message"], "a line");
    assert_eq!(line["rank"], 1);
}

#[test]
fn the_switches_hold_against_a_receiver_that_listens() {
    let receiver = Receiver::start();
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint.as_str());
    let off = child("works_a_little", &[endpoint, ("OTEL_SDK_DISABLED", "true")]);
    assert!(
        String::from_utf8_lossy(&off.stdout).contains("sockets=0"),
        "{off:?}"
    );
    receiver.look(|got| {
        assert!(got.traces.is_empty() && got.metrics.is_empty() && got.logs.is_empty());
    });
    child(
        "works_a_little",
        &[endpoint, ("OTEL_TRACES_EXPORTER", "none")],
    );
    receiver.wait(LIMIT, |got| !got.metrics.is_empty() && !got.logs.is_empty());
    receiver.look(|got| {
        assert!(got.traces.is_empty(), "traces were switched off");
        assert!(
            !got.metrics.is_empty() && !got.logs.is_empty(),
            "the others were not"
        );
    });
}

#[test]
#[ignore = "run as a child process by the other tests"]
fn ends_within_a_deadline() {
    let guard = telemetry::init(&options()).expect("telemetry starts");
    tracing::info_span!(target: "mks2_test", "run").in_scope(|| {});
    let start = Instant::now();
    let clean = guard.shutdown(Duration::from_millis(300));
    println!("clean={clean} late={}", start.elapsed() > LIMIT);
}

#[test]
fn a_collector_that_does_not_answer_does_not_keep_a_process_alive() {
    // Accepts connections and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let endpoint = format!("http://{}", silent.local_addr().expect("its address"));
    // By themselves the exporters would wait for ten minutes.
    let output = child(
        "ends_within_a_deadline",
        &[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "600000"),
        ],
    );
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(printed.contains("clean=false late=false"), "{output:?}");
}
