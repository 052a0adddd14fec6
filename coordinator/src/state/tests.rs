//! The machine under any order of events. Its numbered invariants are checked inside after each
//! one; here are the promises that the list of actions keeps.

use proptest::prelude::*;

use super::*;
use crate::journal::Entry;

const MEMBERS: u64 = 3;

fn who(number: u64, incarnation: u64) -> Identity {
    let member = MemberId::new(&format!("worker-{number}")).expect("good");
    Identity {
        member,
        incarnation: Incarnation(incarnation),
    }
}

fn registration(who: Identity) -> Registration {
    Registration {
        who,
        run_id: None,
        generation: Generation(0),
        protocol: mks2_proto::dial::PROTOCOL,
        host: "host".into(),
        pid: 1,
        data_address: "127.0.0.1:1".into(),
        device: "cpu".into(),
    }
}

fn beat(who: Identity, generation: u64) -> Beat {
    Beat {
        who: std::sync::Arc::new(who),
        generation: Generation(generation),
        said: v1::Heartbeat::default(),
        heard: Duration::ZERO,
    }
}

/// Heartbeats have come when they are looked at.
fn heard(now: Duration, event: Event) -> Event {
    let heard = now;
    match event {
        Event::Beats(beats) => {
            let come = beats.into_iter().map(|beat| Beat { heard, ..beat });
            Event::Beats(come.collect())
        }
        other => other,
    }
}

fn failed(exit_code: u32) -> v1::report::Kind {
    v1::report::Kind::Failed(v1::Failed {
        exit_code,
        ..v1::Failed::default()
    })
}

/// A report of any kind; heartbeats come together, from the board.
fn kind() -> impl Strategy<Value = v1::report::Kind> {
    prop_oneof![
        8 => (0_u64..6).prop_map(|step| {
            v1::report::Kind::StepCommitted(v1::StepCommitted { step, metrics: None })
        }),
        1 => any::<bool>().prop_map(|complete| {
            v1::report::Kind::Finished(v1::Finished { complete })
        }),
        1 => prop_oneof![Just(7_u32), Just(4), Just(1)].prop_map(failed),
        2 => prop_oneof![Just("memory"), Just("experts")].prop_map(|stage| {
            v1::report::Kind::StageChanged(v1::StageChanged {
                stage: stage.into(),
                ..v1::StageChanged::default()
            })
        }),
        2 => prop_oneof![Just("memory"), Just("experts")].prop_map(|stage| {
            v1::report::Kind::Ready(v1::Ready { stage: stage.into() })
        }),
        1 => (0_u64..6).prop_map(|step| v1::report::Kind::AtBorder(v1::AtBorder { step })),
        1 => Just(v1::report::Kind::Leaving(v1::Leaving { reason: "away".into() })),
        1 => prop::collection::vec(0..MEMBERS + 1, 0..3).prop_map(|odd| {
            v1::report::Kind::ReplicasDiffer(v1::ReplicasDiffer {
                step: 2,
                agreed_step: 1,
                member_ids: odd.iter().map(|number| format!("worker-{number}")).collect(),
            })
        }),
        2 => (0..MEMBERS + 1).prop_map(|number| v1::report::Kind::PeerLost(v1::PeerLost {
            member_id: format!("worker-{number}"),
            why: "it cannot be reached".into(),
        })),
    ]
}

