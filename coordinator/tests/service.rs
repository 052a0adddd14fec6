//! The coordinator over real sockets, with members made of a gRPC client.

#[path = "support/members.rs"]
mod support;

use std::time::Duration;

use mks2_coordinator::{Coordinator, Outcome, Resume};
use mks2_proto::{
    dial::{self, Target},
    failure::ExitCode,
    ids::{MemberId, Token},
    v1::{self, RefusalReason, RunState, directive, report::Kind},
};
use support::{Member, commit, settings, start, target};
use tonic::Code;

#[tokio::test]
async fn members_register_and_a_generation_forms() {
    let folder = tempfile::tempdir().expect("a folder");
    let running = start(settings(folder.path(), 3)).await;
    let mut members = Member::join_all(&running, 3).await;
    for (rank, member) in (0..).zip(&mut members) {
        let generation = member.generation().await;
        assert_eq!(generation.number, 1);
        let mine = &generation.members[rank];
        assert_eq!(mine.member_id, member.id);
        let lanes: usize = generation.members.iter().map(|m| m.lanes.len()).sum();
        assert_eq!(lanes, 8);
    }
    let status = running.watch.borrow().clone();
    assert_eq!(status.state(), RunState::Running);
    assert_eq!(status.members.len(), 3);
    for member in members {
        member
            .send(Kind::Finished(v1::Finished { complete: true }))
            .await;
        member.leave().await;
    }
    assert_eq!(running.join().await.expect("no failure"), Outcome::Finished);
}

#[tokio::test]
async fn a_broken_connection_is_noticed_and_the_others_go_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let running = start(settings(folder.path(), 2)).await;
    let mut members = Member::join_all(&running, 2).await;
    for member in &mut members {
        member.generation().await;
    }
    drop(members.pop().expect("two members"));
    let next = members[0].generation().await;
    assert_eq!((next.number, next.members.len()), (2, 1));
    assert_eq!(next.lost, ["worker-1"]);
    let reason = &next.reason;
    assert!(reason.contains("worker-1 was lost"), "{reason}");
    let streams = ["it closed its stream", "its connection broke"];
    let broke = streams.iter().any(|words| reason.contains(words));
    assert!(broke, "{reason}");
    drop(members);
    let failure = running.join().await.expect_err("the last one was lost");
    assert_eq!(failure.exit, ExitCode::RunFailed);
    assert!(failure.what.contains("worker-0 was lost"), "{failure}");
    assert!(failure.cure.contains("same command"), "{failure}");
}

#[tokio::test]
async fn silence_is_noticed_and_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut settings = settings(folder.path(), 2);
    // Fifteen heartbeats of the one that is not silent.
    settings.limits.silence = Duration::from_secs(3);
    let running = start(settings).await;
    let mut members = Member::join_all(&running, 2).await;
    for member in &mut members {
        member.generation().await;
    }
    members[0].keep_beating();
    let next = members[0].generation().await;
    assert_eq!(next.lost, ["worker-1"]);
    let told = members[1].abort().await.reason;
    let (_, silence) = told
        .split_once("nothing was heard of it for ")
        .expect("why it was lost");
    let seconds = silence.split(' ').next().expect("a number").parse::<f64>();
    assert!(seconds.expect("seconds") >= 3.0, "{told}");
}

#[tokio::test]
async fn a_stale_generation_is_refused_by_type() {
    let folder = tempfile::tempdir().expect("a folder");
    let running = start(settings(folder.path(), 1)).await;
    let mut members = Member::join_all(&running, 1).await;
    let member = &mut members[0];
    member.generation().await;
    member.generation = 9;
    member
        .send(Kind::StepCommitted(v1::StepCommitted {
            step: 1,
            metrics: None,
        }))
        .await;
    let Some(directive::Kind::Refused(refusal)) = member.next().await else {
        panic!("a refusal was due");
    };
    assert_eq!(refusal.reason(), RefusalReason::StaleGeneration);
    assert_eq!(refusal.generation, 1);
    let status = commit(member, 5, "memory", false).await.expect_err("stale");
    assert_eq!(status.code(), Code::FailedPrecondition);
    let refusal = dial::refusal(&status).expect("typed");
    assert_eq!(refusal.reason(), RefusalReason::StaleGeneration);
}

