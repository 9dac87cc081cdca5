//! What there is of a VM on disk: who may make it, and how it goes.

use crate::DaemonError;
use crate::files;
use crate::record::VmRecord;
use crate::workdir::WorkDir;
use std::sync::{Arc, Mutex, PoisonError};

/// Keeps a clone that was called off, but runs on in its thread, from leaving a disk behind.
#[derive(Debug, Clone, Default)]
pub(crate) struct DiskGate(Arc<Mutex<bool>>);

impl DiskGate {
    /// Does `make` unless the gate is closed.
    pub(crate) fn pass<T>(&self, make: impl FnOnce() -> T) -> Option<T> {
        let closed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if *closed { None } else { Some(make()) }
    }

    /// Waits for what has passed, closes the gate for good and does `end`.
    pub(super) fn close<T>(&self, end: impl FnOnce() -> T) -> T {
        let mut closed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *closed = true;
        end()
    }
}

/// Removes what there is of a VM on disk.
pub(crate) fn remove_files(work: &WorkDir, name: &str) -> Result<(), DaemonError> {
    let (disk, doomed) = (work.disk(name), work.doomed_disk(name));
    match std::fs::rename(&disk, &doomed) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(DaemonError::io("remove", disk)(e));
        }
        _ => {}
    }
    slicer_fault::point("delete.renamed");
    crate::saved::discard(work, name)?;
    let dir = work.run(name);
    files::remove_tree(&dir).map_err(DaemonError::io("remove", dir))?;
    let console = work.console(name);
    match std::fs::remove_file(&console) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(DaemonError::io("remove", console)(e));
        }
        _ => {}
    }
    VmRecord::remove(work, name)?;
    slicer_fault::point("delete.forgotten");
    match std::fs::remove_file(&doomed) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(DaemonError::io("remove", doomed)(e))
        }
        _ => Ok(()),
    }
}
