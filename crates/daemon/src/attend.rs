//! What keeps a guest and its daemon of one mind: its identity, its secrets, and what it asks for.

use crate::DaemonError;
use crate::guest::{self, GuestError};
use crate::secrets::Secrets;
use crate::turns::{TURN_TIME, Turn};
use crate::vm::{Phase, View};
use slicer_api::{GuestRequest, GuestSecrets, Identity};
use slicer_machine::{Machine, MachineError};
use slicer_network::Apart;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;
use tracing::{debug, warn};

/// How long a guest may take from its launch until it is ready, whoever waits for it.
const BOOT_TIME: Duration = Duration::from_mins(10);
/// How often the agent is greeted anew when it breaks off while it is being told who it is.
const IDENTIFY_TRIES: u32 = 20;
/// Between two attempts to greet it.
const IDENTIFY_PAUSE: Duration = Duration::from_millis(100);
/// Between two attempts to give a guest its changed secrets.
const SECRETS_PAUSE: Duration = Duration::from_secs(2);
/// A guest that was told the time in less than this has it.
const CLOCK_TIME: Duration = Duration::from_millis(50);
/// How often a guest that takes longer is told anew.
const CLOCK_TRIES: u32 = 10;
/// A guest that asks without end must not keep the host busy.
const REQUEST_PAUSE: Duration = Duration::from_millis(200);

/// What a VM may see of the secrets.
#[derive(Clone)]
pub(crate) struct Grant {
    pub(crate) store: Arc<Secrets>,
    pub(crate) names: Option<Vec<String>>,
    /// Whether it may have others, which it is to lose.
    pub(crate) revoke: bool,
}

impl Grant {
    /// Their values as of now.
    async fn read(&self) -> Result<GuestSecrets, DaemonError> {
        let this = self.clone();
        let read = move || this.store.granted(this.names.as_deref());
        let secrets = tokio::task::spawn_blocking(read).await;
        let secrets = secrets.map_err(|_| DaemonError::Internal("reading secrets"))??;
        Ok(GuestSecrets {
            secrets,
            answers: None,
        })
    }
}

/// Nanoseconds since the Unix epoch.
pub(crate) fn clock() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(now.unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}