#[tokio::test]
async fn a_wrong_token_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let running = start(settings(folder.path(), 1)).await;
    let wrong = Token::new("not-the-token").expect("good");
    let mut client = Target::new(running.endpoint(), wrong)
        .connect()
        .await
        .expect("connected");
    let status = client
        .status(v1::StatusRequest {})
        .await
        .expect_err("refused");
    assert_eq!(status.code(), Code::Unauthenticated);
    assert_eq!(dial::failure(&status).exit, ExitCode::Environment);
    let mut client = target(&running).connect().await.expect("connected");
    client.status(v1::StatusRequest {}).await.expect("let in");
}

#[tokio::test]
async fn health_and_both_reflections_answer_without_a_token() {
    let folder = tempfile::tempdir().expect("a folder");
    let running = start(settings(folder.path(), 1)).await;
    let channel = tonic::transport::Endpoint::from_shared(running.endpoint())
        .expect("an address")
        .connect()
        .await
        .expect("connected");
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
    let service = "mks2.v1.Coordinator".to_owned();
    let answer = health
        .check(tonic_health::pb::HealthCheckRequest { service })
        .await;
    let serving = tonic_health::pb::health_check_response::ServingStatus::Serving;
    assert_eq!(answer.expect("healthy").into_inner().status(), serving);
    assert!(
        support::services_v1(channel.clone())
            .await
            .contains("mks2.v1.Coordinator")
    );
    assert!(
        support::services_v1alpha(channel)
            .await
            .contains("mks2.v1.Coordinator")
    );
}

#[tokio::test]
async fn stop_and_watch_work_from_outside() {
    let folder = tempfile::tempdir().expect("a folder");
    let running = start(settings(folder.path(), 1)).await;
    let mut client = target(&running).connect().await.expect("connected");
    let request = v1::WatchRequest {
        min_interval_ms: 50,
    };
    let mut watch = client.watch(request).await.expect("watching").into_inner();
    let first = watch.message().await.expect("open").expect("a status");
    assert_eq!(first.state(), RunState::WaitingForMembers);
    assert!(first.reason.contains("0 of 1"), "{}", first.reason);
    let mut members = Member::join_all(&running, 1).await;
    members[0].generation().await;
    client
        .stop(v1::StopRequest {
            reason: "enough".into(),
        })
        .await
        .expect("accepted");
    let Some(directive::Kind::Stop(stop)) = members[0].next().await else {
        panic!("a stop was due");
    };
    assert_eq!(stop.reason, "enough");
    let member = members.remove(0);
    member
        .send(Kind::Finished(v1::Finished { complete: false }))
        .await;
    member.leave().await;
    let mut last = first;
    while let Ok(Some(status)) = watch.message().await {
        last = status;
    }
    assert_eq!(last.state(), RunState::Stopped);
    assert_eq!(running.join().await.expect("no failure"), Outcome::Stopped);
}

#[tokio::test]
async fn what_the_launcher_saw_is_the_cause() {
    let folder = tempfile::tempdir().expect("a folder");
    let running = start(settings(folder.path(), 1)).await;
    let mut members = Member::join_all(&running, 1).await;
    members[0].generation().await;
    let id = MemberId::new("worker-0").expect("good");
    running
        .member_exited(&id, "it was killed by signal 9")
        .await;
    drop(members);
    let failure = running.join().await.expect_err("lost");
    assert!(
        failure.why.starts_with("it was killed by signal 9"),
        "{failure}"
    );
}

#[tokio::test]
async fn a_taken_port_and_too_many_workers_are_said() {
    let folder = tempfile::tempdir().expect("a folder");
    let running = start(settings(folder.path(), 1)).await;
    let mut taken = settings(folder.path(), 1);
    taken.bind = running.address;
    let failure = Coordinator::start(taken).await.expect_err("taken");
    assert_eq!(failure.exit, ExitCode::Environment);
    assert!(
        failure.what.contains(&running.address.to_string()),
        "{failure}"
    );
    let failure = Coordinator::start(settings(folder.path(), 9))
        .await
        .expect_err("too many");
    assert_eq!(failure.exit, ExitCode::Settings);
    assert!(failure.why.contains("8 lanes"), "{failure}");
}

