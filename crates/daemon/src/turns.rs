//! How many VMs come up at once as clones of a template, which takes nothing but processors' time. Were it
//! all that are launched, each would be ready when the last is; in turn, half of them are in half of that time.

use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long a VM that runs may keep its turn until it is ready: one that hangs must not keep others from theirs.
pub(crate) const TURN_TIME: Duration = Duration::from_secs(5);

/// The turns of all VMs.
pub(crate) struct Turns(Arc<Semaphore>);

/// The turn of a VM, which the next one has when this is dropped.
pub(crate) type Turn = OwnedSemaphorePermit;

impl Turns {
    /// As many at once as there are processors, and one that waits for something else meanwhile.
    pub(crate) fn new() -> Self {
        let processors = available_parallelism().map_or(1, usize::from);
        Self(Arc::new(Semaphore::new(processors + 1)))
    }

    /// Waits for a turn. They are given in the order in which they are asked for.
    pub(crate) async fn take(&self) -> Option<Turn> {
        // It is never closed.
        self.0.clone().acquire_owned().await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::poll;
    use std::pin::pin;
    use std::task::Poll;

    #[tokio::test]
    async fn the_next_has_its_turn_when_one_is_done() {
        let turns = Turns::new();
        let mut taken = Vec::new();
        let next = loop {
            let mut next = Box::pin(turns.take());
            match poll!(&mut next) {
                Poll::Ready(turn) => taken.push(turn),
                Poll::Pending => break next,
            }
        };
        assert!(taken.len() >= 2);
        let mut after = pin!(turns.take());
        assert!(poll!(&mut after).is_pending());
        taken.pop();
        assert!(poll!(&mut after).is_pending());
        let turn = next.await;
        assert!(turn.is_some() && poll!(&mut after).is_pending());
        drop(turn);
        assert!(after.await.is_some());
    }
}
