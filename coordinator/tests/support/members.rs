//! Members made of a gRPC client, and what tests start coordinators with.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{collections::BTreeMap, path::Path, time::Duration};

use mks2_coordinator::{Coordinator, Limits, Resume, Running, Settings, Workers};
use mks2_proto::{
    dial::{self, Client, PROTOCOL, Target},
    ids::Token,
    job::Job,
    v1::{self, directive, report::Kind},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Channel};

/// Longest that a test waits for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const TOKEN: &str = "the-token-of-the-tests";

fn token() -> Token {
    Token::new(TOKEN).expect("good")
}

fn job() -> Job {
    serde_json::from_value(serde_json::json!({
        "name": "Test job",
        "model": {
            "decoder": {
                "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
                "num_attention_heads": 1, "num_key_value_heads": 1, "max_text_tokens": 8
            },
            "vision": {
                "image_size": 8, "patch_size": 8, "hidden_size": 8, "intermediate_size": 8,
                "num_hidden_layers": 1, "num_attention_heads": 1, "projection_dim": 8
            },
            "text_tower": {
                "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
                "num_attention_heads": 1
            },
            "memory": { "width": 8 }
        }
    }))
    .expect("a job")
}

/// Nobody is lost for being silent: most members of the tests send no heartbeats, and the machine may be busy.
pub(crate) fn settings(run: &Path, workers: u32) -> Settings {
    Settings {
        bind: "127.0.0.1:0".parse().expect("an address"),
        run_url: run.to_str().expect("text").to_owned(),
        job: job(),
        job_toml: "name = \"Test job\"\n".into(),
        corpora: BTreeMap::new(),
        workers: Workers::exactly(workers),
        returns: false,
        token: token(),
        resume: Resume::Auto,
        reunite: false,
        limits: Limits {
            silence: PATIENCE,
            ..Limits::default()
        },
    }
}

pub(crate) async fn start(settings: Settings) -> Running {
    Coordinator::start(settings).await.expect("started")
}

pub(crate) fn target(running: &Running) -> Target {
    target_at(&running.endpoint())
}

pub(crate) fn target_at(endpoint: &str) -> Target {
    Target::new(endpoint, token())
}

/// A member without a trainer.
pub(crate) struct Member {
    pub(crate) id: String,
    incarnation: u64,
    pub(crate) generation: u64,
    pub(crate) welcome: v1::RegisterResponse,
    client: Client,
    reports: mpsc::Sender<v1::Report>,
    directives: Streaming<v1::Directive>,
}

impl Member {
    pub(crate) async fn join_all(running: &Running, count: u64) -> Vec<Self> {
        let mut members = Vec::new();
        for number in 0..count {
            members.push(Self::join(&target(running), number).await);
        }
        members
    }

    pub(crate) async fn join(target: &Target, number: u64) -> Self {
        Self::join_as(target, number, 7).await
    }

