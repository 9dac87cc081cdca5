//! How a VM's disk becomes a commit's, in an order that survives a crash at any step.
//!
//! Where the filesystem shares blocks, the commit gets a copy. Elsewhere it gets the disk itself,
//! and the VM goes on with an overlay on it, which costs neither time nor room. There is the commit
//! as soon as its record is; until then, all is taken back.

use super::CommitRecord;
use crate::DaemonError;
use crate::files;
use crate::record::{DiskKind, VmRecord};
use crate::workdir::WorkDir;
use serde::{Deserialize, Serialize};
use slicer_image::{
    CloneKind, CloneOptions, backing_file, clone_disk, disk_size, overlay_disk, reflink_file,
    remove_unfinished,
};
use slicer_machine::DiskFormat;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use tracing::warn;

/// Most disks one lies over: each is a file that QEMU keeps open and a table it looks into. Forty
/// cost nothing that could be measured. Tests would wait for the storage long.
pub(super) const MAX_DEPTH: usize = if cfg!(test) { 6 } else { 128 };

/// What a VM was before its disk changed places, in `before.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Before {
    hostname: String,
    mac: [u8; 6],
    disk: DiskKind,
    commit_id: Option<String>,
}

/// Makes the commit durable; gives the VM's record as it is afterwards, which is durable, too. The
/// VM must be off. Blocks.
pub(crate) fn freeze(
    work: &WorkDir,
    commit: &CommitRecord,
    formats: &[DiskFormat],
) -> Result<VmRecord, DaemonError> {
    let frozen = try_freeze(work, commit, formats);
    if frozen.is_err()
        && let Err(e) = settle(work, &commit.id)
    {
        warn!("{}: cannot take back an unfinished commit: {e}", commit.id);
    }
    frozen
}

fn try_freeze(
    work: &WorkDir,
    commit: &CommitRecord,
    formats: &[DiskFormat],
) -> Result<VmRecord, DaemonError> {
    let (id, vm) = (&commit.id, &commit.source.hostname);
    let (dir, own, disk) = (work.commit(id), work.commit_disk(id), work.disk(vm));
    fs::create_dir(&dir)
        .and_then(|()| files::sync_dir(&work.commits()))
        .map_err(DaemonError::io("create", &dir))?;
    slicer_fault::point("commit.begun");
    // What the guest wrote is in the host's memory for some seconds more.
    File::open(&disk)
        .and_then(|f| f.sync_all())
        .map_err(DaemonError::io("sync", &disk))?;
    let mut after = commit.source.clone();
    after.commit_id = Some(id.clone());
    let before = Before {
        hostname: vm.clone(),
        mac: commit.source.mac,
        disk: commit.disk,
        commit_id: commit.source.commit_id.clone(),
    };
    let path = work.commit_before(id);
    let text = serde_json::to_vec(&before).unwrap_or_default();
    if reflink_file(&disk, &own)? {
        files::write_atomically(&path, &text).map_err(DaemonError::io("write", &path))?;
    } else if formats.contains(&DiskFormat::Qcow2) {
        check_depth(work, commit)?;
        files::write_atomically(&path, &text).map_err(DaemonError::io("write", &path))?;
        slicer_fault::point("commit.noted");
        fs::hard_link(&disk, &own)
            .and_then(|()| files::sync_dir(&dir))
            .map_err(DaemonError::io("link", &own))?;
        slicer_fault::point("commit.linked");
        overlay_disk(&own, commit.disk.into(), &disk)?;
        slicer_fault::point("commit.overlay");
        after.disk = Some(DiskKind::Qcow2);
    } else {
        let options = CloneOptions {
            size: disk_size(&disk, commit.disk.into())?,
            kinds: &[CloneKind::SparseCopy],
            durable: true,
        };
        clone_disk(&disk, &own, &options)?;
        files::write_atomically(&path, &text).map_err(DaemonError::io("write", &path))?;
    }
    after.save(work)?;
    slicer_fault::point("commit.recorded");
    commit.save(work)?;
    slicer_fault::point("commit.saved");
    // There it is. What is left is to forget how it came about.
    if let Err(e) = files::remove(&path) {
        warn!("cannot remove {}: {e}", path.display());
    }
    Ok(after)
}

/// Refuses to lay one more over a disk that lies over too many. Only what a record calls qcow2 is
/// looked into: a guest may write a header into a raw disk, and name whatever it likes there.
fn check_depth(work: &WorkDir, commit: &CommitRecord) -> Result<(), DaemonError> {
    let vm = &commit.source.hostname;
    let (mut disk, mut format) = (work.disk(vm), commit.disk);
    for _ in 0..MAX_DEPTH {
        if format == DiskKind::Raw {
            return Ok(());
        }
        let Some(below) = backing_file(&disk)? else {
            return Ok(());
        };
        // Below the last commit there is at most a base.
        let id = below.parent().and_then(Path::file_name);
        let id = id.unwrap_or_default().to_string_lossy().into_owned();
        if below != work.commit_disk(&id) {
            return Ok(());
        }
        (disk, format) = (below, CommitRecord::load(work, &id)?.disk);
    }
    Err(DaemonError::TooDeep {
        vm: vm.clone(),
        limit: MAX_DEPTH,
    })
}

/// Ends what was begun with a commit's directory: whether there is a commit now. One without a
/// record is taken back: the VM gets its disk again, and the directory goes.
pub(super) fn settle(work: &WorkDir, id: &str) -> Result<bool, DaemonError> {
    let (dir, path) = (work.commit(id), work.commit_before(id));
    remove_unfinished(&dir)?;
    if work.commit_record(id).exists() {
        files::remove(&path).map_err(DaemonError::io("remove", &path))?;
        return Ok(true);
    }
    let text = match fs::read(&path) {
        Ok(text) => Some(text),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(DaemonError::io("read", path)(e)),
    };
    if let Some(text) = text {
        let before: Before = serde_json::from_slice(&text)
            .map_err(|e| DaemonError::io("read", &path)(io::Error::other(e)))?;
        take_back(work, id, &before)?;
    }
    files::remove_tree(&dir).map_err(DaemonError::io("remove", &dir))?;
    files::sync_dir(&work.commits()).map_err(DaemonError::io("write", work.commits()))?;
    Ok(false)
}

/// Gives a VM its disk and its record as they were. It has not run since.
fn take_back(work: &WorkDir, id: &str, before: &Before) -> Result<(), DaemonError> {
    let own = work.commit_disk(id);
    let records = VmRecord::read_all(work)?;
    let vm = records
        .into_iter()
        .find(|r| r.hostname == before.hostname && r.mac == before.mac);
    let Some(mut vm) = vm else {
        return Ok(());
    };
    let disk = work.disk(&vm.hostname);
    if own.exists() {
        // Does nothing when both are names of one file.
        fs::rename(&own, &disk)
            .and_then(|()| files::sync_dir(work.root()))
            .map_err(DaemonError::io("move back to", &disk))?;
    }
    if vm.disk != Some(before.disk) || vm.commit_id != before.commit_id {
        vm.disk = Some(before.disk);
        vm.commit_id.clone_from(&before.commit_id);
        vm.save(work)?;
    }
    Ok(())
}
