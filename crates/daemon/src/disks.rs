//! Which disks there are, and what they take.

use crate::DaemonError;
use crate::commits::Filter;
use crate::record::{DiskKind, VmRecord};
use crate::supervisor::Shared;
use crate::workdir::WorkDir;
use slicer_api::{Disk, DiskFormat, DiskOwner, Disks};
use slicer_image::{backing_file, disk_size};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Bytes of a block, as `stat` counts them.
const BLOCK: u64 = 512;

/// All disks, but for what VMs do. Blocks.
pub(crate) fn list(shared: &Shared) -> Result<Disks, DaemonError> {
    let work = &shared.work;
    let mut disks = Vec::new();
    let mut records = VmRecord::read_all(work)?;
    records.sort_by(|a, b| (&a.group, a.ip).cmp(&(&b.group, b.ip)));
    for record in records {
        let name = record.hostname.clone();
        // A VM that is still being launched has none.
        if let Some(kind) = record.disk {
            disks.extend(of(&work.disk(&name), name, DiskOwner::Vm, kind)?);
        }
    }
    for commit in shared.commits.list(&Filter::default()) {
        let path = work.commit_disk(&commit.id);
        disks.extend(of(
            &path,
            commit.id.clone(),
            DiskOwner::Commit,
            commit.disk,
        )?);
    }
    for listed in shared.templates.list() {
        let id = listed.template.id.clone();
        let path = shared.templates.place(&id).disk();
        disks.extend(of(&path, id, DiskOwner::Template, listed.template.disk)?);
    }
    disks.extend(bases(work)?);
    Ok(Disks {
        disk_bytes: disks.iter().map(|disk| disk.disk_bytes).sum(),
        disks,
    })
}

fn bases(work: &WorkDir) -> Result<Vec<Disk>, DaemonError> {
    let dir = work.bases();
    let failed = |e| DaemonError::io("read", &dir)(e);
    let mut found = Vec::new();
    for entry in fs::read_dir(&dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let digest = name
            .strip_suffix(".img")
            .and_then(|name| name.split('-').nth(1));
        if let (true, Some(digest)) = (name.starts_with("sha256-"), digest) {
            let name = format!("sha256:{digest}");
            found.extend(of(&path, name, DiskOwner::Base, DiskKind::Raw)?);
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// What can be said of a disk; nothing, if it went meanwhile.
fn of(
    path: &Path,
    name: String,
    kind: DiskOwner,
    format: DiskKind,
) -> Result<Option<Disk>, DaemonError> {
    let metadata = match fs::metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        metadata => metadata.map_err(DaemonError::io("inspect", path))?,
    };
    let backing_file = match format {
        DiskKind::Qcow2 => backing_file(path)?.map(|file| file.display().to_string()),
        DiskKind::Raw => None,
    };
    Ok(Some(Disk {
        name,
        kind,
        path: path.display().to_string(),
        format: match format {
            DiskKind::Raw => DiskFormat::Raw,
            DiskKind::Qcow2 => DiskFormat::Qcow2,
        },
        size_bytes: disk_size(path, format.into())?,
        disk_bytes: metadata.blocks() * BLOCK,
        backing_file,
        status: None,
    }))
}

/// Bytes that the disk of a VM takes on the host.
pub(crate) fn taken(work: &WorkDir, vm: &str) -> Result<u64, DaemonError> {
    let path = work.disk(vm);
    let metadata = fs::metadata(&path).map_err(DaemonError::io("inspect", &path))?;
    Ok(metadata.blocks() * BLOCK)
}
