//! Blocking work of an async caller.

use std::sync::{Arc, Mutex, PoisonError};
use tokio::task::spawn_blocking;

/// State that is worked on by threads which may block, one step at a time. No thread is held
/// between steps.
///
/// Dropped in the midst of a step, it waits for that step, so that what the state cleans up when
/// it is dropped itself is cleaned up then, and not when nobody expects it any more.
#[derive(Debug)]
pub struct Worker<T>(Arc<Mutex<Option<T>>>);

/// A step that couldn't be taken: the state has been given away or a step before panicked, or
/// the runtime ends.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the copy was abandoned")]
pub struct Abandoned;

impl<T: Send + 'static> Worker<T> {
    /// A worker on this state.
    pub fn new(state: T) -> Self {
        Self(Arc::new(Mutex::new(Some(state))))
    }

    /// Takes a step.
    ///
    /// # Errors
    /// When it can't be taken.
    pub async fn step<R: Send + 'static>(
        &self,
        step: impl FnOnce(&mut T) -> R + Send + 'static,
    ) -> Result<R, Abandoned> {
        let state = Arc::clone(&self.0);
        let done = spawn_blocking(move || {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            state.as_mut().map(step)
        });
        done.await.ok().flatten().ok_or(Abandoned)
    }

    /// Takes the last step, with the state itself.
    ///
    /// # Errors
    /// When it can't be taken.
    pub async fn finish<R: Send + 'static>(
        self,
        step: impl FnOnce(T) -> R + Send + 'static,
    ) -> Result<R, Abandoned> {
        let state = Arc::clone(&self.0);
        let done = spawn_blocking(move || {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            state.take().map(step)
        });
        done.await.ok().flatten().ok_or(Abandoned)
    }

    /// Drops the state where that may block.
    pub async fn discard(self) {
        let _ = self.finish(drop).await;
    }
}

impl<T> Drop for Worker<T> {
    fn drop(&mut self) {
        drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}
