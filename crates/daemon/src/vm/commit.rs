//! What commits and forks are to a VM's actor.

use super::{Phase, Vm};
use crate::DaemonError;
use crate::commits::{CommitRecord, freeze};
use slicer_api::{ApiError, CommitRequest};
use std::sync::Arc;
use tracing::{info, warn};

impl Vm {
    /// Makes a commit of the disk of a VM that is off, and stays so meanwhile, for nothing else is
    /// done here.
    pub(super) async fn commit(
        &mut self,
        request: CommitRequest,
    ) -> Result<CommitRecord, ApiError> {
        let name = &self.record.hostname;
        if !matches!(self.phase(), Phase::Stopped(_)) {
            return Err(ApiError::conflict(format!(
                "VM {name} is not stopped: shut it down first"
            )));
        }
        let Some(disk) = self
            .record
            .disk
            .filter(|_| self.shared.work.disk(name).exists())
        else {
            return Err(ApiError::conflict(format!(
                "VM {name} has no disk yet: relaunch it first"
            )));
        };
        if self.is_unsettled() {
            return Err(ApiError::conflict(format!(
                "VM {name} is a fork that was never ready: relaunch it first"
            )));
        }
        let commit = CommitRecord::new(&self.record, disk, request).map_err(|e| e.to_api())?;
        let (shared, record) = (self.shared.clone(), commit.clone());
        let frozen = tokio::task::spawn_blocking(move || {
            let formats = &shared.hypervisor.capabilities().disk_formats;
            freeze(&shared.work, &record, formats)
        });
        let frozen = frozen
            .await
            .unwrap_or(Err(DaemonError::Internal("making a commit")));
        self.record = frozen.map_err(|e| e.to_api())?;
        let id: Arc<str> = commit.id.as_str().into();
        self.view.send_modify(|v| v.commit_id = Some(id));
        info!("{}: committed as {}", self.record.hostname, commit.id);
        Ok(commit)
    }

    /// Whether this is a fork that was never ready, and so may still be its source's twin.
    pub(super) fn is_unsettled(&self) -> bool {
        self.record.fixups.is_some()
    }

    /// Notes that the guest is one of its own: what was made anew is so once.
    pub(super) async fn settled(&mut self) {
        if self.record.fixups.take().is_none() {
            return;
        }
        if let Err(e) = self.save().await {
            warn!(
                "{}: its next start will make it anew again: {e}",
                self.record.hostname
            );
        }
    }
}
