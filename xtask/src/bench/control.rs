//! The control plane beside torchft's lighthouse, driven by the same crowd.
//!
//! The lighthouse is the program that `MKS2_LIGHTHOUSE` names, or comes from the package index of
//! Python, once per user. Without it ours is measured alone.

use std::fs;

use super::plans::{Against, Plan, Row, Side, row, words};
use crate::fault::{Fault, Outcome};
use crate::{places, python, shell, ui};

/// The program of the user's choice.
const LIGHTHOUSE: &str = "MKS2_LIGHTHOUSE";
const TORCHFT: &str = "torchft==0.2.0";

/// Members whose heartbeats are measured, and those of the generation that is.
const MEMBERS: &str = "10000";
const GENERATION: &str = "1024";

pub(super) fn plans() -> Vec<Plan> {
    let lighthouse = match lighthouse() {
        Ok(words) => Some(words),
        Err(fault) => {
            ui::say(format_args!(
                "torchft's lighthouse is not there, and ours is measured alone: {fault}"
            ));
            None
        }
    };
    let crowd = |members: &str| words(&["--members", members]);
    let peer = lighthouse.map(|program| {
        let first = [words(&["lighthouse"]), crowd(MEMBERS), words(&["--"])];
        Side::Crowd(first.into_iter().flatten().chain(program).collect())
    });
    let mut rows = vec![row(
        "the coordinator's core in a second of 10,000 members' heartbeats",
        "/beating_share",
        own("a second", "/second"),
        2.0,
    )];
    if peer.is_some() {
        rows.push(heartbeat());
    }
    let ours = |members| Side::Crowd([words(&["coordinator"]), crowd(members)].concat());
    vec![
        Plan {
            title: "Heartbeats of 10,000 members",
            ours: ours(MEMBERS),
            peer,
            rows,
        },
        Plan {
            title: "A generation of 1,024 members",
            ours: ours(GENERATION),
            peer: None,
            rows: vec![row(
                "from the last arrival until all have it",
                "/forming_ms",
                own("a tenth of a second", "/forming_limit_ms"),
                1.0,
            )],
        },
    ]
}

fn heartbeat() -> Row {
    let lighthouse = Against::Peer {
        name: "lighthouse",
        place: "/beat_cpu_seconds",
    };
    row(
        "the server's time for a heartbeat",
        "/beat_cpu_seconds",
        lighthouse,
        5.0,
    )
}

fn own(name: &'static str, place: &'static str) -> Against {
    Against::Own { name, place }
}

/// The command that starts a lighthouse.
fn lighthouse() -> Outcome<Vec<String>> {
    if let Ok(program) = std::env::var(LIGHTHOUSE) {
        return Ok(vec![program]);
    }
    let folder = places::cache()?.join(TORCHFT.replace("==", "-"));
    let complete = folder.join("complete");
    if !complete.is_file() {
        let mut pip = shell::program(python::with_pip()?);
        pip.args(["-m", "pip", "install", "--no-deps", "--upgrade"]);
        pip.args(["--disable-pip-version-check", "--target"]);
        shell::run(pip.arg(&folder).arg(TORCHFT))?;
        fs::write(&complete, b"").map_err(|error| Fault::file("write", &complete, &error))?;
    }
    let script = places::root().join("xtask/peers/lighthouse.py");
    Ok(vec![
        "env".to_owned(),
        format!("MKS2_TORCHFT={}", folder.display()),
        python::with_pip()?.display().to_string(),
        script.display().to_string(),
    ])
}
