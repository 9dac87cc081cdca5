//! What happens when the host goes to sleep and when it has woken up.

use super::{Guest, Guests, Hold, PowerEvent, PowerEvents};
use crate::config::SleepAction;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// How long the host's network gets to settle before VMs are restored.
const SETTLE_TIME: Duration = Duration::from_secs(5);

/// What came of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// It is on disk.
    Suspended,
    /// It is off.
    ShutDown,
    /// It runs, as it is meant to.
    Left,
    /// It runs, or is on its way down: there was no more time, or it failed.
    Unfinished,
}

/// A VM this was about.
struct Done {
    guest: Guest,
    outcome: Outcome,
}

/// From the host's word that it will sleep until it does.
struct Dusk {
    delay: Hold,
    deadline: Instant,
}

/// Follows the host's sleep.
pub(super) struct Sleeper {
    guests: Arc<dyn Guests>,
    /// See [`SETTLE_TIME`].
    pub(super) settle: Duration,
    dusk: Option<Dusk>,
    /// Whether the host is awake, as far as it told, and means to stay so.
    awake: bool,
    /// Cancelled when it is too late to begin anything more for the present sleep.
    late: CancellationToken,
    putting: JoinSet<Done>,
    /// The VMs that [`Sleeper::putting`] is about.
    busy: BTreeSet<String>,
    /// What sleep suspended, and whether it was paused.
    suspended: BTreeMap<String, bool>,
    restore_at: Option<Instant>,
    restoring: JoinSet<()>,
}

impl Sleeper {
    pub(super) fn new(guests: Arc<dyn Guests>) -> Self {
        Self {
            guests,
            settle: SETTLE_TIME,
            dusk: None,
            awake: true,
            late: CancellationToken::new(),
            putting: JoinSet::new(),
            busy: BTreeSet::new(),
            suspended: BTreeMap::new(),
            restore_at: None,
            restoring: JoinSet::new(),
        }
    }

    /// Works for as long as it is polled.
    pub(super) async fn run(mut self, mut events: Box<dyn PowerEvents>) {
        let mut told = true;
        loop {
            let deadline = self.dusk.as_ref().map(|d| d.deadline);
            tokio::select! {
                event = events.next(), if told => match event {
                    Some(PowerEvent::AboutToSleep { delay, deadline }) => {
                        self.fall_asleep(Dusk { delay, deadline });
                    }
                    Some(PowerEvent::WokeUp) => self.wake_up(),
                    None => {
                        warn!("nobody tells of this host's sleep any more: sleep_action has no effect");
                        told = false;
                        // What is asleep is not left so.
                        self.wake_up();
                    }
                },
                Some(done) = self.putting.join_next() => {
                    match done {
                        Ok(done) => self.done(done),
                        Err(e) => warn!("a VM could not be prepared for the host's sleep: {e}"),
                    }
                    if self.putting.is_empty() {
                        self.busy.clear();
                        self.night();
                    }
                }
                () = at(deadline) => {
                    warn!("the host goes to sleep before this is done: {}", self.names());
                    self.night();
                }
                () = at(self.restore_at) => self.restore(),
                Some(_) = self.restoring.join_next() => {}
            }
        }
    }

    fn names(&self) -> String {
        self.busy.iter().cloned().collect::<Vec<_>>().join(", ")
    }

    fn fall_asleep(&mut self, dusk: Dusk) {
        info!("the host goes to sleep");
        self.awake = false;
        self.restore_at = None;
        self.late.cancel();
        self.late = CancellationToken::new();
        self.dusk = Some(dusk);
        for guest in self.guests.list() {
            // One that an earlier sleep began with is on its way.
            if self.busy.insert(guest.name.clone()) {
                let (guests, late) = (self.guests.clone(), self.late.clone());
                self.putting.spawn(async move {
                    let outcome = put(&*guests, &guest, &late).await;
                    Done { guest, outcome }
                });
            }
        }
        if self.putting.is_empty() {
            self.night();
        }
    }

    /// Lets the host sleep.
    fn night(&mut self) {
        self.late.cancel();
        if let Some(Dusk { delay, .. }) = self.dusk.take() {
            drop(delay);
        }
    }

    fn done(&mut self, Done { guest, outcome }: Done) {
        self.busy.remove(&guest.name);
        if outcome == Outcome::Suspended {
            self.suspended.insert(guest.name, guest.paused);
            if self.awake && self.restore_at.is_none() {
                // It took until after the wake.
                self.restore_at = Some(Instant::now());
            }
        }
    }

    fn wake_up(&mut self) {
        info!("the host woke up");
        self.awake = true;
        self.night();
        self.guests.set_clocks();
        self.restore_at = Some(Instant::now() + self.settle);
    }

    fn restore(&mut self) {
        self.restore_at = None;
        for (name, paused) in std::mem::take(&mut self.suspended) {
            let guests = self.guests.clone();
            self.restoring.spawn(async move {
                if let Err(e) = guests.restore(&name, paused).await {
                    warn!("{name}: not restored after the host's sleep: {e}");
                }
            });
        }
    }
}

/// Completes then; never, without a time.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Does with a VM what its group asks for. What is begun is gone through with, even if the host sleeps
/// in the middle of it; nothing is begun when it is late.
async fn put(guests: &dyn Guests, guest: &Guest, late: &CancellationToken) -> Outcome {
    let name = &guest.name;
    match guest.action {
        SleepAction::None | SleepAction::Prevent => {
            // Its memory outlives the sleep, but not a battery that runs out.
            if !guest.paused
                && let Some(Err(e)) = late.run_until_cancelled(guests.sync(name)).await
            {
                warn!("{name}: it could not write out what it holds for its disks: {e}");
            }
            return Outcome::Left;
        }
        SleepAction::Suspend => {
            match late.run_until_cancelled(guests.ready(name)).await {
                None => return Outcome::Unfinished,
                // It is off.
                Some(Err(_)) => return Outcome::Left,
                Some(Ok(())) => {}
            }
            match guests.suspend(name).await {
                Ok(()) => return Outcome::Suspended,
                Err(e) if late.is_cancelled() => {
                    warn!("{name}: it runs on, it could not be suspended: {e}");
                    return Outcome::Unfinished;
                }
                Err(e) => warn!("{name}: it is shut down, it could not be suspended: {e}"),
            }
        }
        SleepAction::Shutdown => {}
    }
    match late.run_until_cancelled(guests.shut_down(name)).await {
        None => Outcome::Unfinished,
        Some(Ok(())) => Outcome::ShutDown,
        Some(Err(e)) => {
            warn!("{name}: it runs on, it could not be shut down: {e}");
            Outcome::Unfinished
        }
    }
}

#[cfg(test)]
mod tests;