#[tokio::test]
async fn a_second_coordinator_fences_the_first() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = start(settings(folder.path(), 1)).await;
    let mut members = Member::join_all(&first, 1).await;
    members[0].generation().await;
    let second = start(settings(folder.path(), 1)).await;
    assert_eq!(second.term.0, 2);
    members[0].committed_up_to(5).await;
    let status = commit(&mut members[0], 5, "memory", false)
        .await
        .expect_err("fenced");
    assert!(
        dial::is_transient(&status),
        "the successor may take it: {status:?}"
    );
    drop(members);
    let failure = first.join().await.expect_err("fenced");
    assert!(
        failure.what.contains("lost the run to another"),
        "{failure}"
    );
}

#[tokio::test]
async fn a_restart_resumes_from_the_latest_checkpoint() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = start(settings(folder.path(), 1)).await;
    let mut members = Member::join_all(&first, 1).await;
    let member = &mut members[0];
    assert_eq!(member.welcome.resume_from, None);
    member.generation().await;
    for step in 1..=6 {
        let metrics = Some(v1::StepMetrics {
            stage: "memory".into(),
            ..Default::default()
        });
        member
            .send(Kind::StepCommitted(v1::StepCommitted { step, metrics }))
            .await;
        if step == 2 || step == 4 {
            commit(member, step, "memory", step == 2)
                .await
                .expect("committed");
        }
    }
    members.remove(0).leave().await;
    let failure = first.join().await.expect_err("its worker was lost");
    assert!(failure.cure.contains("step 4"), "{failure}");
    assert_eq!(support::metric_steps(folder.path()), [1, 2, 3, 4, 5, 6]);

    let second = start(settings(folder.path(), 1)).await;
    assert_eq!(second.resumed_from.as_ref().map(|from| from.step), Some(4));
    assert_eq!(support::metric_steps(folder.path()), [1, 2, 3, 4]);
    let mut members = Member::join_all(&second, 1).await;
    let welcome = &members[0].welcome;
    assert_eq!(
        welcome
            .finished_stages
            .iter()
            .map(|f| f.step)
            .collect::<Vec<_>>(),
        [2]
    );
    assert_eq!(members[0].generation().await.number, 2);
}

#[tokio::test]
async fn a_run_directory_is_not_mixed_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = start(settings(folder.path(), 1)).await;
    let mut members = Member::join_all(&first, 1).await;
    members[0].generation().await;
    members[0].committed_up_to(7).await;
    for step in [3, 5, 7] {
        commit(&mut members[0], step, "memory", true)
            .await
            .expect("committed");
    }
    drop(members);
    drop(first);

    let mut never = settings(folder.path(), 1);
    never.resume = Resume::Never;
    let failure = Coordinator::start(never).await.expect_err("in use");
    assert_eq!(failure.exit, ExitCode::Usage);
    let mut other = settings(folder.path(), 1);
    other.job.seed += 1;
    let failure = Coordinator::start(other).await.expect_err("another job");
    assert_eq!(failure.exit, ExitCode::Checkpoint);
    let mut missing = settings(folder.path(), 1);
    missing.resume = Resume::Step(4);
    let failure = Coordinator::start(missing).await.expect_err("no such step");
    assert!(failure.why.contains("3, 5, 7"), "{failure}");

    let mut back = settings(folder.path(), 1);
    back.resume = Resume::Step(5);
    let rewound = start(back).await;
    assert_eq!(rewound.resumed_from.as_ref().map(|from| from.step), Some(5));
    assert!(
        !folder
            .path()
            .join("checkpoints/step-00000007/manifest.json")
            .exists()
    );
    assert!(
        folder
            .path()
            .join("checkpoints/step-00000005/manifest.json")
            .exists()
    );
}

#[tokio::test]
async fn a_directory_without_a_checkpoint_gives_way_to_another_job() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = start(settings(folder.path(), 1)).await;
    let run_id = first.run_id.clone();
    drop(first);

    let mut other = settings(folder.path(), 1);
    other.job.seed += 1;
    let second = start(other).await;
    assert_ne!(second.run_id, run_id);
    let mut members = Member::join_all(&second, 1).await;
    members[0].generation().await;
    members[0].committed_up_to(3).await;
    commit(&mut members[0], 3, "memory", true)
        .await
        .expect("committed");
    drop(members);
    drop(second);

    let failure = Coordinator::start(settings(folder.path(), 1))
        .await
        .expect_err("the first job has lost its place");
    assert_eq!(failure.exit, ExitCode::Checkpoint);
}