    /// The process `incarnation` of a member; it waits while a new coordinator wants it to.
    pub(crate) async fn join_as(target: &Target, number: u64, incarnation: u64) -> Self {
        let mut client = target.connect().await.expect("connected");
        let id = format!("worker-{number}");
        let request = v1::RegisterRequest {
            run_id: String::new(),
            member_id: id.clone(),
            incarnation,
            host: "localhost".into(),
            pid: 1,
            data_address: format!("127.0.0.1:{}", 9000 + number),
            device: "cpu".into(),
            threads: 1,
            protocol: PROTOCOL,
            program_version: "0".into(),
            generation: 0,
        };
        let began = std::time::Instant::now();
        let welcome = loop {
            match client.register(request.clone()).await {
                Ok(welcome) => break welcome.into_inner(),
                Err(status) => {
                    let patient = began.elapsed() < PATIENCE;
                    assert!(dial::is_transient(&status) && patient, "{status:?}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        };
        let (reports, outgoing) = mpsc::channel(8);
        let beat = Kind::Heartbeat(v1::Heartbeat::default());
        let report = report(&id, incarnation, 0, beat);
        reports.send(report).await.expect("room");
        let opened = client
            .session(ReceiverStream::new(outgoing))
            .await
            .expect("opened");
        let directives = opened.into_inner();
        Self {
            id,
            incarnation,
            generation: 0,
            welcome,
            client,
            reports,
            directives,
        }
    }

    pub(crate) async fn send(&self, kind: Kind) {
        let report = report(&self.id, self.incarnation, self.generation, kind);
        self.reports.send(report).await.expect("the stream is open");
    }

    pub(crate) async fn next(&mut self) -> Option<directive::Kind> {
        let message = tokio::time::timeout(PATIENCE, self.directives.message());
        message
            .await
            .expect("in time")
            .expect("no error")
            .and_then(|directive| directive.kind)
    }

    /// Says that it has committed a step.
    pub(crate) async fn committed(&self, step: u64) {
        let metrics = Some(v1::StepMetrics::default());
        self.send(Kind::StepCommitted(v1::StepCommitted { step, metrics }))
            .await;
    }

    /// News of the first steps.
    pub(crate) async fn committed_up_to(&self, last: u64) {
        for step in 1..=last {
            self.committed(step).await;
        }
    }

    /// The generation that is announced.
    pub(crate) async fn generation(&mut self) -> v1::Generation {
        match self.next().await {
            Some(directive::Kind::Generation(announced)) => {
                let generation = dial::generation(&announced).expect("a generation");
                self.generation = generation.number;
                generation
            }
            other => panic!("a generation was due, not {other:?}"),
        }
    }

    pub(crate) async fn abort(&mut self) -> v1::Abort {
        match self.next().await {
            Some(directive::Kind::Abort(abort)) => abort,
            other => panic!("an abort was due, not {other:?}"),
        }
    }

    /// Closes the stream in order: everything sent before has arrived.
    pub(crate) async fn leave(self) {
        let Self {
            reports,
            mut directives,
            ..
        } = self;
        drop(reports);
        let rest = async { while let Ok(Some(_)) = directives.message().await {} };
        tokio::time::timeout(PATIENCE, rest).await.expect("in time");
    }

    /// Sends heartbeats until the member is dropped.
    pub(crate) fn keep_beating(&self) {
        let (reports, id) = (self.reports.downgrade(), self.id.clone());
        let (incarnation, generation) = (self.incarnation, self.generation);
        tokio::spawn(async move {
            while let Some(reports) = reports.upgrade() {
                let beat = Kind::Heartbeat(v1::Heartbeat::default());
                let beat = report(&id, incarnation, generation, beat);
                if reports.send(beat).await.is_err() {
                    return;
                }
                drop(reports);
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        });
    }
}

fn report(member_id: &str, incarnation: u64, generation: u64, kind: Kind) -> v1::Report {
    v1::Report {
        member_id: member_id.into(),
        incarnation,
        generation,
        kind: Some(kind),
    }
}

/// Commits a checkpoint whose manifest is made up.
pub(crate) async fn commit(
    member: &mut Member,
    step: u64,
    stage: &str,
    r#final: bool,
) -> Result<Vec<v1::CheckpointRef>, Status> {
    let manifest = format!("{{\"step\":{step}}}").into_bytes();
    let began = std::time::Instant::now();
    let request = v1::CommitCheckpointRequest {
        member_id: member.id.clone(),
        incarnation: 7,
        generation: member.generation,
        checkpoint: Some(v1::CheckpointRef {
            step,
            stage: stage.into(),
            r#final,
            manifest_path: format!("checkpoints/step-{step:08}/manifest.json"),
            manifest_digest: blake3::hash(&manifest).to_hex().to_string(),
            uncompared: false,
        }),
        manifest,
    };
    loop {
        let answer = member.client.commit_checkpoint(request.clone()).await;
        // The news of the step may be behind it.
        let is_early = |status: &Status| {
            dial::refusal(status).is_some_and(|no| no.reason() == v1::RefusalReason::Reunion)
        };
        match answer {
            Err(status) if is_early(&status) && began.elapsed() < PATIENCE => {}
            other => return Ok(other?.into_inner().released),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Steps of the lines of `metrics.jsonl`.
pub(crate) fn metric_steps(run: &Path) -> Vec<u64> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    let step = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).expect("json");
        line["step"].as_u64().expect("a step")
    };
    text.lines().map(step).collect()
}

macro_rules! services {
    ($name:ident, $pb:ident) => {
        /// Names of the services, as reflection lists them.
        pub(crate) async fn $name(channel: Channel) -> String {
            use tonic_reflection::pb::$pb::{
                ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
                server_reflection_request::MessageRequest,
            };
            let request = ServerReflectionRequest {
                host: String::new(),
                message_request: Some(MessageRequest::ListServices(String::new())),
            };
            let requests = tokio_stream::iter([request]);
            let mut client = ServerReflectionClient::new(channel);
            let answer = client
                .server_reflection_info(requests)
                .await
                .expect("answered");
            let first = answer
                .into_inner()
                .message()
                .await
                .expect("open")
                .expect("a message");
            format!("{first:?}")
        }
    };
}

services!(services_v1, v1);
services!(services_v1alpha, v1alpha);
