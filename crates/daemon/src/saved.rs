//! The saved state of a VM that is suspended: its memory and devices as its hypervisor wrote them,
//! and what its disks were then.
//!
//! ```text
//! .slicer/suspended/<vm>/memory       the hypervisor's file
//! .slicer/suspended/<vm>/saved.json   what makes it a saved state: written last, removed first
//! ```
//!
//! A guest's memory holds what it knows of its disks. Taken up over a disk that was written to since,
//! it would ruin it, so every file the machine has is stamped with its size and time of change.

use crate::DaemonError;
use crate::files;
use crate::workdir::WorkDir;
use serde::{Deserialize, Serialize};
use slicer_api::Timestamp;
use slicer_machine::MachineSpec;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use tracing::{info, warn};

/// What is known of a saved state, in its `saved.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Saved {
    /// When it was saved.
    pub(crate) at: Timestamp,
    /// What the hypervisor wants to know again.
    pub(crate) note: String,
    /// Whether the next daemon restores it unasked, for the one that stopped suspended it.
    pub(crate) restore_at_start: bool,
    stamps: Vec<Stamp>,
}

/// A file of the machine, as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    /// What it is to the machine, for its path may change with the working directory's.
    role: String,
    size: u64,
    modified_secs: i64,
    modified_nanos: i64,
}

impl Stamp {
    pub(crate) fn of(role: &str, path: &Path) -> io::Result<Self> {
        let meta = fs::metadata(path)?;
        Ok(Self {
            role: role.to_owned(),
            size: meta.size(),
            modified_secs: meta.mtime(),
            modified_nanos: meta.mtime_nsec(),
        })
    }
}

/// The files of a machine, and what they are to it.
fn files_of(spec: &MachineSpec) -> impl Iterator<Item = (&str, &Path)> {
    let boot = [
        ("kernel", &*spec.boot.kernel),
        ("initramfs", &*spec.boot.initramfs),
    ];
    let disks = spec.disks.iter().map(|d| (d.id, &*d.path));
    boot.into_iter().chain(disks)
}

/// The hypervisor's file.
pub(crate) fn memory(work: &WorkDir, vm: &str) -> PathBuf {
    work.suspended(vm).join("memory")
}

fn note(work: &WorkDir, vm: &str) -> PathBuf {
    work.suspended(vm).join("saved.json")
}

/// Makes room for a state: the file its memory goes to, which isn't there yet.
pub(crate) fn begin(work: &WorkDir, vm: &str) -> Result<PathBuf, DaemonError> {
    discard(work, vm)?;
    let dir = work.suspended(vm);
    let made = DirBuilder::new().mode(0o700).create(&dir);
    made.map_err(DaemonError::io("create", dir))?;
    slicer_fault::point("suspend.begun");
    Ok(memory(work, vm))
}

impl Saved {
    /// Makes what was written to [`begin`]'s file a saved state. It is durable when this returns, and
    /// so are the disks, on which nothing runs any more.
    pub(crate) fn complete(
        work: &WorkDir,
        spec: &MachineSpec,
        hypervisor_note: String,
        restore_at_start: bool,
    ) -> Result<Self, DaemonError> {
        slicer_fault::point("suspend.memory");
        let mut stamps = Vec::new();
        for (role, path) in files_of(spec) {
            let failed = |action| DaemonError::io(action, path);
            if !spec.disks.iter().any(|d| d.path == path && d.read_only) {
                let synced = File::open(path).and_then(|file| file.sync_all());
                synced.map_err(failed("write out"))?;
            }
            stamps.push(Stamp::of(role, path).map_err(failed("look at"))?);
        }
        let saved = Self {
            at: Timestamp::now(),
            note: hypervisor_note,
            restore_at_start,
            stamps,
        };
        let path = note(work, &spec.name);
        let text = serde_json::to_vec_pretty(&saved).unwrap_or_default();
        files::write_atomically(&path, &text).map_err(DaemonError::io("write", path))?;
        let dir = work.all_suspended();
        files::sync_dir(&dir).map_err(DaemonError::io("write", dir))?;
        slicer_fault::point("suspend.saved");
        Ok(saved)
    }

    /// The saved state of a VM, if there is one. One that can't be read is told and is none.
    pub(crate) fn load(work: &WorkDir, vm: &str) -> Option<Self> {
        let path = note(work, vm);
        let text = fs::read(&path).ok()?;
        serde_json::from_slice(&text)
            .inspect_err(|e| warn!("{} is not a saved state: {e}: ignored", path.display()))
            .ok()
    }

    /// What of the machine's files is no longer as it was when the state was saved.
    pub(crate) fn stale(&self, spec: &MachineSpec) -> Option<String> {
        for (role, path) in files_of(spec) {
            let name = path.display();
            let Some(then) = self.stamps.iter().find(|s| s.role == role) else {
                return Some(format!("{name} is new"));
            };
            match Stamp::of(role, path) {
                Ok(now) if now == *then => {}
                Ok(_) => return Some(format!("{name} was changed since")),
                Err(e) => return Some(format!("{name} can't be looked at: {e}")),
            }
        }
        let known = |s: &&Stamp| !files_of(spec).any(|(role, _)| role == s.role);
        let gone = self.stamps.iter().find(known);
        gone.map(|s| format!("its machine no longer has the {}", s.role))
    }
}

