//! Which bases there are, who reads from them, and removing one while the daemon runs.

use super::{Bases, USE, remove_base};
use crate::{DaemonError, files};
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Bytes of a block, as `stat` counts them.
const BLOCK: u64 = 512;
/// How many disks lie over each other at most.
const MAX_CHAIN: usize = 1024;

/// A disk that reads from a base, itself or by way of others.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reader {
    Vm(String),
    Commit(String),
    Other(String),
}

impl std::fmt::Display for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Vm(name) => write!(f, "VM {name}"),
            Self::Commit(id) => write!(f, "commit {id}"),
            Self::Other(path) => f.write_str(path),
        }
    }
}

/// A base.
#[derive(Debug)]
pub(crate) struct Base {
    path: PathBuf,
    id: (u64, u64),
    /// The digest of the manifest of the image it was made of.
    pub(crate) digest: String,
    pub(crate) disk_bytes: u64,
    pub(crate) readers: Vec<Reader>,
    /// The groups whose newest base it is.
    pub(crate) groups: Vec<String>,
}

impl Bases {
    /// All bases. Fails if who reads from them can't be told.
    pub(crate) fn list(&self) -> Result<Vec<Base>, DaemonError> {
        let dir = self.work.bases();
        let failed = |e| DaemonError::io("read", &dir)(e);
        let (mut all, mut uses) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if let Some(group) = name.strip_suffix(USE) {
                if let Ok(base) = fs::read_to_string(&path) {
                    uses.push((group.to_owned(), dir.join(base)));
                }
                continue;
            }
            let (Some(digest), Ok(metadata)) = (digest(&name), fs::metadata(&path)) else {
                continue;
            };
            all.push(Base {
                digest,
                id: (metadata.dev(), metadata.ino()),
                disk_bytes: metadata.blocks() * BLOCK,
                readers: Vec::new(),
                groups: Vec::new(),
                path,
            });
        }
        let overlays: HashMap<PathBuf, PathBuf> = self.overlays()?.into_iter().collect();
        for (disk, backing) in &overlays {
            let mut at = backing;
            for _ in 0..MAX_CHAIN {
                match overlays.get(at) {
                    Some(next) => at = next,
                    None => break,
                }
            }
            let id = fs::metadata(at).map(|m| (m.dev(), m.ino())).ok();
            if let Some(base) = all.iter_mut().find(|base| Some(base.id) == id) {
                base.readers.push(self.reader(disk));
            }
        }
        for base in &mut all {
            base.readers.sort();
            let of = uses.iter().filter(|(_, path)| *path == base.path);
            base.groups = of.map(|(group, _)| group.clone()).collect();
        }
        Ok(all)
    }

    fn reader(&self, disk: &Path) -> Reader {
        let name = |path: Option<&OsStr>| path.unwrap_or_default().to_string_lossy().into_owned();
        let dir = disk.parent();
        if dir == Some(self.work.root()) && disk.extension() == Some(OsStr::new("img")) {
            return Reader::Vm(name(disk.file_stem()));
        }
        let of_commit = dir.filter(|dir| dir.parent() == Some(&self.work.commits()));
        match of_commit {
            Some(dir) => Reader::Commit(name(dir.file_name())),
            None => Reader::Other(disk.display().to_string()),
        }
    }

    /// Removes a base that nobody reads from, with the names that groups have for it. Only while
    /// nothing is cloned.
    pub(crate) fn remove(&self, base: Base) -> Result<(), DaemonError> {
        let root = self.work.root();
        let failed = |e| DaemonError::io("read", root)(e);
        let reading: HashSet<PathBuf> = self.backing_files()?;
        let mut links = Vec::new();
        for entry in fs::read_dir(root).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let is_link = name.ends_with("-base.img")
                && fs::metadata(&path).is_ok_and(|m| (m.dev(), m.ino()) == base.id);
            if is_link && !reading.contains(&path) {
                links.push(path);
            }
        }
        for link in links {
            files::remove(&link).map_err(DaemonError::io("remove", &link))?;
        }
        remove_base(base.path)
    }
}

/// The digest that a base's name begins with, see [`slicer_image::base_name`].
fn digest(name: &str) -> Option<String> {
    let hex = name.strip_prefix("sha256-")?.strip_suffix(".img")?;
    let hex = hex.split('-').next()?;
    let is_digest = hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit());
    is_digest.then(|| format!("sha256:{hex}"))
}
