//! Sessions against a real coordinator over sockets.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use mks2_coordinator::{Coordinator, Limits, Outcome, Resume, Running, Settings, Workers};
use mks2_proto::{
    env::WorkerEnv,
    failure::{ExitCode, Failure},
    ids::Token,
    job::Job,
    v1::{CheckpointRef, Phase, RunState, StepMetrics},
};
use mks2_worker::{collectives::AbortFlag, session::Session};

const TOKEN: &str = "the-token-of-the-tests";
/// Longest that a test waits for anything.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long workers look for a coordinator that they have lost.
const ORPHANAGE: Duration = Duration::from_secs(3);

fn job() -> Job {
    serde_json::from_value(serde_json::json!({
        "name": "Session test",
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

/// One that loses nobody for being silent: what it notices, it notices otherwise.
async fn coordinator(run: &Path, workers: u32) -> Running {
    coordinator_with(run, workers, PATIENCE).await
}

async fn coordinator_with(run: &Path, workers: u32, silence: Duration) -> Running {
    let settings = Settings {
        bind: SocketAddr::from(([127, 0, 0, 1], 0)),
        run_url: run.to_str().expect("text").to_owned(),
        job: job(),
        job_toml: "name = \"Session test\"\n".into(),
        corpora: BTreeMap::new(),
        workers: Workers::exactly(workers),
        returns: false,
        token: Token::new(TOKEN).expect("good"),
        resume: Resume::Auto,
        reunite: true,
        limits: Limits {
            silence,
            reunion: Duration::from_secs(5),
            orphanage: ORPHANAGE,
            ..Limits::default()
        },
    };
    Coordinator::start(settings).await.expect("started")
}

fn environment(running: &Running, rank: u32, token: &str) -> WorkerEnv {
    WorkerEnv {
        coordinator: running.endpoint(),
        token: token.into(),
        run_id: running.run_id.to_string(),
        member_id: format!("worker-{rank}"),
        data_address: "127.0.0.1:0".into(),
        data_advertise: String::new(),
        rank,
        local_rank: rank,
        world_size: 2,
        local_world_size: 2,
    }
}

async fn join(running: &Running, rank: u32) -> Session {
    let port = 9000 + u16::try_from(rank).expect("small");
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let env = environment(running, rank, TOKEN);
    Session::connect(&env, address).await.expect("joined")
}

/// Runs blocking code where it may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("no panic")
}

/// A coordinator and two sessions that have their generation.
async fn pair(run: &Path) -> (Running, Session, AbortFlag, Session) {
    pair_of(coordinator(run, 2).await).await
}

async fn pair_of(running: Running) -> (Running, Session, AbortFlag, Session) {
    let first = join(&running, 0).await;
    let second = join(&running, 1).await;
    let (first, abort, second) = blocking(move || {
        let abort = first.wait_generation(0).expect("a generation").abort;
        second.wait_generation(0).expect("a generation");
        (first, abort, second)
    })
    .await;
    (running, first, abort, second)
}

async fn until_raised(abort: &AbortFlag) {
    let began = Instant::now();
    while !abort.is_raised() {
        assert!(began.elapsed() < PATIENCE, "nobody raised it");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_trains_checkpoints_and_finishes() {
    let folder = tempfile::tempdir().expect("a folder");
    let running = coordinator(folder.path(), 1).await;
    let session = join(&running, 0).await;
    assert_eq!(session.welcome().job_toml, "name = \"Session test\"\n");
    let manifest = b"{}".to_vec();
    let checkpoint = CheckpointRef {
        step: 2,
        stage: "memory".into(),
        r#final: true,
        manifest_path: "checkpoints/step-00000002/manifest.json".into(),
        manifest_digest: blake3::hash(&manifest).to_hex().to_string(),
        uncompared: false,
    };
    let (session, abort) = blocking(move || {
        let assignment = session.wait_generation(0).expect("a generation");
        assert_eq!(
            (assignment.rank, assignment.world, assignment.generation),
            (0, 1, 1)
        );
        assert_eq!(assignment.lanes, (0..8).collect::<Vec<_>>());
        assert_eq!(assignment.addresses[0].port(), 9000);
        session.stage_changed("memory", 0, 2).expect("reported");
        for step in 1..=2 {
            let metrics = StepMetrics {
                stage: "memory".into(),
                ..StepMetrics::default()
            };
            session
                .step_committed(1, step, Some(metrics))
                .expect("reported");
        }
        (session, assignment.abort)
    })
    .await;
    let released = session
        .commit_checkpoint(checkpoint, manifest)
        .await
        .expect("committed");
    assert!(released.is_empty());
    blocking(move || session.finished(true))
        .await
        .expect("reported");
    assert!(!abort.is_raised());
    assert_eq!(running.join().await.expect("no failure"), Outcome::Finished);
    let metrics = std::fs::read_to_string(folder.path().join("metrics.jsonl")).expect("metrics");
    assert_eq!(metrics.lines().count(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_trainer_never_looks_dead_and_its_phase_is_known() {
    let folder = tempfile::tempdir().expect("a folder");
    let silence = Limits::default().silence;
    let running = coordinator_with(folder.path(), 2, silence).await;
    let (running, first, abort, second) = pair_of(running).await;
    first.set_phase(Phase::Reducing, 77);
    tokio::time::sleep(Duration::from_millis(3500)).await;
    assert!(!abort.is_raised());
    let status = running.watch.borrow().clone();
    assert_eq!(status.state(), RunState::Running);
    assert_eq!(status.members[0].phase(), Phase::Reducing);
    assert_eq!(status.members[0].collective, 77);
    drop((first, second));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_peer_ends_its_generation_and_is_named_in_the_next() {
    let folder = tempfile::tempdir().expect("a folder");
    let (running, first, abort, second) = pair(folder.path()).await;
    drop(second);
    until_raised(&abort).await;
    let reason = abort.check().expect_err("raised").to_string();
    assert!(reason.contains("worker-1 was lost"), "{reason}");
    let streams = ["it closed its stream", "its connection broke"];
    let broke = streams.iter().any(|words| reason.contains(words));
    assert!(broke, "{reason}");
    let (first, next) = blocking(move || {
        let next = first.wait_generation(1).expect("the next generation");
        (first, next)
    })
    .await;
    assert_eq!((next.generation, next.world, next.lanes.len()), (2, 1, 8));
    assert!(!next.abort.is_raised() && first.aborted().is_none());
    let status = running.watch.borrow().clone();
    assert_eq!(
        (status.state(), status.members_lost),
        (RunState::Running, 1)
    );
    assert_eq!(status.notices[0].lost_member, "worker-1");
    blocking(move || first.finished(true)).await.expect("told");
    assert_eq!(running.join().await.expect("no failure"), Outcome::Finished);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_cannot_reach_each_other_get_another_generation() {
    let folder = tempfile::tempdir().expect("a folder");
    let (running, first, _, second) = pair(folder.path()).await;
    first
        .peer_lost(1, "worker-1", "the connection was closed")
        .expect("told");
    let (first, second) = blocking(move || {
        let next = first.wait_generation(1).expect("the next generation");
        assert_eq!((next.generation, next.world), (2, 2));
        assert_eq!(second.wait_generation(1).expect("the same").generation, 2);
        // A late complaint of the generation before is no news.
        first.peer_lost(1, "worker-1", "late").expect("told");
        (first, second)
    })
    .await;
    tokio::time::sleep(Duration::from_millis(800)).await;
    let status = running.watch.borrow().clone();
    assert_eq!((status.generation, status.members_lost), (2, 0));
    drop((first, second));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_of_ones_own_is_the_cause_for_all() {
    let folder = tempfile::tempdir().expect("a folder");
    let (running, first, abort, second) = pair(folder.path()).await;
    let shown =
        blocking(move || second.failed(Failure::data("no rows", "it is empty", "import"))).await;
    assert_eq!(shown.what, "no rows");
    until_raised(&abort).await;
    let cause = first.aborted().expect("a cause");
    assert!(
        cause.what.contains("worker-1") && cause.what.contains("no rows"),
        "{cause}"
    );
    drop(first);
    assert_eq!(
        running.join().await.expect_err("failed").exit,
        ExitCode::Data
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_that_never_comes_back_ends_the_run_after_a_while() {
    let folder = tempfile::tempdir().expect("a folder");
    let (running, first, abort, _second) = pair(folder.path()).await;
    let began = Instant::now();
    drop(running);
    first.step_committed(1, 1, None).expect("kept for later");
    until_raised(&abort).await;
    let worked = began.elapsed();
    assert!(
        worked >= ORPHANAGE,
        "the work goes on without it: {worked:?}"
    );
    let cause = first.aborted().expect("a cause");
    assert_eq!(cause.exit, ExitCode::RunFailed);
    assert!(cause.what.contains("coordinator was lost"), "{cause}");
    assert!(cause.cure.contains("resumes"), "{cause}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_reaches_workers_before_and_after_the_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let (running, first, _, second) = pair(folder.path()).await;
    running.stop("Ctrl-C").await.expect("accepted");
    let began = Instant::now();
    while !(first.stop_requested() && second.stop_requested()) {
        assert!(began.elapsed() < PATIENCE, "nobody was told");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    blocking(move || first.finished(false).and_then(|()| second.finished(false)))
        .await
        .expect("told");
    assert_eq!(running.join().await.expect("no failure"), Outcome::Stopped);

    let running = coordinator(folder.path(), 2).await;
    let alone = join(&running, 0).await;
    let waiting = tokio::spawn(blocking(move || alone.wait_call(0)));
    tokio::time::sleep(Duration::from_millis(50)).await;
    running.stop("Ctrl-C").await.expect("accepted");
    let failure = waiting.await.expect("no panic").expect_err("stopped");
    assert_eq!(failure.exit, ExitCode::Stopped);
    assert!(failure.why.contains("Ctrl-C"), "{failure}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_token_is_refused_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let running = coordinator(folder.path(), 1).await;
    let env = environment(&running, 0, "another-token");
    let address = SocketAddr::from(([127, 0, 0, 1], 9000));
    let began = Instant::now();
    let refused = Session::connect(&env, address).await.expect_err("refused");
    assert_eq!(refused.exit, ExitCode::Environment);
    assert!(refused.why.contains("token"), "{refused}");
    // Where there is a chance, it is tried for half a minute.
    assert!(began.elapsed() < Duration::from_secs(20));
}
