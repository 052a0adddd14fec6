//! One member's stream, from its first report to its end.

use std::time::Duration;

use mks2_proto::{ids::Generation, v1};
use tonic::Streaming;
use tracing::{Instrument, Span};

use super::{Service, convert};
use crate::{
    driver::{Command, Directives, Voice},
    state::{Identity, Refused, StreamId},
};

/// A stream that says nothing for so long after it opened is closed.
pub(crate) const FIRST_REPORT: Duration = Duration::from_secs(5);

/// Serves a stream. The first report says whose it is; its end is told to the driver. The span ends
/// with that report: the stream lives as long as its worker.
pub(super) async fn serve(
    service: Service,
    span: Span,
    mut reports: Streaming<v1::Report>,
    directives: Directives,
) {
    let attaching = attach(&service, &mut reports, &directives);
    let attached = attaching.instrument(span).await;
    let (who, stream, first) = match attached {
        Ok(attached) => attached,
        Err(refused) => {
            // The other end may be gone already: then nobody needs to know.
            let refusal = Box::new(Err(service.refuse(&refused)));
            let _gone = directives.send(refusal).await;
            return;
        }
    };
    // The driver alone holds the way down now: a stream that it forgets ends, and its worker looks
    // for the coordinator again.
    drop(directives);
    let how = listen(&service, &who, first, &mut reports).await;
    tracing::info!(member = %who.member, "stream ended: {how}");
    service.handle.tell(Command::Detach(stream, who, how)).await;
}

async fn attach(
    service: &Service,
    reports: &mut Streaming<v1::Report>,
    directives: &Directives,
) -> Result<(Identity, StreamId, v1::Report), Refused> {
    let first = tokio::time::timeout(FIRST_REPORT, reports.message()).await;
    let Ok(Ok(Some(first))) = first else {
        return Err(convert::malformed("a stream said nothing"));
    };
    let who = convert::identity(&first.member_id, first.incarnation)?;
    let stream = service.handle.new_stream();
    let attach = |reply| Command::Attach {
        stream,
        who: who.clone(),
        directives: directives.clone(),
        reply,
    };
    service.handle.ask(attach).await?;
    Ok((who, stream, first))
}

/// Passes reports on until the stream ends, and says how it did.
async fn listen(
    service: &Service,
    who: &Identity,
    first: v1::Report,
    reports: &mut Streaming<v1::Report>,
) -> String {
    let voice = Voice::new(&service.handle, who.clone());
    let mut next = Some(first);
    loop {
        if let Some(report) = next.take() {
            if report.member_id != who.member.as_str() || report.incarnation != who.incarnation.0 {
                return "it spoke in another member's name".to_owned();
            }
            let generation = Generation(report.generation);
            if let Some(kind) = report.kind
                && !voice.say(generation, kind).await
            {
                return "the coordinator ended".to_owned();
            }
        }
        match reports.message().await {
            Ok(Some(report)) => next = Some(report),
            Ok(None) => return "it closed its stream".to_owned(),
            Err(status) => return broken(&status),
        }
    }
}

fn broken(status: &tonic::Status) -> String {
    let mut cause: &dyn std::error::Error = status;
    while let Some(source) = cause.source() {
        cause = source;
    }
    match cause.downcast_ref::<tonic::Status>() {
        Some(status) => format!("its connection broke: {}", status.message().to_lowercase()),
        None => format!("its connection broke: {}", cause.to_string().to_lowercase()),
    }
}
