//! A worker that trains nothing: it joins a run, reports steps and ends, as the contract says.
//! The launcher starts it like any worker: a script runs this very test program again, with the
//! test below as its only test.
//!
//! `PRETEND` says how it behaves: `finish`; `fail` at the third step (rank 1 alone); `linger`, one
//! step each 20 ms for ever; `deaf`, the same, and it does not stop when it is asked to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mks2_proto::dial::{self, PROTOCOL, Target};
use mks2_proto::env::WorkerEnv;
use mks2_proto::failure::Failure;
use mks2_proto::ids::{Incarnation, Token};
use mks2_proto::v1::{
    Directive, Failed, Finished, Generation, Heartbeat, RegisterRequest, Report, StageChanged,
    StepCommitted, StepMetrics, directive, report,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// The script that starts the pretender.
pub(crate) fn script(behaviour: &str) -> String {
    let program = std::env::current_exe().expect("this program");
    format!(
        "mkdir -p \"$0.pids\"; echo $$ > \"$0.pids/$MKS2_MEMBER_ID\"; export PRETEND={behaviour}; \
         exec '{}' --exact pretender::pretends_to_be_a_worker --nocapture",
        program.display()
    )
}

#[test]
fn pretends_to_be_a_worker() {
    let (Ok(behaviour), Ok(env)) = (std::env::var("PRETEND"), WorkerEnv::read()) else {
        return; // Run by the test harness: there is nobody to pretend to.
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let code = runtime
        .block_on(Pretender::join(env, behaviour))
        .map_or(7, |code| code);
    std::process::exit(code);
}

struct Pretender {
    env: WorkerEnv,
    behaviour: String,
    incarnation: u64,
    generation: Arc<AtomicU64>,
    rank: u32,
    reports: mpsc::Sender<Report>,
    directives: Streaming<Directive>,
}

impl Pretender {
    async fn join(env: WorkerEnv, behaviour: String) -> Result<i32, Failure> {
        let token = Token::new(&env.token).expect("a token");
        let mut client = Target::new(&env.coordinator, token).connect().await?;
        let incarnation = Incarnation::random().expect("random").0;
        let request = RegisterRequest {
            run_id: env.run_id.clone(),
            member_id: env.member_id.clone(),
            incarnation,
            host: "here".into(),
            pid: std::process::id(),
            data_address: "127.0.0.1:1".into(),
            device: "cpu".into(),
            threads: 1,
            protocol: PROTOCOL,
            program_version: "0".into(),
            generation: 0,
        };
        client.register(request).await.expect("registered");
        let (reports, stream) = mpsc::channel(16);
        let mut pretender = Self {
            env,
            behaviour,
            incarnation,
            generation: Arc::default(),
            rank: 0,
            directives: {
                let heartbeat = report::Kind::Heartbeat(Heartbeat::default());
                // The stream opens with its first report.
                let env = WorkerEnv::read()?;
                let first = Report {
                    member_id: env.member_id,
                    incarnation,
                    generation: 0,
                    kind: Some(heartbeat),
                };
                reports.send(first).await.expect("open");
                client
                    .session(ReceiverStream::new(stream))
                    .await
                    .expect("a stream")
                    .into_inner()
            },
            reports,
        };
        pretender.keep_beating();
        Ok(pretender.work().await)
    }

    fn report(&self) -> impl Fn(report::Kind) -> Report + use<> {
        let (member_id, incarnation) = (self.env.member_id.clone(), self.incarnation);
        let generation = Arc::clone(&self.generation);
        move |kind| Report {
            member_id: member_id.clone(),
            incarnation,
            generation: generation.load(Ordering::SeqCst),
            kind: Some(kind),
        }
    }

    /// Signs of life, whatever it does or waits for, until it leaves.
    fn keep_beating(&self) {
        let (reports, report) = (self.reports.downgrade(), self.report());
        tokio::spawn(async move {
            while let Some(reports) = reports.upgrade() {
                let beat = report(report::Kind::Heartbeat(Heartbeat::default()));
                let _ = reports.send(beat).await;
                drop(reports);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
    }

    async fn tell(&self, kind: report::Kind) {
        let _ = self.reports.send(self.report()(kind)).await;
    }

    /// Closes the stream in order: all that was told has arrived.
    async fn leave(&mut self) {
        self.reports = mpsc::channel(1).0;
        let rest = async { while let Ok(Some(_)) = self.directives.message().await {} };
        let _late = tokio::time::timeout(Duration::from_secs(30), rest).await;
    }

    /// Waits for the generation, then works through two stages of twenty steps.
    async fn work(&mut self) -> i32 {
        while self.generation.load(Ordering::SeqCst) == 0 {
            match self.next_directive().await {
                Some(directive::Kind::Generation(told)) => self.take_part(&known(&told)),
                Some(directive::Kind::Stop(_)) => {}
                _ => return 7,
            }
        }
        let steps = match self.behaviour.as_str() {
            "linger" | "deaf" => u64::MAX,
            _ => 20,
        };
        for step in 1..=steps {
            if step % 20 == 1 {
                let stage = if step <= 20 { "bootstrap" } else { "memory" };
                let last_step = if steps == 20 { 20 } else { step + 10_000 };
                let first_step = step - 1;
                let changed = StageChanged {
                    stage: stage.into(),
                    first_step,
                    last_step,
                };
                self.tell(report::Kind::StageChanged(changed)).await;
            }
            if self.behaviour == "fail" && self.rank == 1 && step == 3 {
                return self.fail().await;
            }
            if let Some(code) = self.heed().await {
                return code;
            }
            self.commit(step).await;
        }
        self.finish(true).await
    }

    fn take_part(&mut self, generation: &Generation) {
        self.generation.store(generation.number, Ordering::SeqCst);
        let mut members = generation.members.iter();
        let me = members.find(|m| m.member_id == self.env.member_id);
        self.rank = me.expect("a member").rank;
    }

    async fn commit(&self, step: u64) {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let metrics = (self.rank == 0).then(|| StepMetrics {
            stage: if step <= 20 { "bootstrap" } else { "memory" }.into(),
            loss: 1.0 / step as f64,
            samples: step * 16,
            ..StepMetrics::default()
        });
        self.tell(report::Kind::StepCommitted(StepCommitted { step, metrics }))
            .await;
    }

    /// What the coordinator wants by now.
    async fn heed(&mut self) -> Option<i32> {
        let waiting = tokio::time::timeout(Duration::from_millis(1), self.next_directive()).await;
        match waiting {
            Err(_) => None,
            Ok(Some(directive::Kind::Stop(_))) if self.behaviour == "deaf" => None,
            Ok(Some(directive::Kind::Stop(_))) => Some(self.finish(false).await),
            Ok(Some(directive::Kind::Generation(told))) => {
                self.take_part(&known(&told));
                None
            }
            Ok(_) => Some(7),
        }
    }

    async fn next_directive(&mut self) -> Option<directive::Kind> {
        self.directives
            .message()
            .await
            .ok()
            .flatten()
            .and_then(|directive| directive.kind)
    }

    async fn finish(&mut self, complete: bool) -> i32 {
        self.tell(report::Kind::Finished(Finished { complete }))
            .await;
        self.leave().await;
        if complete { 0 } else { 130 }
    }

    async fn fail(&mut self) -> i32 {
        let failure = Failure::data("a picture cannot be read", "row 7 is damaged", "verify it");
        self.tell(report::Kind::Failed(Failed::from(&failure)))
            .await;
        self.leave().await;
        4
    }
}

fn known(told: &tonic::codegen::Bytes) -> Generation {
    dial::generation(told).expect("a generation")
}
