//! The state machine against scenarios in text files: lines with `>` are events with their time
//! in seconds, the lines below are the actions. `MKS2_REWRITE=1 cargo test -p mks2-coordinator
//! --test scenarios` writes the actions again; read the difference before committing it.

use std::{collections::BTreeMap, fmt::Write, fs, path::Path, sync::Arc, time::Duration};

use mks2_coordinator::{
    journal::{Entry, GenerationMember, Working},
    state::{
        Action, Beat, Checkpoint, Checkpoints, Config, Event, Identity, Limits, Machine, Refused,
        Registration, StreamId, Ticket, Welcome, Workers,
    },
};
use mks2_proto::{
    failure::{ExitCode, Failure},
    ids::{Generation, Incarnation, MemberId, RunId, Term},
    job::OnCorruption,
    v1::{self, report::Kind},
};

#[test]
fn every_scenario_gives_its_actions() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut differences = String::new();
    for entry in fs::read_dir(&folder).expect("the scenarios") {
        let path = entry.expect("an entry").path();
        let text = fs::read_to_string(&path).expect("a scenario");
        let played = play(&text);
        if std::env::var_os("MKS2_REWRITE").is_some() {
            fs::write(&path, &played).expect("the source tree is writable");
        } else if played != text {
            let _ = writeln!(differences, "{}:\n{played}", path.display());
        }
    }
    assert!(
        differences.is_empty(),
        "scenarios differ; they give now:\n{differences}"
    );
}

/// The scenario with its actions, as the machine gives them.
fn play(text: &str) -> String {
    let mut machine: Option<Machine> = None;
    let mut clerk = Clerk::default();
    let mut played = String::new();
    for line in text.lines() {
        let is_output =
            !(line.is_empty() || line.starts_with(['#', '>']) || line.starts_with("run "));
        if is_output {
            continue;
        }
        let _ = writeln!(played, "{line}");
        if let Some(options) = line.strip_prefix("run ") {
            machine = Some(Machine::new(config(options)));
        }
        let (Some(event), Some(machine)) = (line.strip_prefix("> "), &mut machine) else {
            continue;
        };
        let (now, event) = clerk.event(event);
        for action in machine.apply(now, event) {
            let _ = writeln!(played, "{}", clerk.note(&action));
        }
    }
    played
}

/// `key=value` options.
fn options(text: &str) -> BTreeMap<&str, &str> {
    text.split_whitespace()
        .filter_map(|option| option.split_once('='))
        .collect()
}

fn config(text: &str) -> Config {
    let options = options(text);
    let number = |key: &str, default: u64| {
        options
            .get(key)
            .map_or(default, |text| text.parse().expect("a number"))
    };
    let mut checkpoints = Checkpoints::default();
    for text in options
        .get("checkpoints")
        .unwrap_or(&"")
        .split(',')
        .filter(|t| !t.is_empty())
    {
        let step = text.trim_end_matches('f').parse().expect("a step");
        checkpoints.insert(checkpoint(step, "memory", text.ends_with('f')));
    }
    Config {
        run_id: RunId::new("run-1").expect("good"),
        job_name: "job".into(),
        run_url: "runs/1".into(),
        device: "cpu".into(),
        term: Term(1),
        lanes: u32::try_from(number("lanes", 8)).expect("few"),
        workers: options
            .get("workers")
            .map_or(Ok(Workers::exactly(2)), |text| text.parse())
            .expect("workers"),
        returns: options.contains_key("returns"),
        on_corruption: match options.contains_key("evict") {
            true => OnCorruption::Evict,
            false => OnCorruption::Rewind,
        },
        total_steps: 100,
        keep_last: usize::try_from(number("keep_last", 2)).expect("few"),
        last_generation: Generation(number("generation", 0)),
        checkpoints,
        restored: restored(&options),
        books: Default::default(),
        limits: Limits {
            reunion: Duration::from_secs(5),
            stall: Duration::from_secs(number("stall", 600)),
            fruitless: u32::try_from(number("fruitless", 32)).expect("few"),
            ..Limits::default()
        },
    }
}

/// `working=2 measured=7`: that many members, worker-0 with incarnation 10 and so on, were at work
/// in `generation` under an earlier coordinator, which has measured so many steps.
fn restored(options: &BTreeMap<&str, &str>) -> Option<(Working, u64)> {
    let number = |key: &str| -> Option<u64> { options.get(key)?.parse().ok() };
    let members = u32::try_from(number("working")?).expect("few");
    let lanes = u32::try_from(number("lanes").unwrap_or(8)).expect("few");
    let member = |rank: u32| GenerationMember {
        member: MemberId::new(&format!("worker-{rank}")).expect("good"),
        incarnation: Incarnation(10 + u64::from(rank)),
        host: "host-a".into(),
        data_address: format!("127.0.0.1:{}", 9010 + rank),
        lanes: (rank * lanes / members..(rank + 1) * lanes / members).collect(),
    };
    let working = Working {
        generation: Generation(number("generation")?),
        members: (0..members).map(member).collect(),
        after_step: 0,
        stop: None,
    };
    Some((working, number("measured").unwrap_or_default()))
}

