//! Pulls under way: one for each image, however many wait for it, and none that nobody waits for.

use crate::DaemonError;
use slicer_image::ImageCache;
use slicer_machine::Arch;
use slicer_registry::{Progress, PullError, Wanted, Watcher, pull};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

/// What came of a pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pulled {
    pub(crate) name: String,
    pub(crate) digest: String,
    /// Go's name of the architecture it is for.
    pub(crate) arch: &'static str,
    /// Whether the name led elsewhere before, or nowhere.
    pub(crate) changed: bool,
}

/// How far a pull is.
#[derive(Debug, Clone, Default)]
pub(crate) struct PullState {
    pub(crate) received: u64,
    pub(crate) total: u64,
    /// How often something was tried again, and why the last time.
    pub(crate) retries: u64,
    pub(crate) why: String,
    pub(crate) outcome: Option<Result<Pulled, Arc<PullError>>>,
}

/// What tells pulls apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    name: String,
    arch: Arch,
    insecure: bool,
}

type Running = HashMap<Key, Arc<watch::Sender<PullState>>>;

/// The pulls into one cache.
pub(crate) struct Pulls {
    cache: PathBuf,
    running: Arc<Mutex<Running>>,
    tasks: TaskTracker,
    stopping: CancellationToken,
}

/// Takes a pull off the list, whatever it ends by, but not the one that came after it.
struct Listed(Arc<Mutex<Running>>, Key, Arc<watch::Sender<PullState>>);

impl Drop for Listed {
    fn drop(&mut self) {
        let mut running = lock(&self.0);
        if running
            .get(&self.1)
            .is_some_and(|pull| Arc::ptr_eq(pull, &self.2))
        {
            running.remove(&self.1);
        }
    }
}

fn lock(running: &Mutex<Running>) -> MutexGuard<'_, Running> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pulls {
    pub(crate) fn new(cache: PathBuf, tasks: TaskTracker, stopping: CancellationToken) -> Self {
        Self {
            cache,
            running: Arc::default(),
            tasks,
            stopping,
        }
    }

    /// Whether an image of this name is being pulled.
    pub(crate) fn has(&self, name: &str) -> bool {
        lock(&self.running).keys().any(|key| key.name == name)
    }

    /// Begins to pull an image, by its name in full, or joins those who wait for it. It goes on for
    /// as long as somebody holds a receiver. `done` is called once it is in the cache.
    pub(crate) fn join(
        &self,
        name: &str,
        arch: Arch,
        insecure: bool,
        done: impl FnOnce(&Pulled) + Send + 'static,
    ) -> watch::Receiver<PullState> {
        let key = Key {
            name: name.to_owned(),
            arch,
            insecure,
        };
        let mut running = lock(&self.running);
        if let Some(state) = running.get(&key) {
            return state.subscribe();
        }
        let (state, receiver) = watch::channel(PullState::default());
        let state = Arc::new(state);
        running.insert(key.clone(), state.clone());
        drop(running);
        let listed = Listed(self.running.clone(), key, state.clone());
        let (cache, stopping) = (self.cache.clone(), self.stopping.clone());
        self.tasks.spawn(async move {
            let outcome = tokio::select! {
                outcome = run(cache, &listed.1, &state) => outcome,
                () = unwanted(&listed, &state) => {
                    info!("pulling {}: called off, nobody waits for it", listed.1.name);
                    return;
                }
                () = stopping.cancelled() => return,
            };
            if let Ok(pulled) = &outcome {
                done(pulled);
            }
            // Who asks from here on begins another.
            drop(listed);
            state.send_modify(|state| state.outcome = Some(outcome.map_err(Arc::new)));
        });
        receiver
    }
}

/// Ends when nobody waits any more.
async fn unwanted(listed: &Listed, state: &watch::Sender<PullState>) {
    loop {
        state.closed().await;
        // Under the lock, so that nobody joins in between.
        let mut running = lock(&listed.0);
        if state.receiver_count() == 0 {
            running.remove(&listed.1);
            return;
        }
    }
}

async fn run(
    cache: PathBuf,
    key: &Key,
    state: &Arc<watch::Sender<PullState>>,
) -> Result<Pulled, PullError> {
    let (name, arch) = (&key.name, key.arch.go_name());
    let looked = name.clone();
    let before = tokio::task::spawn_blocking(move || {
        let cache = ImageCache::open(&cache)?;
        let found = cache.find(&looked, arch)?;
        Ok((cache, found.map(|image| image.manifest_digest().to_owned())))
    });
    let (cache, before) = before.await.unwrap_or(Err(PullError::Internal))?;
    let begun = Instant::now();
    info!("pulling {name}");
    let wanted = Wanted {
        reference: name.clone(),
        arch: arch.to_owned(),
        insecure: key.insecure,
    };
    let (told, of) = (state.clone(), name.clone());
    let watcher: Watcher = Arc::new(move |progress| {
        told.send_modify(|state| match progress {
            Progress::Begun { bytes, .. } => state.total += bytes,
            Progress::Received(bytes) => state.received += bytes,
            Progress::Retrying { why } => {
                warn!("pulling {of}: {why}; trying again");
                state.retries += 1;
                state.why = why;
            }
        });
    });
    let image = pull(&cache, &wanted, watcher).await?;
    info!("pulled {name} in {:.1?}", begun.elapsed());
    let digest = image.manifest_digest().to_owned();
    Ok(Pulled {
        changed: before.as_ref() != Some(&digest),
        name: name.clone(),
        digest,
        arch,
    })
}

/// What came of it in the end.
pub(crate) async fn outcome(
    receiver: &mut watch::Receiver<PullState>,
) -> Result<Pulled, DaemonError> {
    let done = receiver.wait_for(|state| state.outcome.is_some()).await;
    match done.ok().and_then(|state| state.outcome.clone()) {
        Some(Ok(pulled)) => Ok(pulled),
        Some(Err(e)) => Err(DaemonError::Pull(e)),
        None => Err(DaemonError::Stopping),
    }
}
