//! Keeping the host awake.

use super::{Guest, Guests, Hold, SleepInhibitor};
use crate::config::SleepAction;
use std::time::Duration;
use tokio::sync::watch;
use tracing::{info, warn};

/// A host that gives no answer for this long gives no lock.
const INHIBIT_TIME: Duration = Duration::from_secs(10);

/// Holds a lock against sleep for as long as a VM runs whose group asks for that. `changes` tells
/// that a VM may have come, gone, or been paused; when it ends, so does this.
pub(super) async fn prevent(
    guests: &dyn Guests,
    inhibitor: &dyn SleepInhibitor,
    mut changes: watch::Receiver<()>,
) {
    let mut held: Option<Hold> = None;
    let mut told = false;
    loop {
        changes.mark_unchanged();
        let prevents = |g: &Guest| g.action == SleepAction::Prevent && !g.paused;
        match (guests.list().iter().any(prevents), &held) {
            (true, None) => {
                let taken = tokio::time::timeout(INHIBIT_TIME, inhibitor.inhibit()).await;
                match taken {
                    Ok(Ok(hold)) => {
                        info!("the host is kept awake: a VM runs whose sleep_action is prevent");
                        held = Some(hold);
                    }
                    // With the next change it is tried again, but that is no news.
                    _ if told => {}
                    Ok(Err(e)) => warn!("the host may go to sleep while VMs run: {e}"),
                    Err(_) => warn!(
                        "the host may go to sleep while VMs run: it did not answer within \
                         {INHIBIT_TIME:?}"
                    ),
                }
                told |= held.is_none();
            }
            (false, Some(_)) => {
                info!("the host may go to sleep again");
                held = None;
            }
            (true, Some(_)) | (false, None) => {}
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}
