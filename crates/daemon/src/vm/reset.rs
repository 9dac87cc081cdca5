//! A VM that shall begin anew.

use super::{Phase, Vm};
use crate::DaemonError;
use crate::workdir::WorkDir;
use slicer_api::ApiError;

impl Vm {
    /// Removes the disk of a VM that is off. Its next start makes a fresh one of its image, as its
    /// first did.
    pub(super) async fn reset_disk(&mut self) -> Result<(), ApiError> {
        let name = self.record.hostname.clone();
        if !matches!(self.phase(), Phase::Stopped(_)) {
            return Err(ApiError::conflict(format!(
                "VM {name} is not off: shut it down first"
            )));
        }
        // What of a fork has to differ from its source was made at its first boot, and is not made
        // again.
        if self.record.parent_commit_id.is_some() {
            return Err(ApiError::conflict(format!(
                "VM {name} is a fork: delete it, and fork its commit again"
            )));
        }
        self.check_unleased()?;
        let shared = self.shared.clone();
        let job = move || {
            remove_disk(&shared.work, &name)?;
            shared.templates.tidy();
            Ok(())
        };
        let removed = tokio::task::spawn_blocking(job).await;
        let removed = removed.unwrap_or(Err(DaemonError::Internal("removing a disk")));
        removed.map_err(|e| e.to_api())?;
        // A daemon that dies before this is written finds a VM without a disk, which is as good.
        self.record.disk = None;
        self.record.entrypoint = None;
        self.record.commit_id = None;
        self.save().await.map_err(|e| e.to_api())?;
        self.view.send_modify(|v| v.commit_id = None);
        Ok(())
    }
}

/// Removes a disk. What dies in between leaves it with the name by which the next daemon removes it.
fn remove_disk(work: &WorkDir, name: &str) -> Result<(), DaemonError> {
    let (disk, doomed) = (work.disk(name), work.doomed_disk(name));
    match std::fs::rename(&disk, &doomed) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        renamed => renamed.map_err(DaemonError::io("remove", disk))?,
    }
    std::fs::remove_file(&doomed).map_err(DaemonError::io("remove", doomed))
}
