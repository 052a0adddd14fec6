//! What a worker says when its session does not serve it.

use mks2_proto::failure::Failure;

use super::REPORT_PATIENCE;

pub(super) fn thread_died() -> Failure {
    Failure::internal("the worker cannot join the run", "its session thread ended")
}

pub(super) fn closed() -> Failure {
    Failure::internal("a report cannot be sent", "the session is closed")
}

pub(super) fn congested() -> Failure {
    Failure::run_failed(
        "the coordinator does not take reports",
        format!("none was taken for {} s", REPORT_PATIENCE.as_secs()),
        "see the coordinator's log; the same command resumes from the latest checkpoint",
    )
}
