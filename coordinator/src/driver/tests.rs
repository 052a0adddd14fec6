//! The driver with a scribe that the test plays: what waits for the store, and what does not.

use mks2_proto::{
    ids::{Generation, Incarnation, RunId},
    job::OnCorruption,
    v1::RunState,
};
use tokio::task::JoinHandle;

mod crowd;

use super::*;
use crate::Workers;
use crate::{
    journal::Entry,
    state::{Checkpoints, Config, Identity, Registration},
};

const PATIENCE: Duration = Duration::from_secs(5);

/// A driver, and the test in the scribe's place.
struct Stage {
    handle: Handle,
    tasks: mpsc::Receiver<Task>,
    done: mpsc::Sender<Done>,
    driver: JoinHandle<Result<RunState, Failure>>,
}

fn machine(workers: u32, limits: Limits) -> Machine {
    Machine::new(Config {
        run_id: RunId::new("run-1").expect("good"),
        job_name: "job".into(),
        run_url: "runs/1".into(),
        device: "cpu".into(),
        term: Term(1),
        lanes: workers,
        workers: Workers::exactly(workers),
        returns: false,
        on_corruption: OnCorruption::Rewind,
        total_steps: 10,
        keep_last: 1,
        last_generation: Generation(0),
        checkpoints: Checkpoints::default(),
        restored: None,
        books: Default::default(),
        limits,
    })
}

/// A driver that nobody runs yet.
struct Parts {
    driver: Driver,
    handle: Handle,
    tasks: mpsc::Receiver<Task>,
    done: mpsc::Sender<Done>,
}

fn parts(workers: u32, limits: Limits) -> Parts {
    let machine = machine(workers, limits);
    let (status, watch) = watch::channel(machine.status(Duration::ZERO));
    let (commands_in, commands) = mpsc::channel(COMMANDS);
    let board = Arc::new(Board::default());
    let (tasks_in, tasks) = mpsc::channel(1);
    let (done, done_out) = mpsc::channel(1);
    let wiring = Wiring {
        commands,
        tasks: tasks_in,
        done: done_out,
        status,
        board: Arc::clone(&board),
    };
    Parts {
        driver: Driver::new(machine, Term(1), limits, wiring),
        handle: Handle::new(commands_in, watch, board),
        tasks,
        done,
    }
}

fn stage(limits: Limits) -> Stage {
    let parts = parts(2, limits);
    Stage {
        handle: parts.handle,
        tasks: parts.tasks,
        done: parts.done,
        driver: tokio::spawn(parts.driver.run()),
    }
}

fn who(number: u64) -> Identity {
    let member = MemberId::new(&format!("worker-{number}")).expect("good");
    Identity {
        member,
        incarnation: Incarnation(number),
    }
}

type Received = mpsc::Receiver<Box<Result<v1::Directive, Status>>>;

impl Stage {
    async fn join(&self, number: u64) -> (StreamId, Received) {
        join(&self.handle, number).await
    }

    async fn task(&mut self) -> Task {
        tokio::time::timeout(PATIENCE, self.tasks.recv())
            .await
            .expect("in time")
            .expect("a task")
    }
}

fn registration(number: u64) -> Registration {
    Registration {
        who: who(number),
        run_id: None,
        generation: Generation(0),
        protocol: dial::PROTOCOL,
        host: "host".into(),
        pid: 1,
        data_address: "127.0.0.1:1".into(),
        device: "cpu".into(),
    }
}

async fn join(handle: &Handle, number: u64) -> (StreamId, Received) {
    let register = |reply| Command::Register(registration(number), reply);
    handle.ask(register).await.expect("accepted");
    let (directives, received) = mpsc::channel(16);
    let stream = handle.new_stream();
    let attach = |reply| Command::Attach {
        stream,
        who: who(number),
        directives,
        reply,
    };
    handle.ask(attach).await.expect("accepted");
    (stream, received)
}

async fn next(received: &mut Received) -> Kind {
    let directive = tokio::time::timeout(PATIENCE, received.recv())
        .await
        .expect("in time");
    (*directive.expect("open"))
        .expect("no refusal")
        .kind
        .expect("a kind")
}

#[tokio::test]
async fn nothing_is_announced_before_it_is_recorded() {
    let mut stage = stage(Limits::default());
    let (_, mut first) = stage.join(0).await;
    let (_, mut second) = stage.join(1).await;
    let task = stage.task().await;
    assert!(
        matches!(task, Task::Record(Entry::GenerationFormed { .. }, _)),
        "{task:?}"
    );
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(first.try_recv().is_err() && second.try_recv().is_err());
    assert_eq!(
        stage.handle.status().borrow().state(),
        RunState::WaitingForMembers
    );
    stage.done.send(Done::Fine).await.expect("listening");
    assert!(matches!(next(&mut first).await, Kind::Generation(_)));
    assert!(matches!(next(&mut second).await, Kind::Generation(_)));
}