/// Removes the saved state of a VM, or the begin of one; none is success. It is none from the first
/// step on.
pub(crate) fn discard(work: &WorkDir, vm: &str) -> Result<(), DaemonError> {
    let path = note(work, vm);
    let was_one = path.exists();
    files::remove(&path).map_err(DaemonError::io("remove", path))?;
    if was_one {
        slicer_fault::point("restore.forgotten");
    }
    let dir = work.suspended(vm);
    files::remove_tree(&dir).map_err(DaemonError::io("remove", dir))
}

/// Removes what a daemon that died left of states that it was writing, or of VMs there are no more.
pub(crate) fn sweep(work: &WorkDir) -> Result<(), DaemonError> {
    let all = work.all_suspended();
    for entry in fs::read_dir(&all).map_err(DaemonError::io("read", &all))? {
        let entry = entry.map_err(DaemonError::io("read", &all))?;
        let name = entry.file_name();
        let Some(vm) = name.to_str() else { continue };
        if !note(work, vm).exists() || !work.record(vm).exists() {
            info!("{vm}: removed a saved state that was never whole, or whose VM is gone");
            discard(work, vm)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use slicer_machine::{Arch, Boot, Disk, DiskFormat};

    fn spec(work: &WorkDir) -> MachineSpec {
        let root = work.disk("a-1");
        for (name, text) in [("vmlinux", "k"), ("initramfs", "i"), ("modules", "m")] {
            fs::write(work.root().join(name), text).unwrap();
        }
        fs::write(&root, "disk").unwrap();
        let disk = |id, path, read_only| Disk {
            id,
            path,
            format: DiskFormat::Raw,
            read_only,
            flush: true,
        };
        MachineSpec {
            name: "a-1".into(),
            arch: Arch::X86_64,
            cpus: 1,
            memory_bytes: 1 << 28,
            boot: Boot {
                kernel: work.root().join("vmlinux"),
                initramfs: work.root().join("initramfs"),
                cmdline: String::new(),
            },
            disks: vec![
                disk("root", root, false),
                disk("modules", work.root().join("modules"), true),
            ],
            network: None,
            shares: Vec::new(),
            rosetta: false,
            clonable: false,
            console: work.console("a-1"),
            state_dir: work.run("a-1"),
        }
    }

    #[test]
    fn a_state_is_one_when_its_note_is_there_and_stale_when_a_file_changed() {
        let dir = tempfile::tempdir().unwrap();
        let work = WorkDir::open(dir.path()).unwrap();
        let spec = spec(&work);
        let file = begin(&work, "a-1").unwrap();
        fs::write(&file, "memory").unwrap();
        assert_eq!(Saved::load(&work, "a-1"), None);
        let saved = Saved::complete(&work, &spec, "note".into(), true).unwrap();
        assert_eq!(Saved::load(&work, "a-1").unwrap(), saved);
        assert_eq!(saved.stale(&spec), None);

        for (path, name) in [
            (work.disk("a-1"), "a-1.img"),
            (dir.path().join("vmlinux"), "vmlinux"),
        ] {
            let before = fs::metadata(&path).unwrap().modified().unwrap();
            let file = File::options().write(true).open(&path).unwrap();
            file.set_modified(before + std::time::Duration::from_millis(1))
                .unwrap();
            let why = saved.stale(&spec).unwrap();
            assert!(why.contains(name), "{why}");
            file.set_modified(before).unwrap();
            assert_eq!(saved.stale(&spec), None);
        }
        let mut fewer = spec.clone();
        fewer.disks.pop();
        assert!(saved.stale(&fewer).unwrap().contains("modules"));
        let later = Saved {
            stamps: vec![],
            ..saved
        };
        assert!(later.stale(&spec).unwrap().contains("is new"));

        discard(&work, "a-1").unwrap();
        discard(&work, "a-1").unwrap();
        assert_eq!(Saved::load(&work, "a-1"), None);
        assert!(!work.suspended("a-1").exists());
    }

    #[test]
    fn what_was_never_whole_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        let work = WorkDir::open(dir.path()).unwrap();
        let spec = spec(&work);
        crate::record::tests::sample("a-1").save(&work).unwrap();
        fs::write(begin(&work, "a-1").unwrap(), "memory").unwrap();
        Saved::complete(&work, &spec, String::new(), false).unwrap();
        fs::write(begin(&work, "b-1").unwrap(), "half").unwrap();
        sweep(&work).unwrap();
        assert!(Saved::load(&work, "a-1").is_some());
        assert!(!work.suspended("b-1").exists());
    }
}