/// Any event, biased towards a run that starts.
fn event() -> impl Strategy<Value = Event> {
    let number = 0..MEMBERS + 1;
    let one = (number, 0_u64..2).prop_map(|(number, incarnation)| who(number, incarnation));
    let checkpoint = (0_u64..8, any::<bool>()).prop_map(|(step, is_final)| Checkpoint {
        step,
        stage: "memory".into(),
        is_final,
        manifest_path: String::new(),
        manifest_digest: String::new(),
        uncompared: step % 2 == 1,
    });
    prop_oneof![
        6 => one.clone().prop_map(|who| Event::Register(Ticket(0), registration(who))),
        6 => (0_u64..4, one.clone()).prop_map(|(s, who)| Event::Attach(Ticket(0), StreamId(s), who)),
        1 => (0_u64..4, one.clone()).prop_map(|(s, who)| Event::Detach(StreamId(s), who, "broke".into())),
        10 => (one.clone(), 0_u64..3, kind()).prop_map(|(who, g, kind)| Event::Report(who, Generation(g), kind)),
        3 => prop::collection::vec((one.clone(), 0_u64..3), 1..4)
            .prop_map(|beats| Event::Beats(beats.into_iter().map(|(who, g)| beat(who, g)).collect())),
        3 => (one, 0_u64..3, checkpoint.clone())
            .prop_map(|(who, g, checkpoint)| Event::Commit(Ticket(0), who, Generation(g), checkpoint)),
        2 => checkpoint.prop_map(|checkpoint| Event::ManifestWritten(Ticket(0), checkpoint)),
        1 => Just(Event::Stop(Ticket(0), "enough".into())),
        1 => (0..MEMBERS + 1).prop_map(|number| Event::Drain(Ticket(0), who(number, 0).member, "away".into())),
        1 => (0_u32..6).prop_map(|workers| Event::Scale(Ticket(0), workers)),
        3 => Just(Event::Tick),
    ]
}

fn machine(returns: bool, min: u32, on_corruption: OnCorruption) -> Machine {
    let members = u32::try_from(MEMBERS).expect("few");
    Machine::new(Config {
        run_id: RunId::new("run-1").expect("good"),
        job_name: "job".into(),
        run_url: "runs/1".into(),
        device: "cpu".into(),
        term: Term(1),
        lanes: 8,
        workers: Workers {
            start: members,
            min,
            max: members,
        },
        returns,
        on_corruption,
        total_steps: 10,
        keep_last: 1,
        last_generation: Generation(0),
        checkpoints: Checkpoints::default(),
        restored: None,
        books: Default::default(),
        limits: Limits::default(),
    })
}

/// Everybody comes.
fn start() -> Vec<(u64, Event)> {
    let come = |number| {
        let register = Event::Register(Ticket(0), registration(who(number, 0)));
        [
            (0, register),
            (
                0,
                Event::Attach(Ticket(0), StreamId(number), who(number, 0)),
            ),
        ]
    };
    (0..MEMBERS).flat_map(come).collect()
}

#[test]
fn large_runs_beat_half_as_often_and_never_too_rarely() {
    let (limits, ms) = (Limits::default(), Duration::from_millis);
    assert_eq!(limits.heartbeat_interval_of(1000), ms(100));
    assert_eq!(limits.heartbeat_interval_of(10_000), ms(200));
    let quick = Limits {
        silence: ms(400),
        ..limits
    };
    assert_eq!(quick.heartbeat_interval_of(10_000), ms(100));
}

/// Their machine is gone, or the network to it.
#[test]
fn many_that_fall_silent_together_cost_one_generation() {
    const ALL: u64 = 200;
    let mut machine = machine(false, 1, OnCorruption::Rewind);
    (machine.config.lanes, machine.wanted) = (200, 200);
    let at = |ms| Duration::from_millis(ms);
    for number in 0..ALL {
        let register = Event::Register(Ticket(0), registration(who(number, 0)));
        machine.apply(at(0), register);
        let attach = Event::Attach(Ticket(0), StreamId(number), who(number, 0));
        machine.apply(at(0), attach);
    }
    assert_eq!(machine.generation(), Generation(1));
    let mut actions = Vec::new();
    for ms in (0..1_000).step_by(100) {
        let beats = (0..ALL / 2).map(|number| beat(who(number, 0), 1));
        machine.apply(at(ms), heard(at(ms), Event::Beats(beats.collect())));
        actions.extend(machine.apply(at(ms), Event::Tick));
    }
    assert_eq!((machine.generation(), machine.size()), (Generation(2), 100));
    let dismissed = actions.iter().filter(|a| matches!(a, Action::Dismiss(..)));
    assert_eq!(dismissed.count(), 100);
    let formed = actions.iter().find_map(|action| match action {
        Action::Persist(Entry::GenerationFormed { lost, .. }) => Some(lost.len()),
        _ => None,
    });
    assert_eq!(formed, Some(100));
}