/// Completes when a share came anew; never, when none can.
async fn renewed(shares: &mut watch::Receiver<u64>) {
    if shares.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// What a VM has until it is ready.
#[derive(Default)]
pub(crate) struct UntilReady {
    /// What brings it onto its network, if it is not there before it knows who it is.
    pub(crate) apart: Option<Apart>,
    /// Its turn to come up, if it takes turns.
    pub(crate) turn: Option<Turn>,
}

/// Attends to one guest.
pub(crate) struct Attendant {
    machine: Arc<dyn Machine>,
    identity: Identity,
    grant: Grant,
    until_ready: UntilReady,
    /// Counts the changes of the store.
    changes: watch::Receiver<u64>,
    view: watch::Receiver<View>,
    /// Tells that the host woke up.
    wakes: watch::Receiver<()>,
}

impl Attendant {
    /// An attendant of the VM whose identity this is.
    pub(crate) fn new(
        machine: Arc<dyn Machine>,
        identity: Identity,
        grant: Grant,
        until_ready: UntilReady,
        view: watch::Receiver<View>,
        wakes: watch::Receiver<()>,
    ) -> Self {
        let changes = grant.store.changes();
        Self {
            machine,
            identity,
            grant,
            until_ready,
            changes,
            view,
            wakes,
        }
    }

    fn vm(&self) -> &str {
        &self.identity.hostname
    }

    /// Tells the agent who it is as soon as it answers, then waits until the guest is ready. Only then does it
    /// join its network, if it was kept from it.
    ///
    /// # Errors
    /// Why it never will be.
    pub(crate) async fn bring_up(&mut self) -> Result<(), String> {
        let turn = self.until_ready.turn.take();
        let give_way = async move {
            tokio::time::sleep(TURN_TIME).await;
            drop(turn);
            std::future::pending().await
        };
        tokio::select! {
            greeted = tokio::time::timeout(BOOT_TIME, self.greet()) => {
                greeted.unwrap_or_else(|_| Err(format!("no answer within {BOOT_TIME:?}")))
            }
            never = give_way => never,
        }
    }

    async fn greet(&mut self) -> Result<(), String> {
        let mut tries = 0;
        loop {
            // Waits for the agent to open its end; an agent that is there takes it at once.
            let stream = self.machine.connect().await.map_err(|e| e.to_string())?;
            let introduced = self.introduce().await;
            // Only now, for its end is one more thing that the guest has to look after.
            drop(stream);
            match introduced {
                Ok(()) => {
                    return match self.until_ready.apart.take() {
                        Some(apart) => apart.join().await.map_err(|e| e.to_string()),
                        None => Ok(()),
                    };
                }
                Err(GuestError::Machine(e @ MachineError::Gone { .. })) => {
                    return Err(e.to_string());
                }
                Err(e) if tries >= IDENTIFY_TRIES => return Err(e.to_string()),
                Err(e) => {
                    warn!("{}: {e}, trying again", self.vm());
                    tries += 1;
                    tokio::time::sleep(IDENTIFY_PAUSE).await;
                }
            }
        }
    }

    async fn introduce(&mut self) -> Result<(), GuestError> {
        // From before they are read: no change after that is missed.
        self.changes.mark_unchanged();
        // Before users are let in, which an identity does.
        let secrets = match self.grant.read().await {
            Ok(secrets) => secrets,
            Err(e) => {
                warn!("{}: it gets no secrets: {e}", self.vm());
                GuestSecrets::default()
            }
        };
        if !secrets.secrets.is_empty() || self.grant.revoke {
            guest::give_secrets(&*self.machine, &secrets).await?;
        }
        // Last, since every moment it is under way makes it wrong.
        self.identity.clock_unix_nanos = clock();
        if guest::identify(&*self.machine, &self.identity).await? {
            return Ok(());
        }
        guest::wait_ready(&*self.machine).await
    }

    /// Sets the clock of a guest that knows who it is.
    async fn set_clock(&mut self) -> Result<(), GuestError> {
        self.running().await;
        for _ in 0..CLOCK_TRIES {
            let asked = Instant::now();
            self.identity.clock_unix_nanos = clock();
            guest::identify(&*self.machine, &self.identity).await?;
            if asked.elapsed() < CLOCK_TIME {
                return Ok(());
            }
        }
        debug!("{}: it takes its time to set its clock", self.vm());
        Ok(())
    }

    /// Gives a guest that is ready its secrets anew after each change, and whenever it asks for
    /// them. Returns when its agent has ended: the next one knows nothing.
    pub(crate) async fn attend(&mut self) {
        self.running().await;
        let mut requests = match guest::requests(&*self.machine).await {
            Ok(requests) => requests,
            Err(e) => return self.lost(&e).await,
        };
        let mut shares = self.machine.shares_renewed();
        loop {
            let asked = tokio::select! {
                woke = self.wakes.changed() => {
                    // Nobody is left to tell once the daemon ends.
                    if woke.is_err() {
                        std::future::pending::<()>().await;
                    }
                    if let Err(e) = self.set_clock().await {
                        return self.lost(&e).await;
                    }
                    continue;
                }
                request = requests.next() => match request {
                    Ok(Some(GuestRequest::Secrets { id })) => Some(id),
                    Ok(None) => return self.lost("it ended").await,
                    Err(e) => return self.lost(&e).await,
                },
                changed = self.changes.changed() => match changed {
                    Ok(()) => None,
                    // Nothing can change any more: the daemon ends.
                    Err(_) => std::future::pending().await,
                },
                () = renewed(&mut shares) => {
                    // It is to mount them again.
                    if let Err(e) = self.introduce().await {
                        return self.lost(&e).await;
                    }
                    continue;
                }
            };
            if let Err(e) = self.renew(asked).await {
                return self.lost(&e).await;
            }
            if asked.is_some() {
                tokio::time::sleep(REQUEST_PAUSE).await;
            }
        }
    }

    async fn lost(&self, why: impl std::fmt::Display) {
        debug!("{}: its agent is lost: {why}", self.vm());
        // One that can't be listened to must not be greeted without end.
        tokio::time::sleep(IDENTIFY_PAUSE).await;
    }

    /// Waits for a guest that isn't paused, which would take nothing; for ever, when there is none.
    async fn running(&mut self) {
        let able = |v: &View| v.ready && v.phase == Phase::Running;
        if self.view.wait_for(able).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Gives the guest its secrets as they are now, however often that takes. An error means that
    /// its agent is gone.
    async fn renew(&mut self, answers: Option<u64>) -> Result<(), GuestError> {
        loop {
            self.running().await;
            self.changes.mark_unchanged();
            let secrets = match self.grant.read().await {
                Ok(secrets) => secrets,
                Err(e) => {
                    warn!("{}: its secrets stay as they are: {e}", self.vm());
                    return Ok(());
                }
            };
            let secrets = GuestSecrets { answers, ..secrets };
            match guest::give_secrets(&*self.machine, &secrets).await {
                Ok(()) => return Ok(()),
                Err(e @ (GuestError::Refused(..) | GuestError::Timeout(_))) => {
                    let vm = self.vm();
                    warn!("{vm}: giving it its secrets failed, trying again: {e}");
                }
                Err(e) => return Err(e),
            }
            tokio::time::sleep(SECRETS_PAUSE).await;
        }
    }
}
