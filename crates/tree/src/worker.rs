//! Blocking work of an async caller.

use slicer_api::ApiError;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;

type Job = Box<dyn FnOnce() + Send>;

/// State that is worked on by a thread which may block, one step at a time. The thread is there
/// from the first step on: to find one for each step costs more than most steps.
///
/// Dropped in the midst of a step, it waits for that step, so that what the state cleans up when
/// it is dropped itself is cleaned up then, and not when nobody expects it any more.
#[derive(Debug)]
pub struct Worker<T> {
    state: Arc<Mutex<Option<T>>>,
    /// Steps for the thread, never more than are awaited.
    jobs: OnceLock<mpsc::UnboundedSender<Job>>,
}

/// A step that couldn't be taken: the state has been given away or a step before panicked, or
/// the runtime ends.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the copy was abandoned")]
pub struct Abandoned;

impl From<Abandoned> for ApiError {
    fn from(e: Abandoned) -> Self {
        Self::internal(e.to_string())
    }
}

/// A step that is being taken: gives what comes of it, or [`Abandoned`] when it can't be taken.
#[derive(Debug)]
pub struct Step<R>(oneshot::Receiver<Option<R>>);

impl<R> Future for Step<R> {
    type Output = Result<R, Abandoned>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let done = ready!(Pin::new(&mut self.0).poll(cx));
        Poll::Ready(done.ok().flatten().ok_or(Abandoned))
    }
}

impl<T: Send + 'static> Worker<T> {
    /// A worker on this state.
    pub fn new(state: T) -> Self {
        Self {
            state: Arc::new(Mutex::new(Some(state))),
            jobs: OnceLock::new(),
        }
    }

    /// Takes a step, from now on.
    pub fn step<R: Send + 'static>(
        &self,
        step: impl FnOnce(&mut T) -> R + Send + 'static,
    ) -> Step<R> {
        self.have_done(|state| state.as_mut().map(step))
    }

    /// Takes the last step, with the state itself.
    ///
    /// # Errors
    /// When it can't be taken.
    pub async fn finish<R: Send + 'static>(
        self,
        step: impl FnOnce(T) -> R + Send + 'static,
    ) -> Result<R, Abandoned> {
        self.have_done(|state| state.take().map(step)).await
    }

    /// Drops the state where that may block.
    pub async fn discard(self) {
        let _ = self.finish(drop).await;
    }

    fn have_done<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Option<T>) -> Option<R> + Send + 'static,
    ) -> Step<R> {
        let (done, step) = oneshot::channel();
        let state = Arc::clone(&self.state);
        let job = Box::new(move || {
            let result = job(&mut state.lock().unwrap_or_else(PoisonError::into_inner));
            // Whoever doesn't wait any more doesn't want to know.
            let _ = done.send(result);
        });
        let jobs = self.jobs.get_or_init(|| {
            let (sender, mut jobs) = mpsc::unbounded_channel::<Job>();
            spawn_blocking(move || {
                while let Some(job) = jobs.blocking_recv() {
                    job();
                }
            });
            sender
        });
        // A thread that panicked takes no more: then the step is never done, which is told.
        let _ = jobs.send(job);
        Step(step)
    }
}

impl<T> Drop for Worker<T> {
    fn drop(&mut self) {
        drop(
            self.state
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
    }
}