/// While thousands are told of thousands their heartbeats have no way, and nobody is silent.
#[test]
fn a_large_generation_has_time_to_be_told() {
    const ALL: u32 = 3_000;
    let mut machine = machine(false, 1, OnCorruption::Rewind);
    (machine.config.lanes, machine.wanted) = (ALL, ALL);
    for number in 0..ALL.into() {
        let register = Event::Register(Ticket(0), registration(who(number, 0)));
        machine.apply(Duration::ZERO, register);
        let attach = Event::Attach(Ticket(0), StreamId(number), who(number, 0));
        machine.apply(Duration::ZERO, attach);
    }
    assert_eq!(machine.generation(), Generation(1));
    let mut silent_at = None;
    for ms in (0..4_000).step_by(50) {
        let now = Duration::from_millis(ms);
        machine.apply(now, Event::Tick);
        if silent_at.is_none() && machine.cut_off.is_some() {
            silent_at = Some(ms);
        }
    }
    // It takes 0.9 s to tell them, and after 0.8 s more they are missed.
    assert!(
        silent_at.is_some_and(|ms| (1_650..1_800).contains(&ms)),
        "{silent_at:?}"
    );
    assert_eq!(machine.members_lost, 0);
}

/// Every request gets exactly one answer, or waits for a manifest.
fn answers(event: &Event, actions: &[Action]) -> Result<(), TestCaseError> {
    let answered = actions.iter().filter(|action| {
        matches!(
            action,
            Action::Accept(_)
                | Action::Welcome(..)
                | Action::Refuse(..)
                | Action::Committed(..)
                | Action::WriteManifest(..)
        )
    });
    let answered = answered.count();
    match event {
        Event::Register(..)
        | Event::Attach(..)
        | Event::Stop(..)
        | Event::Drain(..)
        | Event::Scale(..) => prop_assert_eq!(answered, 1),
        // A twin waits for the manifest that is being written, and is answered with it...
        Event::Commit(..) => prop_assert!(answered <= 1),
        Event::ManifestWritten(..) => prop_assert!(answered >= 1),
        // ... or refused, where the run goes back behind it.
        Event::Report(..) => {
            let refused = actions.iter();
            let refused = refused.filter(|action| matches!(action, Action::Refuse(..)));
            prop_assert_eq!(answered, refused.count());
        }
        _ => prop_assert_eq!(answered, 0),
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_order_of_events_keeps_the_promises(
        has_started in any::<bool>(),
        returns in any::<bool>(),
        min in 1_u32..4,
        evicts in any::<bool>(),
        events in prop::collection::vec((0_u64..400, event()), 1..60)
    ) {
        let on_corruption = match evicts {
            true => OnCorruption::Evict,
            false => OnCorruption::Rewind,
        };
        let mut machine = machine(returns, min, on_corruption);
        let (mut now, mut endings) = (Duration::ZERO, 0);
        let prelude = if has_started { start() } else { Vec::new() };
        for (pause, event) in prelude.into_iter().chain(events) {
            now += Duration::from_millis(pause);
            let event = heard(now, event);
            let was_over = machine.is_over();
            let actions = machine.apply(now, event.clone());
            answers(&event, &actions)?;
            let at = |wanted: fn(&Action) -> bool| actions.iter().position(wanted);
            // Recorded before it is announced.
            let announced = at(|action| matches!(action, Action::Announce(..)));
            let recorded =
                at(|a| matches!(a, Action::Persist(Entry::GenerationFormed { .. })));
            prop_assert!(recorded.is_none() || recorded < announced);
            let ended = at(|action| matches!(action, Action::Persist(
                Entry::RunFailed { .. } | Entry::RunFinished { .. } | Entry::RunStopped { .. }
            )));
            endings += usize::from(ended.is_some());
            // An end is final, and there is one.
            prop_assert!(endings <= 1);
            prop_assert!(machine.is_over() || !was_over);
            prop_assert_eq!(machine.is_over(), endings == 1);
            prop_assert!(!machine.reason().is_empty());
        }
    }
}
