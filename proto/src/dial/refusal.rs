//! Refusals in gRPC statuses: `google.rpc.Status` in `grpc-status-details-bin`, with a
//! [`Refusal`] among its details, so that any gRPC client can show them.

use prost::Message;
use tonic::{Code, Status};

use crate::{
    failure::{ExitCode, Failure},
    v1::{Failed, Refusal, RefusalReason},
};

const TYPE_URL: &str = "type.googleapis.com/mks2.v1.Refusal";

/// `google.rpc.Status`, as far as we need it.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}

/// Whether the same request may succeed later: nobody answered, the coordinator is at its end, or a
/// new one is not ready.
#[must_use]
pub fn is_transient(status: &Status) -> bool {
    match refusal(status) {
        Some(refusal) => matches!(
            refusal.reason(),
            RefusalReason::Reunion | RefusalReason::CoordinatorGone
        ),
        None => matches!(
            status.code(),
            Code::Unavailable
                | Code::DeadlineExceeded
                | Code::Cancelled
                | Code::Unknown
                | Code::Internal
        ),
    }
}

/// The status that carries a refusal; its message is the three lines in one.
#[must_use]
pub fn status(refusal: &Refusal) -> Status {
    let code = code(refusal.reason());
    let message = refusal.failure.as_ref().map_or_else(
        || refusal.reason().as_str_name().to_owned(),
        |failed| format!("{}: {} ({})", failed.what, failed.why, failed.cure),
    );
    let detail = prost_types::Any {
        type_url: TYPE_URL.into(),
        value: refusal.encode_to_vec(),
    };
    let details = RpcStatus {
        code: code as i32,
        message: message.clone(),
        details: vec![detail],
    };
    Status::with_details(code, message, details.encode_to_vec().into())
}

fn code(reason: RefusalReason) -> Code {
    match reason {
        RefusalReason::Token => Code::Unauthenticated,
        RefusalReason::MemberTaken => Code::AlreadyExists,
        RefusalReason::UnknownMember => Code::NotFound,
        RefusalReason::RunFull => Code::ResourceExhausted,
        RefusalReason::Malformed => Code::InvalidArgument,
        RefusalReason::Storage => Code::Aborted,
        RefusalReason::Unspecified => Code::Unknown,
        RefusalReason::Protocol
        | RefusalReason::WrongRun
        | RefusalReason::MoreWorkersThanLanes
        | RefusalReason::StaleGeneration
        | RefusalReason::OutOfOrder
        | RefusalReason::RunOver => Code::FailedPrecondition,
        RefusalReason::Reunion | RefusalReason::CoordinatorGone => Code::Unavailable,
    }
}

/// The refusal in a status, if it carries one.
#[must_use]
pub fn refusal(status: &Status) -> Option<Refusal> {
    let details = RpcStatus::decode(status.details()).ok()?.details;
    let detail = details
        .into_iter()
        .find(|detail| detail.type_url == TYPE_URL)?;
    Refusal::decode(detail.value.as_slice()).ok()
}

/// The three lines of a status: those of its refusal, or words for a broken connection.
#[must_use]
pub fn failure(status: &Status) -> Failure {
    if let Some(failed) = refusal(status).and_then(|refusal| refusal.failure) {
        return failed.into();
    }
    match status.code() {
        Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded | Code::Unknown => {
            Failure::run_failed(
                "the connection to the coordinator is lost",
                status.message().to_lowercase(),
                "the same command resumes from the latest checkpoint",
            )
        }
        Code::Unimplemented => Failure::environment(
            "the coordinator does not know this request",
            "it is another version of mks2, or another program",
            "use the same version on both sides and check the address",
        ),
        code => Failure::internal(
            format!("the coordinator answered {code:?}"),
            status.message(),
        ),
    }
}

impl From<&Failure> for Failed {
    fn from(failure: &Failure) -> Self {
        Self {
            what: failure.what.clone(),
            why: failure.why.clone(),
            cure: failure.cure.clone(),
            exit_code: failure.exit.code().into(),
        }
    }
}

impl From<Failed> for Failure {
    fn from(failed: Failed) -> Self {
        let exit = ExitCode::from_code(failed.exit_code);
        Self::new(exit, failed.what, failed.why, failed.cure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_survives_the_way_through_a_status() {
        let failed = Failed::from(&Failure::checkpoint("what", "why", "cure"));
        let sent = Refusal {
            reason: RefusalReason::StaleGeneration.into(),
            term: 3,
            generation: 7,
            failure: Some(failed),
        };
        let status = status(&sent);
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(status.message(), "what: why (cure)");
        assert_eq!(refusal(&status), Some(sent));
        assert_eq!(failure(&status).exit, ExitCode::Checkpoint);
    }

    #[test]
    fn a_broken_connection_says_that_the_run_can_be_resumed() {
        let failure = failure(&Status::unavailable("Connection reset by peer"));
        assert_eq!(failure.exit, ExitCode::RunFailed);
        assert_eq!(failure.why, "connection reset by peer");
    }
}
