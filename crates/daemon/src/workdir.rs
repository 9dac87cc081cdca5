//! The daemon's working directory: what lies where, and that one daemon at a time uses it.
//!
//! ```text
//! slicer-mac.yaml  slicer.sock         what the user sees
//! oci-cache/                           images from registries
//! <group>-base.img                     a group's image as a disk: a link to the one in bases
//! <vm>.img                             a VM's disk
//! kernel/<group>/                      kernel, initramfs and modules of a group
//! logs/<vm>.txt                        a VM's serial console
//! .slicer/lock                         held (flock) by the running daemon
//! .slicer/vms/<vm>.json                a VM's record
//! .slicer/bases/                       images as disks, the parents of VMs' disks
//! .slicer/run/<vm>/                    what the hypervisor keeps while a VM runs
//! .slicer/suspended/<vm>/              the memory of a VM that is suspended, see `saved`
//! .slicer/templates/<id>/              a VM to begin others as, see `templates`
//! .slicer/commits/<id>/                a commit: a VM's disk as it once was, see `commits`
//! .slicer/auth/token                   the API's bearer token
//! ```

use crate::DaemonError;
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// How long the lock is waited for.
const LOCK_TIME: Duration = Duration::from_millis(250);

/// The working directory, locked for as long as this lives.
#[derive(Debug)]
pub(crate) struct WorkDir {
    root: PathBuf,
    _lock: File,
}

/// Takes the lock, if it is free or about to be: of a process that has ended, a child between its fork
/// and its exec may hold it for a moment longer.
fn acquire(lock: &File) -> bool {
    let until = Instant::now() + LOCK_TIME;
    while flock(lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        if Instant::now() >= until {
            return false;
        }
        thread::sleep(Duration::from_millis(10));
    }
    true
}

/// A daemon that works in a directory.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    /// Its process, if it says so.
    pub(crate) pid: Option<i32>,
}

/// Who works in this directory, if somebody does.
pub(crate) fn holder(root: &Path) -> Option<Holder> {
    let lock = File::open(root.join(".slicer/lock")).ok()?;
    // Shared, so that two who only look don't see each other.
    if flock(&lock, FlockOperation::NonBlockingLockShared).is_ok() {
        return None;
    }
    Some(Holder {
        pid: noted_pid(&lock),
    })
}

/// The pid in a lock that is held. It is a courtesy; the lock is what counts.
fn noted_pid(lock: &File) -> Option<i32> {
    let mut text = String::new();
    let _ = lock.take(32).read_to_string(&mut text);
    text.trim().parse().ok()
}

