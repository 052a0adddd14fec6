//! Directives on their way down the streams.
//!
//! A generation of thousands of members is large, and it goes to each of them at the same moment.
//! Every stream holds a copy while it is on its way. Those that wait behind another share a budget:
//! who comes later waits until an earlier one has taken its own.

use std::sync::Arc;

use futures::{Stream, stream};
use mks2_proto::v1::{self, directive::Kind};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tonic::Status;

/// Bytes of large directives that are on their way at a time.
const BUDGET_BYTES: usize = 256 << 20;
/// Directives up to this size just go.
const SMALL_BYTES: usize = 64 << 10;

type Sent = Result<v1::Directive, Status>;

/// The budget of all streams.
#[derive(Clone, Debug)]
pub(crate) struct Gate(Arc<Semaphore>);

impl Default for Gate {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(BUDGET_BYTES)))
    }
}

impl Gate {
    /// Waits until there is room; none is needed for a small one.
    async fn enter(&self, sent: &Sent) -> Option<OwnedSemaphorePermit> {
        let bytes = size(sent).min(BUDGET_BYTES);
        if bytes <= SMALL_BYTES {
            return None;
        }
        let places = u32::try_from(bytes).unwrap_or(u32::MAX);
        Arc::clone(&self.0).acquire_many_owned(places).await.ok()
    }
}

fn size(sent: &Sent) -> usize {
    match sent
        .as_ref()
        .ok()
        .and_then(|directive| directive.kind.as_ref())
    {
        Some(Kind::Generation(encoded)) => encoded.len(),
        _ => 0,
    }
}

/// What a stream carries down. A connection takes one directive beyond what its window has room for, so
/// the budget does not hold the first large one of each stream back, but those behind it.
pub(super) fn outgoing(
    queue: mpsc::Receiver<Box<Sent>>,
    gate: Gate,
) -> impl Stream<Item = Sent> + Send {
    stream::unfold(
        (queue, gate, None),
        |(mut queue, gate, before)| async move {
            drop(before);
            let sent = *queue.recv().await?;
            let place = gate.enter(&sent).await;
            Some((sent, (queue, gate, place)))
        },
    )
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, StreamExt};

    use super::*;

    fn generation(bytes: usize) -> Box<Sent> {
        let kind = Some(Kind::Generation(vec![0; bytes].into()));
        Box::new(Ok(v1::Directive { term: 1, kind }))
    }

    #[tokio::test]
    async fn large_directives_go_one_after_the_other_and_small_ones_at_once() {
        let gate = Gate::default();
        let mut streams: Vec<_> = (0..2)
            .map(|_| {
                let (sender, queue) = mpsc::channel(4);
                (sender, Box::pin(outgoing(queue, gate.clone())))
            })
            .collect();
        for (sender, _) in &streams {
            sender.try_send(generation(BUDGET_BYTES - 1)).expect("room");
            sender.try_send(generation(10)).expect("room");
        }
        let sizes = |sent: Option<Option<Sent>>| sent.map(|sent| sent.as_ref().map(size));
        let (first, second) = streams.split_at_mut(1);
        let (first, second) = (&mut first[0].1, &mut second[0].1);
        assert_eq!(
            sizes(first.next().now_or_never()),
            Some(Some(BUDGET_BYTES - 1))
        );
        assert!(second.next().now_or_never().is_none(), "it waits");
        // The first one is gone when its stream is asked for the next.
        assert_eq!(sizes(first.next().now_or_never()), Some(Some(10)));
        assert_eq!(
            sizes(second.next().now_or_never()),
            Some(Some(BUDGET_BYTES - 1))
        );
    }
}
