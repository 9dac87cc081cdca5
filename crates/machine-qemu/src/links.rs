//! Names by which QEMU opens its disks: hard links in the directory of the VM, which is QEMU's working
//! directory. QEMU opens files anew by their names, at times when those may be others' already: a fork of a
//! running VM puts another file in its disk's place, and a spare VM's files are renamed.

use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, open, unlinkat};
use rustix::io::Errno;
use slicer_machine::{Disk, MachineError};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// How the names end.
const END: &str = ".disk";

/// The names of one VM's disks. They go when this does: whoever has a file open keeps it.
#[derive(Debug)]
pub(crate) struct Links {
    dir: OwnedFd,
    path: PathBuf,
    names: Mutex<Vec<String>>,
}

impl Links {
    /// Those in this directory, of which there are none yet.
    pub(crate) fn new(dir: &Path) -> Result<Self, MachineError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = open(dir, flags, Mode::empty());
        Ok(Self {
            dir: opened.map_err(|e| failed("open", dir)(e))?,
            path: dir.to_owned(),
            names: Mutex::default(),
        })
    }

    /// Gives a file one more name, and says which: relative to the directory.
    pub(crate) fn add(&self, file: &Path, name: &str) -> Result<PathBuf, MachineError> {
        let name = format!("{name}{END}");
        match unlinkat(&self.dir, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(failed("remove", &self.path.join(name))(e)),
        }
        linkat(CWD, file, &self.dir, &name, AtFlags::empty()).map_err(failed("link", file))?;
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.push(name.clone());
        Ok(name.into())
    }

    /// The disks of a VM by names of here, for those it writes to. Where a file can't have another name
    /// it has its own, and the VM can't be forked while it runs.
    pub(crate) fn of(&self, disks: &[Disk]) -> Vec<Disk> {
        let named = |disk: &Disk| {
            let mut disk = disk.clone();
            if !disk.read_only
                && let Ok(name) = self.add(&disk.path, disk.id)
            {
                disk.path = name;
            }
            disk
        };
        disks.iter().map(named).collect()
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        let names = self.names.get_mut().unwrap_or_else(PoisonError::into_inner);
        for name in names.drain(..) {
            // What is left is removed with the directory, or at its next use.
            let _ = unlinkat(&self.dir, name, AtFlags::empty());
        }
    }
}

/// Removes what a dead daemon's machine left in this directory.
pub(crate) fn clear(dir: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(END) {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(Errno) -> MachineError {
    let path = path.to_owned();
    move |e| MachineError::Io {
        action,
        path,
        source: e.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_name_stays_with_its_file_wherever_that_goes() {
        let dir = tempfile::tempdir().unwrap();
        let (run, disk) = (dir.path().join("run"), dir.path().join("a.img"));
        fs::create_dir(&run).unwrap();
        fs::write(run.join("root.disk"), "of before").unwrap();
        fs::write(&disk, "first").unwrap();
        let links = Links::new(&run).unwrap();
        assert_eq!(links.add(&disk, "root").unwrap(), Path::new("root.disk"));
        fs::remove_file(&disk).unwrap();
        fs::write(&disk, "second").unwrap();
        let moved = dir.path().join("moved");
        fs::rename(&run, &moved).unwrap();
        links.add(&disk, "root-1").unwrap();
        let text = |name: &str| fs::read_to_string(moved.join(name)).unwrap();
        assert_eq!(
            (text("root.disk"), text("root-1.disk")),
            ("first".into(), "second".into())
        );
        drop(links);
        assert_eq!(fs::read_dir(&moved).unwrap().count(), 0);
        assert!(disk.exists());
        fs::write(moved.join("x.disk"), "").unwrap();
        fs::write(moved.join("qemu.json"), "").unwrap();
        clear(&moved).unwrap();
        assert_eq!(fs::read_dir(&moved).unwrap().count(), 1);
        clear(&run).unwrap();
    }
}
