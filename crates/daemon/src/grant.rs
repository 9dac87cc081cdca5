//! The secrets of one VM, from the store to its guest.

use crate::DaemonError;
use crate::guest;
use crate::secrets::Secrets;
use crate::vm::{Phase, View};
use slicer_api::GuestSecrets;
use slicer_machine::Machine;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tracing::warn;

/// Between two attempts to give a guest its changed secrets.
const SECRETS_PAUSE: Duration = Duration::from_secs(2);

/// What a VM may see of the secrets.
#[derive(Clone)]
pub(crate) struct Grant {
    pub(crate) store: Arc<Secrets>,
    pub(crate) names: Option<Vec<String>>,
}

impl Grant {
    /// Their values as of now.
    pub(crate) async fn read(&self) -> Result<GuestSecrets, DaemonError> {
        let this = self.clone();
        let read = move || this.store.granted(this.names.as_deref());
        let secrets = tokio::task::spawn_blocking(read).await;
        let secrets = secrets.map_err(|_| DaemonError::Internal("reading secrets"))??;
        Ok(GuestSecrets { secrets })
    }
}

/// Gives a guest that is ready its secrets anew after each change. Ends when nothing can change
/// any more.
pub(crate) async fn keep_secrets(
    vm: String,
    machine: Arc<dyn Machine>,
    grant: Grant,
    mut changes: watch::Receiver<u64>,
    mut view: watch::Receiver<View>,
) {
    loop {
        if changes.changed().await.is_err() {
            return;
        }
        loop {
            // A paused guest takes nothing.
            let able = |v: &View| v.ready && v.phase == Phase::Running;
            if view.wait_for(able).await.is_err() {
                return;
            }
            let given = match grant.read().await {
                Ok(secrets) => guest::give_secrets(&*machine, &secrets).await,
                Err(e) => {
                    warn!("{vm}: its secrets stay as they are: {e}");
                    break;
                }
            };
            match given {
                Ok(()) => break,
                Err(e) => warn!("{vm}: giving it its secrets failed, trying again: {e}"),
            }
            tokio::time::sleep(SECRETS_PAUSE).await;
        }
    }
}