impl WorkDir {
    /// Locks the directory and makes what lies in it.
    ///
    /// # Errors
    /// [`DaemonError::Locked`] when another daemon works here.
    pub(crate) fn open(root: &Path) -> Result<Self, DaemonError> {
        let root = root.canonicalize().map_err(DaemonError::io("open", root))?;
        let state = root.join(".slicer");
        for (dir, mode) in [
            (state.clone(), 0o700),
            (root.join("logs"), 0o755),
            (root.join("kernel"), 0o755),
        ] {
            let made = DirBuilder::new().recursive(true).mode(mode).create(&dir);
            made.map_err(DaemonError::io("create", dir))?;
        }
        for dir in [
            "vms",
            "run",
            "commits",
            "auth",
            "bases",
            "suspended",
            "templates",
        ] {
            let dir = state.join(dir);
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&dir);
            made.map_err(DaemonError::io("create", dir))?;
        }
        // One that somebody else made may be open to others.
        fs::set_permissions(&state, Permissions::from_mode(0o700))
            .map_err(DaemonError::io("restrict", &state))?;
        let path = state.join("lock");
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path);
        let mut lock = opened.map_err(DaemonError::io("open", &path))?;
        if !acquire(&lock) {
            return Err(DaemonError::Locked {
                dir: root,
                pid: noted_pid(&lock),
            });
        }
        let noted = lock
            .set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| writeln!(lock, "{}", std::process::id()));
        noted.map_err(DaemonError::io("write", &path))?;
        Ok(Self { root, _lock: lock })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn base(&self, group: &str) -> PathBuf {
        self.root.join(format!("{group}-base.img"))
    }

    pub(crate) fn bases(&self) -> PathBuf {
        self.root.join(".slicer/bases")
    }

    pub(crate) fn image_cache(&self) -> PathBuf {
        self.root.join("oci-cache")
    }

    /// Where archives are put that come over the API.
    pub(crate) fn uploads(&self) -> PathBuf {
        self.root.join("oci-cache/uploads")
    }

    pub(crate) fn disk(&self, vm: &str) -> PathBuf {
        self.root.join(format!("{vm}.img"))
    }

    /// The name a disk has between the decision to remove it and its removal.
    pub(crate) fn doomed_disk(&self, vm: &str) -> PathBuf {
        self.root.join(format!("{vm}.img{DOOMED}"))
    }

    pub(crate) fn kernel(&self, group: &str) -> PathBuf {
        self.root.join("kernel").join(group)
    }

    pub(crate) fn console(&self, vm: &str) -> PathBuf {
        self.root.join("logs").join(format!("{vm}.txt"))
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.root.join(".slicer")
    }

    pub(crate) fn records(&self) -> PathBuf {
        self.root.join(".slicer/vms")
    }

    pub(crate) fn record(&self, vm: &str) -> PathBuf {
        self.records().join(format!("{vm}.json"))
    }

    /// Whether there is a record or a disk of this name, readable or not: somebody may want it.
    pub(crate) fn has(&self, vm: &str) -> bool {
        self.record(vm).exists() || self.disk(vm).exists()
    }

    pub(crate) fn run(&self, vm: &str) -> PathBuf {
        self.root.join(".slicer/run").join(vm)
    }

    pub(crate) fn all_suspended(&self) -> PathBuf {
        self.root.join(".slicer/suspended")
    }

    /// Where the saved state of a VM is.
    pub(crate) fn suspended(&self, vm: &str) -> PathBuf {
        self.all_suspended().join(vm)
    }

    pub(crate) fn templates(&self) -> PathBuf {
        self.root.join(".slicer/templates")
    }

    pub(crate) fn commits(&self) -> PathBuf {
        self.root.join(".slicer/commits")
    }

    pub(crate) fn commit(&self, id: &str) -> PathBuf {
        self.commits().join(id)
    }

    pub(crate) fn commit_disk(&self, id: &str) -> PathBuf {
        self.commit(id).join("disk.img")
    }

    pub(crate) fn commit_record(&self, id: &str) -> PathBuf {
        self.commit(id).join("commit.json")
    }

    /// What a VM was before its disk became a commit's.
    pub(crate) fn commit_before(&self, id: &str) -> PathBuf {
        self.commit(id).join("before.json")
    }

    /// There as long as the host's networks have something of ours.
    pub(crate) fn networks_note(&self) -> PathBuf {
        self.state().join("networks")
    }

    pub(crate) fn token(&self) -> PathBuf {
        self.root.join(".slicer/auth/token")
    }

    /// Removes what a daemon that died was in the middle of removing or writing.
    pub(crate) fn sweep(&self) -> Result<(), DaemonError> {
        let failed = |e| DaemonError::io("read", &self.root)(e);
        for entry in fs::read_dir(&self.root).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.to_string_lossy().ends_with(&format!(".img{DOOMED}")) {
                crate::files::remove(&path).map_err(DaemonError::io("remove", &path))?;
            }
        }
        slicer_image::remove_unfinished(&self.root)?;
        slicer_image::remove_unfinished(&self.bases())?;
        Ok(())
    }
}

const DOOMED: &str = ".deleting";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_daemon_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(holder(dir.path()), None);
        let first = WorkDir::open(dir.path()).unwrap();
        let pid = i32::try_from(std::process::id()).unwrap();
        assert_eq!(holder(dir.path()), Some(Holder { pid: Some(pid) }));
        let e = WorkDir::open(dir.path()).unwrap_err();
        assert!(
            e.to_string()
                .contains(&format!("pid {}", std::process::id())),
            "{e}"
        );
        drop(first);
        assert_eq!(holder(dir.path()), None);
        WorkDir::open(dir.path()).unwrap();
    }

    #[test]
    fn half_removed_disks_are_swept() {
        let dir = tempfile::tempdir().unwrap();
        let work = WorkDir::open(dir.path()).unwrap();
        fs::write(work.doomed_disk("sbox-1"), "x").unwrap();
        fs::write(work.disk("slicer-1"), "x").unwrap();
        work.sweep().unwrap();
        assert!(!work.doomed_disk("sbox-1").exists());
        assert!(work.disk("slicer-1").exists());
    }
}
