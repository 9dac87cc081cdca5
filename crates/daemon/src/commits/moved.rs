//! A working directory that was moved or copied: overlays name what they lie over by its whole path,
//! and are told the new one.

use super::{Commits, Filter};
use crate::DaemonError;
use crate::record::{DiskKind, VmRecord};
use crate::workdir::WorkDir;
use slicer_image::{backing_file, set_backing_file};
use std::path::{Component, Path, PathBuf};
use tracing::info;

/// Has every disk that lies over one of this directory's name that where it is now. No VM may run.
pub(crate) fn follow(work: &WorkDir, commits: &Commits) -> Result<(), DaemonError> {
    // Only what a record calls qcow2: a guest may have written anything into a raw disk.
    let vms = VmRecord::read_all(work)?.into_iter();
    let vms = vms
        .filter(|vm| vm.disk == Some(DiskKind::Qcow2))
        .map(|vm| work.disk(&vm.hostname));
    let all = commits.list(&Filter::default()).into_iter();
    let own = all
        .filter(|c| c.disk == DiskKind::Qcow2)
        .map(|c| work.commit_disk(&c.id));
    for disk in vms.chain(own).filter(|disk| disk.exists()) {
        let Some(was) = backing_file(&disk)? else {
            continue;
        };
        let Some(is) = here(work.root(), &was).filter(|is| *is != was && is.is_file()) else {
            continue;
        };
        info!("{} lies over {} now", disk.display(), is.display());
        set_backing_file(&disk, &is)?;
    }
    Ok(())
}

/// Where a file of a working directory's state is in this one.
fn here(root: &Path, file: &Path) -> Option<PathBuf> {
    let mut parts = file.components();
    let state = parts.by_ref().find(|p| p.as_os_str() == ".slicer")?;
    let below = parts.as_path();
    let plain = below
        .components()
        .all(|p| matches!(p, Component::Normal(_)));
    plain.then(|| root.join(state).join(below))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_state_is_looked_for_here() {
        let here = |file: &str| here(Path::new("/new"), Path::new(file));
        let disk = here("/old/dir/.slicer/commits/cmt-1/disk.img");
        assert_eq!(
            disk.unwrap(),
            Path::new("/new/.slicer/commits/cmt-1/disk.img")
        );
        assert_eq!(here("/old/sbox-base.img"), None);
        assert_eq!(here("/old/.slicer/../x"), None);
    }
}
