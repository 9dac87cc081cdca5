//! A VM's disk, read as a whole while nothing writes to it.

use super::{DiskLease, Phase, Vm};
use crate::DaemonError;
use crate::commits::CommitRecord;
use crate::workdir::WorkDir;
use slicer_api::ApiError;
use slicer_image::{Export, FileFormat};
use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

impl Vm {
    /// Opens the disk of a VM that is off; of one paused or suspended it is as after a power cut. From
    /// then on its files may be renamed and removed, but not written to.
    pub(super) async fn export(
        &mut self,
        wanted: FileFormat,
    ) -> Result<(Export, DiskLease), ApiError> {
        let name = &self.record.hostname;
        if !matches!(
            self.phase(),
            Phase::Stopped(_) | Phase::Suspended(_) | Phase::Paused
        ) {
            return Err(ApiError::conflict(format!(
                "VM {name} is running, and its disk changes: shut it down first, or pause it"
            )));
        }
        let (work, disk) = (self.shared.work.clone(), self.shared.work.disk(name));
        let Some(kind) = self.record.disk.filter(|_| disk.exists()) else {
            return Err(ApiError::conflict(format!(
                "VM {name} has no disk yet: relaunch it first"
            )));
        };
        let opened = tokio::task::spawn_blocking(move || {
            Export::open(&disk, kind.into(), &|path| format_of(&work, path), wanted)
        });
        let export = match opened.await {
            Ok(Ok(export)) => export,
            Ok(Err(e)) => return Err(DaemonError::from(e).to_api()),
            Err(_) => return Err(DaemonError::Internal("opening a disk").to_api()),
        };
        let lease = self.lease.upgrade().unwrap_or_default();
        self.lease = Arc::downgrade(&lease);
        Ok((export, DiskLease { _held: lease }))
    }

    pub(super) fn is_leased(&self) -> bool {
        self.lease.strong_count() > 0
    }

    /// Refuses to let the VM run while its disk is read.
    pub(super) fn check_unleased(&self) -> Result<(), ApiError> {
        if self.is_leased() {
            let name = &self.record.hostname;
            return Err(ApiError::conflict(format!(
                "the disk of VM {name} is being exported: try again when that is done"
            )));
        }
        Ok(())
    }
}

/// The format of a disk that others may lie over: a commit's or a base.
fn format_of(work: &WorkDir, path: &Path) -> Option<FileFormat> {
    let (dir, name) = (path.parent()?, path.file_name()?);
    if dir == work.bases() {
        return Some(FileFormat::Raw);
    }
    if dir == work.root() {
        // What an earlier version made for a group.
        let is_base = name.to_str()?.ends_with("-base.img");
        return is_base.then_some(FileFormat::Raw);
    }
    let id = dir.file_name().and_then(OsStr::to_str)?;
    if path != work.commit_disk(id) {
        return None;
    }
    Some(CommitRecord::load(work, id).ok()?.disk.into())
}