#[tokio::test]
async fn a_slow_store_makes_nobody_look_dead_and_delays_no_abort() {
    let limits = Limits {
        silence: Duration::from_millis(300),
        ..Limits::default()
    };
    let mut stage = stage(limits);
    let (_, mut first) = stage.join(0).await;
    let (_, _second) = stage.join(1).await;
    // The store takes longer than the limit of silence; both go on beating meanwhile.
    let _unanswered = stage.task().await;
    let voices = [0, 1].map(|number| Voice::new(&stage.handle, who(number)));
    for _ in 0..10 {
        for voice in &voices {
            let beat = v1::report::Kind::Heartbeat(v1::Heartbeat::default());
            voice.say(Generation(0), beat).await;
        }
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    assert!(first.try_recv().is_err(), "nobody was lost");
    stage
        .handle
        .tell(Command::Report(who(1), Generation(1), damaged_row()))
        .await;
    let Kind::Abort(abort) = next(&mut first).await else {
        panic!("an abort was due")
    };
    assert!(abort.reason.contains("row 7 is damaged"), "{abort:?}");
}

/// What members tell needs no record: a person sees steps and alarms while the store takes its time.
#[tokio::test]
async fn a_slow_store_hides_nothing_that_members_tell() {
    let mut stage = stage(Limits {
        silence: PATIENCE,
        ..Limits::default()
    });
    let (_, _first) = stage.join(0).await;
    let (_, _second) = stage.join(1).await;
    stage.task().await;
    stage.done.send(Done::Fine).await.expect("listening");
    let committed = |step| {
        let metrics = Some(v1::StepMetrics::default());
        v1::report::Kind::StepCommitted(v1::StepCommitted { step, metrics })
    };
    let skipped = v1::CheckpointSkipped {
        step: 1,
        failure: Some((&Failure::run_failed("it is not stored", "no answer", "")).into()),
    };
    let skipped = v1::report::Kind::CheckpointSkipped(skipped);
    for kind in [committed(1), skipped, committed(2)] {
        let report = Command::Report(who(0), Generation(1), kind);
        stage.handle.tell(report).await;
    }
    let _unanswered = stage.task().await;
    let mut status = stage.handle.status();
    let told = |status: &v1::StatusResponse| {
        status.step == 2 && status.checkpoints_skipped == 1 && status.notices.len() == 1
    };
    let seen = tokio::time::timeout(PATIENCE, status.wait_for(told)).await;
    assert!(seen.expect("in time").is_ok());
    // However long it takes.
    let last = 3 * MAX_OUTBOX as u64;
    for step in 3..=last {
        let report = Command::Report(who(0), Generation(1), committed(step));
        stage.handle.tell(report).await;
    }
    let seen = tokio::time::timeout(PATIENCE, status.wait_for(|status| status.step == last)).await;
    assert!(seen.expect("in time").is_ok());
}

/// A process that was told that it may come, and was replaced before it did.
#[tokio::test]
async fn a_stream_that_is_refused_takes_no_directives_from_the_one_that_counts() {
    let mut stage = stage(Limits::default());
    let (_, mut first) = stage.join(0).await;
    let (directives, mut strangers) = mpsc::channel(16);
    let attach = |reply| Command::Attach {
        stream: stage.handle.new_stream(),
        who: Identity {
            incarnation: Incarnation(7),
            ..who(0)
        },
        directives,
        reply,
    };
    stage.handle.ask(attach).await.expect_err("another process");
    let (_, _second) = stage.join(1).await;
    stage.task().await;
    stage.done.send(Done::Fine).await.expect("listening");
    assert!(matches!(next(&mut first).await, Kind::Generation(_)));
    assert!(strangers.recv().await.is_none(), "its stream is closed");
}

fn damaged_row() -> v1::report::Kind {
    let failure = Failure::data("a picture cannot be read", "row 7 is damaged", "verify it");
    v1::report::Kind::Failed((&failure).into())
}

#[tokio::test]
async fn a_lost_journal_ends_this_coordinator_and_tells_nobody_to_end() {
    let mut stage = stage(Limits::default());
    let (stream, mut first) = stage.join(0).await;
    let (other, _second) = stage.join(1).await;
    let _unanswered = stage.task().await;
    let failure = Failure::run_failed("this coordinator has lost the run", "fenced", "leave it");
    stage
        .done
        .send(Done::Broken(failure))
        .await
        .expect("listening");
    let ended = tokio::time::timeout(PATIENCE, first.recv()).await;
    assert!(
        ended.expect("in time").is_none(),
        "its stream ends: it looks for the successor"
    );
    stage
        .handle
        .tell(Command::Detach(stream, who(0), "it left".into()))
        .await;
    stage
        .handle
        .tell(Command::Detach(other, who(1), "it left".into()))
        .await;
    let ended = tokio::time::timeout(PATIENCE, stage.driver)
        .await
        .expect("in time");
    assert!(
        ended
            .expect("no panic")
            .expect_err("failed")
            .what
            .contains("lost the run")
    );
    assert_eq!(stage.handle.status().borrow().state(), RunState::Failed);
}