fn checkpoint(step: u64, stage: &str, is_final: bool) -> Checkpoint {
    Checkpoint {
        step,
        stage: stage.into(),
        is_final,
        manifest_path: format!("checkpoints/step-{step:08}/manifest.json"),
        manifest_digest: "0".repeat(64),
        uncompared: false,
    }
}

/// Reads events, and remembers the commits that wait for their manifest.
#[derive(Default)]
struct Clerk {
    tickets: u64,
    commits: Vec<(Ticket, Checkpoint)>,
}

impl Clerk {
    fn event(&mut self, line: &str) -> (Duration, Event) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let now = Duration::from_secs_f64(words[0].parse().expect("seconds"));
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        let who = || Identity {
            member: MemberId::new(words[2]).expect("a name"),
            incarnation: Incarnation(words[3].parse().expect("an incarnation")),
        };
        let number = |at: usize| -> u64 { words[at].parse().expect("a number") };
        let rest = |at: usize| words[at..].join(" ");
        let event = match words[1] {
            "register" => Event::Register(ticket, registration(who(), line)),
            "attach" => Event::Attach(ticket, StreamId(number(4)), who()),
            "detach" => Event::Detach(StreamId(number(4)), who(), rest(5)),
            "exited" => Event::Exited(MemberId::new(words[2]).expect("a name"), rest(3)),
            "commit" => {
                let is_final = words.get(7) == Some(&"final");
                let mut checkpoint = checkpoint(number(5), words[6], is_final);
                checkpoint.uncompared = words.contains(&"uncompared");
                Event::Commit(ticket, who(), Generation(number(4)), checkpoint)
            }
            "written" => {
                let (ticket, checkpoint) = self.commits.remove(0);
                Event::ManifestWritten(ticket, checkpoint)
            }
            "write-failed" => {
                let (ticket, checkpoint) = self.commits.remove(0);
                Event::ManifestFailed(
                    ticket,
                    checkpoint.step,
                    Failure::storage("not written", rest(2), "look"),
                )
            }
            "drain" => Event::Drain(ticket, MemberId::new(words[2]).expect("a name"), rest(3)),
            "scale" => Event::Scale(ticket, u32::try_from(number(2)).expect("few")),
            "stop" => Event::Stop(ticket, rest(2)),
            "broken" => Event::Broken(Failure::storage("the journal is lost", rest(2), "look")),
            "tick" => Event::Tick,
            "beat" => Event::Beats(vec![Beat {
                who: Arc::new(who()),
                generation: Generation(number(4)),
                said: heartbeat(line),
                heard: now,
            }]),
            _ => Event::Report(who(), Generation(number(4)), said(&words, line)),
        };
        (now, event)
    }

    fn note(&mut self, action: &Action) -> String {
        if let Action::WriteManifest(ticket, checkpoint) = action {
            self.commits.push((*ticket, checkpoint.clone()));
        }
        note(action)
    }
}

/// What a member reports: the word, the member, its incarnation, the generation, and the rest.
fn said(words: &[&str], line: &str) -> Kind {
    let number = |at: usize| -> u64 { words[at].parse().expect("a number") };
    let rest = |at: usize| words[at..].join(" ");
    match words[1] {
        "step" => Kind::StepCommitted(step(number(5), line)),
        "finished" => Kind::Finished(v1::Finished {
            complete: words[5] == "complete",
        }),
        "failed" => Kind::Failed(failed(number(5), rest(6))),
        "blames" => Kind::PeerLost(v1::PeerLost {
            member_id: words[5].replace("nobody", ""),
            why: rest(6),
        }),
        "skipped" => Kind::CheckpointSkipped(v1::CheckpointSkipped {
            step: number(5),
            failure: Some(failed(5, rest(6))),
        }),
        "stage" => Kind::StageChanged(v1::StageChanged {
            stage: words[5].into(),
            ..v1::StageChanged::default()
        }),
        "ready" => Kind::Ready(v1::Ready {
            stage: words[5].into(),
        }),
        "differ" => Kind::ReplicasDiffer(v1::ReplicasDiffer {
            step: number(5),
            agreed_step: number(6),
            member_ids: words[7..].iter().map(ToString::to_string).collect(),
        }),
        "at-border" => Kind::AtBorder(v1::AtBorder { step: number(5) }),
        "leaving" => Kind::Leaving(v1::Leaving { reason: rest(5) }),
        other => panic!("unknown event {other}"),
    }
}

fn registration(who: Identity, line: &str) -> Registration {
    let options = options(line);
    Registration {
        run_id: options.get("run").map(|id| RunId::new(id).expect("good")),
        protocol: options
            .get("protocol")
            .map_or(mks2_proto::dial::PROTOCOL, |text| {
                text.parse().expect("a number")
            }),
        generation: Generation(
            options
                .get("generation")
                .map_or(0, |text| text.parse().expect("a number")),
        ),
        host: "host-a".into(),
        pid: u32::try_from(who.incarnation.0).expect("small"),
        data_address: format!("127.0.0.1:{}", 9000 + who.incarnation.0),
        device: "cpu".into(),
        who,
    }
}

