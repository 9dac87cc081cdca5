//! Bytes on their way to something that blocks.

use crate::buffer::{Buffer, Buffers};
use crate::worker::{Abandoned, Step, Worker};

/// Feeds a [`Worker`]'s state with what comes in. Bytes are gathered, for handing them to another
/// thread costs more than copying them, and go on being gathered while those before are worked on.
pub struct Intake<T, E, F> {
    worker: Worker<T>,
    feed: F,
    buffers: Buffers,
    gathered: Buffer,
    step: Option<Step<Result<(), E>>>,
}

impl<T, E, F> Intake<T, E, F>
where
    T: Send + 'static,
    E: From<Abandoned> + Send + 'static,
    F: Fn(&mut T, &[u8]) -> Result<(), E> + Copy + Send + 'static,
{
    /// An intake that feeds `state` with up to `size` bytes at once and holds twice as many.
    pub fn new(state: T, size: usize, feed: F) -> Self {
        let buffers = Buffers::new(size);
        Self {
            worker: Worker::new(state),
            feed,
            gathered: buffers.take(),
            buffers,
            step: None,
        }
    }

    /// Takes more.
    ///
    /// # Errors
    /// When feeding what came before has failed.
    pub async fn take(&mut self, mut bytes: &[u8]) -> Result<(), E> {
        loop {
            bytes = &bytes[self.gathered.append(bytes)..];
            if !self.gathered.is_full() {
                return Ok(());
            }
            if let Some(step) = self.step.take() {
                step.await??;
            }
            let full = std::mem::replace(&mut self.gathered, self.buffers.take());
            let feed = self.feed;
            self.step = Some(self.worker.step(move |state| feed(state, full.as_ref())));
        }
    }

    /// Feeds what is left, and takes the last step, with the state itself.
    ///
    /// # Errors
    /// When feeding or the last step fails.
    pub async fn finish<R: Send + 'static>(
        self,
        last: impl FnOnce(T) -> Result<R, E> + Send + 'static,
    ) -> Result<R, E> {
        if let Some(step) = self.step {
            step.await??;
        }
        let (feed, rest) = (self.feed, self.gathered);
        let finish = move |mut state| {
            feed(&mut state, rest.as_ref())?;
            drop(rest);
            last(state)
        };
        self.worker.finish(finish).await?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    enum Failed {
        Fed,
        Abandoned,
    }

    impl From<Abandoned> for Failed {
        fn from(_: Abandoned) -> Self {
            Self::Abandoned
        }
    }

    fn collect(all: &mut Vec<u8>, bytes: &[u8]) -> Result<(), Failed> {
        assert!(bytes.len() <= 10);
        all.extend_from_slice(bytes);
        if bytes.contains(&0xff) {
            return Err(Failed::Fed);
        }
        Ok(())
    }

    #[tokio::test]
    async fn all_arrives_in_order() {
        let all: Vec<u8> = (0..200).collect();
        for piece in [1, 7, 10, 11, 64, 200] {
            let mut intake = Intake::new(Vec::new(), 10, collect);
            for bytes in all.chunks(piece) {
                intake.take(bytes).await.unwrap();
            }
            assert_eq!(intake.finish(Ok).await.unwrap(), all, "{piece}");
        }
    }

    #[tokio::test]
    async fn a_failure_is_told_by_the_end_at_the_latest() {
        let mut intake = Intake::new(Vec::new(), 10, collect);
        intake.take(&[0xff; 10]).await.unwrap();
        assert_eq!(intake.take(&[1; 10]).await, Err(Failed::Fed));
        let mut intake = Intake::new(Vec::new(), 10, collect);
        intake.take(&[0xff; 3]).await.unwrap();
        assert_eq!(intake.finish(Ok).await, Err(Failed::Fed));
    }
}
