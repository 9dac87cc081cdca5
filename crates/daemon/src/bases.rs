//! Base disks: images as disks, named for what is in them and shared by the groups that have them.
//!
//! A base that is there under its name is complete, and its content never changes: VMs' disks may
//! be overlays on it, also those of VMs that are stopped. Another image, or another size, is another
//! base. One that no group of the configuration has and no disk reads from is removed when the
//! daemon starts.

mod stock;

pub(crate) use stock::{Base, Reader};

use crate::config::HostGroupConfig;
use crate::workdir::WorkDir;
use crate::{DaemonError, files};
use slicer_image::{
    Limits, Progress, Resolved, adopt_base, backing_file, base_is_current, base_name, build_base,
};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tracing::{info, warn};

/// How deep below `.slicer` disks are looked for.
const MAX_DEPTH: usize = 6;
/// How the name of a file ends that says which base a group has.
const USE: &str = ".use";

/// The bases of a working directory.
pub(crate) struct Bases {
    work: Arc<WorkDir>,
    /// Held by whoever makes the base of this name: others of the same wait for it.
    making: Mutex<HashMap<String, Arc<Mutex<()>>>>,
}

impl Bases {
    pub(crate) fn new(work: Arc<WorkDir>) -> Self {
        Self {
            work,
            making: Mutex::default(),
        }
    }

    pub(crate) fn work(&self) -> &Arc<WorkDir> {
        &self.work
    }

    /// The base of a group whose image this is, made first if it is missing. Blocks.
    pub(crate) fn prepare(
        &self,
        group: &HostGroupConfig,
        image: &Resolved,
    ) -> Result<PathBuf, DaemonError> {
        let name = base_name(image, group.storage_size);
        let base = self.work.bases().join(&name);
        let lock = {
            let mut making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
            making.entry(name.clone()).or_default().clone()
        };
        let _making = lock.lock().unwrap_or_else(PoisonError::into_inner);
        // Before the base is there, or a daemon that starts in between would remove it.
        self.note_use(&group.name, &name)?;
        let linked = self.work.base(&group.name);
        if !base_is_current(&base, image, group.storage_size) {
            // What an earlier version made for the group itself is as good.
            let adopted = base_is_current(&linked, image, group.storage_size)
                && adopt_base(&linked, &base).is_ok();
            if !adopted {
                build(group, image, &base)?;
            }
        }
        self.link(&group.name, &base)?;
        Ok(base)
    }

    fn note_use(&self, group: &str, base: &str) -> Result<(), DaemonError> {
        let path = self.work.bases().join(format!("{group}{USE}"));
        if fs::read_to_string(&path).is_ok_and(|noted| noted == base) {
            return Ok(());
        }
        files::write_atomically(&path, base.as_bytes()).map_err(DaemonError::io("write", &path))
    }

    /// Has `<group>-base.img` lead to the group's base, unless disks of an earlier version read from
    /// what has that name.
    fn link(&self, group: &str, base: &Path) -> Result<(), DaemonError> {
        let link = self.work.base(group);
        // Nor if that can't be told: a guest may write nonsense into its disk.
        let is_read = || {
            self.backing_files()
                .map_or(true, |reading| reading.contains(&link))
        };
        if link.exists() && (same_file(&link, base) || is_read()) {
            return Ok(());
        }
        let new = self.work.bases().join(format!(".{group}.link.slicer-part"));
        let linked = files::remove(&new)
            .and_then(|()| fs::hard_link(base, &new))
            .and_then(|()| fs::rename(&new, &link));
        if let Err(e) = linked {
            // It is for people who look; clones are made of the base itself.
            warn!("cannot link {} to {}: {e}", link.display(), base.display());
        }
        let mut note = link.into_os_string();
        note.push(".json");
        let note = PathBuf::from(note);
        files::remove(&note).map_err(DaemonError::io("remove", &note))
    }