fn heartbeat(line: &str) -> v1::Heartbeat {
    let options = options(line);
    let name = options
        .get("phase")
        .map_or("PHASE_COMPUTING".to_owned(), |phase| {
            format!("PHASE_{}", phase.to_uppercase())
        });
    let phase = v1::Phase::from_str_name(&name).expect("a phase").into();
    let number = |key: &str| {
        let text = options.get(key);
        text.map_or(0, |text| text.parse().expect("a number"))
    };
    v1::Heartbeat {
        step: number("step"),
        phase,
        collective: number("collective"),
        spent: None,
        waits_for: options
            .get("waits")
            .map(|text| text.parse().expect("a rank")),
    }
}

fn step(step: u64, line: &str) -> v1::StepCommitted {
    let metrics = line.ends_with("metrics").then(v1::StepMetrics::default);
    v1::StepCommitted { step, metrics }
}

fn failed(exit_code: u64, why: String) -> v1::Failed {
    let exit_code = u32::try_from(exit_code).expect("small");
    v1::Failed {
        what: "it failed".into(),
        why,
        cure: "look".into(),
        exit_code,
    }
}

fn words(failure: &Failure) -> String {
    let exit = failure.exit.code();
    assert!(ExitCode::ALL.contains(&failure.exit));
    format!(
        "{}\n    why: {}\n    fix: {} (exit {exit})",
        failure.what, failure.why, failure.cure
    )
}

fn refusal(refused: &Refused) -> String {
    let name = refused
        .reason
        .as_str_name()
        .trim_start_matches("REFUSAL_REASON_");
    format!("{name}: {}", words(&refused.failure))
}

fn note(action: &Action) -> String {
    match action {
        Action::Persist(entry) => format!("  persist {}", record(entry)),
        Action::WriteManifest(_, checkpoint) => format!("  write {}", checkpoint.manifest_path),
        Action::Measure {
            generation, step, ..
        } => format!("  measure step {step}, generation {generation}"),
        Action::Accept(_) => "  accept".to_owned(),
        Action::Welcome(_, welcome) => self::welcome(welcome),
        Action::Committed(_, released) => {
            let steps: Vec<_> = released.iter().map(|checkpoint| checkpoint.step).collect();
            format!("  committed, released {steps:?}")
        }
        Action::Refuse(_, refused) => format!("  refuse {}", refusal(refused)),
        Action::Announce(member, generation) => {
            format!("  announce to {member} generation {}", members(generation))
        }
        Action::AskToStop(member, reason) => format!("  ask {member} to stop: {reason}"),
        Action::Invite(member, invitation) => {
            let finished: Vec<_> = invitation.finished_stages.iter().map(|c| c.step).collect();
            let stage = &invitation.stage;
            format!("  invite {member} to stage {stage}, behind steps {finished:?}")
        }
        Action::AskToRegroup(member, reason) => {
            format!("  ask {member} to meet at a border: {reason}")
        }
        Action::Hold(member, reason) => format!("  hold {member}: {reason}"),
        Action::LetGo(member, reason) => format!("  let {member} go: {reason}"),
        Action::Reject(member, refused) => format!("  reject {member} {}", refusal(refused)),
        Action::Abort(member, abortion) => {
            let lost = abortion.lost.as_ref().map_or("nobody", MemberId::as_str);
            format!(
                "  abort {member}, lost {lost}: {}",
                words(&abortion.failure)
            )
        }
        Action::Dismiss(member, abortion) => {
            format!("  dismiss {member}: {}", words(&abortion.failure))
        }
        Action::Close(stream) => format!("  close stream {}", stream.0),
        Action::Tell(what, why) => format!("  tell {what}\n    why: {why}"),
        Action::Explain(reason) => format!("  because {reason}"),
    }
}

fn welcome(welcome: &Welcome) -> String {
    let place = welcome.resume_from.as_ref().map_or(0, |from| from.step);
    match welcome.is_candidate {
        true => "  welcome as a candidate".to_owned(),
        false => format!("  welcome, from step {place}"),
    }
}

fn members(generation: &v1::Generation) -> String {
    let member = |m: &v1::Member| format!("{}={}:{:?}", m.rank, m.member_id, m.lanes);
    let members: Vec<_> = generation.members.iter().map(member).collect();
    let (number, step) = (generation.number, generation.after_step);
    format!("{number} after step {step}: {}", members.join(" "))
}

fn record(entry: &Entry) -> String {
    match entry {
        Entry::GenerationFormed {
            generation,
            members,
            after_step,
            lost,
            left,
            joined,
        } => {
            let (size, lost) = (members.len(), lost.len());
            let mut words = format!("generation {generation} of {size} members, {lost} lost");
            for (ids, what) in [(left, "left"), (joined, "joined")] {
                if !ids.is_empty() {
                    let _ = write!(words, ", {} {what}", ids.len());
                }
            }
            format!("{words}, after step {after_step}")
        }
        Entry::CheckpointCommitted {
            checkpoint,
            released,
        } => {
            format!("checkpoint {} released {released:?}", checkpoint.step)
        }
        other => serde_json::to_string(other).expect("json"),
    }
}
