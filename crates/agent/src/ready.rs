//! Whether users may be let in: early boot is over, and the guest knows who it is.

use crate::error::{AgentError, io_error};
use crate::init::RUN_DIR;
use crate::units::READY_FIFO;
use crate::{log, sys};
use rustix::fs::inotify;
use std::mem::MaybeUninit;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::sync::watch;

/// How long systemd may take to finish early boot. A guest that is broken, or slower than this, is
/// let in to all the same: somebody must be able to look what is wrong.
const SANE_LIMIT: Duration = Duration::from_secs(90);

/// What is known so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct State {
    sane: bool,
    identified: bool,
}

impl State {
    fn ready(self) -> bool {
        self.sane && self.identified
    }
}

/// The agent's readiness, to be set once each and awaited by any number.
#[derive(Debug, Default)]
pub(crate) struct Readiness(watch::Sender<State>);

impl Readiness {
    /// Early boot is over.
    pub(crate) fn set_sane(&self) {
        self.0.send_modify(|s| s.sane = true);
    }

    /// The identity is applied.
    pub(crate) fn set_identified(&self) {
        self.0.send_modify(|s| s.identified = true);
    }

    /// Whether early boot is over.
    pub(crate) fn is_sane(&self) -> bool {
        self.0.borrow().sane
    }

    /// Returns once early boot is over.
    pub(crate) async fn sane(&self) {
        // As below.
        let _ = self.0.subscribe().wait_for(|s| s.sane).await;
    }

    /// Whether users may be let in now.
    pub(crate) fn is_ready(&self) -> bool {
        self.0.borrow().ready()
    }

    /// What is still missing, for an error message.
    pub(crate) fn missing(&self) -> &'static str {
        if self.0.borrow().identified {
            "it is still starting"
        } else {
            "it has not been given its identity yet"
        }
    }

    /// Returns once users may be let in.
    pub(crate) async fn ready(&self) {
        // The sender is self, so the channel can't close meanwhile.
        let _ = self.0.subscribe().wait_for(|s| s.ready()).await;
    }
}

/// Returns once systemd says that early boot is over, or has had its time.
pub(crate) async fn early_boot_over() {
    match tokio::time::timeout(SANE_LIMIT, fifo_appears()).await {
        Ok(Ok(())) => {}
        Ok(Err(e)) => log::warn(&format!("cannot watch early boot, not waiting for it: {e}")),
        Err(_) => log::warn(&format!(
            "early boot is not over after {} s, not waiting for it",
            SANE_LIMIT.as_secs()
        )),
    }
}

async fn fifo_appears() -> Result<(), AgentError> {
    let watch = || {
        let events = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        inotify::add_watch(&events, RUN_DIR, inotify::WatchFlags::CREATE)?;
        sys::watch(Arc::new(events), Interest::READABLE)
    };
    let events = watch().map_err(io_error::<std::io::Error>("watch", RUN_DIR))?;
    // Looked for only now, so that it can't appear between the look and the watch.
    while !Path::new(READY_FIFO).exists() {
        let mut guard = events
            .readable()
            .await
            .map_err(io_error::<std::io::Error>("watch", RUN_DIR))?;
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(events.get_ref(), &mut buffer);
        // Which file it was does not matter, only that there may be news.
        while reader.next().is_ok() {}
        guard.clear_ready();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn both_halves_are_needed() {
        let readiness = Readiness::default();
        assert!(!readiness.is_ready());
        readiness.set_sane();
        assert!(!readiness.is_ready());
        assert!(readiness.missing().contains("identity"));
        readiness.set_identified();
        assert!(readiness.is_ready());
        readiness.ready().await;
    }
}