    /// Removes the bases that none of these groups has and no disk reads from. Only at the start of
    /// the daemon, before anything is cloned.
    pub(crate) fn remove_unused(&self, groups: &[&str]) -> Result<(), DaemonError> {
        let dir = self.work.bases();
        let reading = match self.backing_files() {
            Ok(reading) => reading,
            Err(e) => {
                warn!("keeping all base disks: {e}");
                return Ok(());
            }
        };
        let mut kept: HashSet<PathBuf> = HashSet::new();
        for group in groups {
            if let Ok(name) = fs::read_to_string(dir.join(format!("{group}{USE}"))) {
                kept.insert(dir.join(name));
            }
        }
        kept.extend(reading.iter().cloned());
        let failed = |e| DaemonError::io("read", &dir)(e);
        for entry in fs::read_dir(&dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_none_or(|e| e != "img") || kept.contains(&path) {
                continue;
            }
            info!("removing {}: nothing uses it", path.display());
            self.unlink_groups(&path, groups, &reading)?;
            remove_base(path)?;
        }
        for entry in fs::read_dir(&dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.strip_suffix(USE).is_some_and(|g| !groups.contains(&g)) {
                files::remove(&path).map_err(DaemonError::io("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Removes the links of groups that are no more, which would keep the base's blocks.
    fn unlink_groups(
        &self,
        base: &Path,
        groups: &[&str],
        reading: &HashSet<PathBuf>,
    ) -> Result<(), DaemonError> {
        let root = self.work.root();
        let failed = |e| DaemonError::io("read", root)(e);
        for entry in fs::read_dir(root).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let Some(group) = name.strip_suffix("-base.img") else {
                continue;
            };
            if !groups.contains(&group) && !reading.contains(&path) && same_file(&path, base) {
                files::remove(&path).map_err(DaemonError::io("remove", &path))?;
            }
        }
        Ok(())
    }

    /// What the disks of the working directory read from.
    pub(crate) fn backing_files(&self) -> Result<HashSet<PathBuf>, DaemonError> {
        let mut found = HashSet::new();
        for (_, backing) in self.overlays()? {
            found.extend(fs::canonicalize(&backing).ok());
            found.insert(backing);
        }
        Ok(found)
    }

    /// The disks that read from other files, and from which.
    fn overlays(&self) -> Result<Vec<(PathBuf, PathBuf)>, DaemonError> {
        let mut found = Vec::new();
        let mut dirs = vec![
            (self.work.state(), MAX_DEPTH),
            (self.work.root().to_owned(), 0),
        ];
        while let Some((dir, depth)) = dirs.pop() {
            let failed = |e| DaemonError::io("read", &dir)(e);
            let entries = match fs::read_dir(&dir) {
                // A VM's directory that went while we looked.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                entries => entries.map_err(failed)?,
            };
            for entry in entries {
                let entry = entry.map_err(failed)?;
                let (path, kind) = (entry.path(), entry.file_type().map_err(failed)?);
                if kind.is_dir() && depth > 0 {
                    dirs.push((path, depth - 1));
                } else if kind.is_file() && path != self.work.root().join(".slicer/lock") {
                    match backing_file(&path) {
                        Ok(Some(backing)) => found.push((path, backing)),
                        Ok(None) => {}
                        Err(_) if !path.exists() => {}
                        Err(e) => return Err(e.into()),
                    }
                }
            }
        }
        Ok(found)
    }
}

fn build(group: &HostGroupConfig, image: &Resolved, base: &Path) -> Result<(), DaemonError> {
    let start = Instant::now();
    let name = &group.name;
    info!("group {name}: building a base from {}", group.image);
    let skipped = |p: Progress<'_>| {
        if let Progress::Skipped { entry, why } = p {
            warn!("{}: left out {entry}: {why}", group.image);
        }
    };
    let limits = Limits {
        max_bytes: group.storage_size,
        ..Limits::default()
    };
    build_base(image, base, group.storage_size, &limits, &skipped)?;
    info!("group {name}: base built in {:.1?}", start.elapsed());
    Ok(())
}

/// Whether both names are of one file.
fn same_file(a: &Path, b: &Path) -> bool {
    let id = |path| fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
    id(a).is_some_and(|a| Some(a) == id(b))
}

/// Removes a base and its note.
fn remove_base(path: PathBuf) -> Result<(), DaemonError> {
    let mut note = path.clone().into_os_string();
    note.push(".json");
    // The note first: it vouches for the base.
    for path in [PathBuf::from(note), path] {
        files::remove(&path).map_err(DaemonError::io("remove", &path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
