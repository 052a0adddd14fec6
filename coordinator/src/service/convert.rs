//! From the wire to the state machine's types. Everything is checked here, once.

use mks2_proto::{
    failure::Failure,
    ids::{Generation, Incarnation, MemberId, RunId},
    v1::{self, RefusalReason},
};

use crate::state::{Checkpoint, Identity, Refused, Registration};

/// Longest text that a member may say of itself.
const MAX_TEXT: usize = 300;

pub(crate) fn malformed(why: impl Into<String>) -> Refused {
    Refused {
        reason: RefusalReason::Malformed,
        failure: Failure::environment(
            "the coordinator does not understand a message",
            why,
            "use the same version of mks2 and mks2-worker everywhere",
        ),
    }
}

pub(crate) fn identity(member_id: &str, incarnation: u64) -> Result<Identity, Refused> {
    let member = MemberId::new(member_id).map_err(|error| malformed(error.to_string()))?;
    Ok(Identity {
        member,
        incarnation: Incarnation(incarnation),
    })
}

pub(crate) fn registration(request: v1::RegisterRequest) -> Result<Registration, Refused> {
    let who = identity(&request.member_id, request.incarnation)?;
    let run_id = match request.run_id.as_str() {
        "" => None,
        text => Some(RunId::new(text).map_err(|error| malformed(error.to_string()))?),
    };
    for text in [&request.host, &request.data_address, &request.device] {
        if text.len() > MAX_TEXT || text.chars().any(char::is_control) {
            return Err(malformed(
                "a member's host, address or device is no short plain text",
            ));
        }
    }
    Ok(Registration {
        who,
        run_id,
        generation: Generation(request.generation),
        protocol: request.protocol,
        host: request.host,
        pid: request.pid,
        data_address: request.data_address,
        device: request.device,
    })
}

/// The checkpoint of a commit. Its manifest has the path that its step gives it, and the digest
/// that its bytes have.
pub(crate) fn checkpoint(request: &v1::CommitCheckpointRequest) -> Result<Checkpoint, Refused> {
    let Some(reference) = request.checkpoint.clone() else {
        return Err(malformed("a commit names no checkpoint"));
    };
    let checkpoint = Checkpoint::from(reference);
    let path = manifest_path(checkpoint.step);
    if checkpoint.manifest_path != path {
        let given = &checkpoint.manifest_path;
        return Err(malformed(format!(
            "the manifest's path is '{given}', not '{path}'"
        )));
    }
    if blake3::hash(&request.manifest).to_hex().as_str() != checkpoint.manifest_digest {
        return Err(malformed(
            "the manifest's bytes do not have the digest that was said",
        ));
    }
    if checkpoint.stage.is_empty() || checkpoint.stage.len() > MAX_TEXT {
        return Err(malformed("a checkpoint names no stage"));
    }
    Ok(checkpoint)
}

/// What a member is told when it registers: where to begin, beside what all are told.
pub(crate) fn welcome(
    all: &v1::RegisterResponse,
    beginning: Vec<Checkpoint>,
) -> v1::RegisterResponse {
    let references = beginning.into_iter().map(v1::CheckpointRef::from);
    let references: Vec<_> = references.collect();
    v1::RegisterResponse {
        resume_from: references.last().cloned(),
        finished_stages: references.into_iter().filter(|one| one.r#final).collect(),
        ..all.clone()
    }
}

/// Where the manifest of a step lies in the run directory.
pub(crate) fn manifest_path(step: u64) -> String {
    format!("checkpoints/step-{step:08}/manifest.json")
}

pub(crate) fn reason(text: String) -> String {
    let plain: String = text
        .chars()
        .filter(|c| !c.is_control())
        .take(MAX_TEXT)
        .collect();
    if plain.is_empty() {
        "somebody asked for it".to_owned()
    } else {
        plain
    }
}
