//! What a template is on disk, and whether it still is what was written.

use crate::DaemonError;
use crate::config::{HostGroupConfig, NetworkMode};
use crate::images::Prepared;
use crate::record::{DiskKind, VmRecord};
use crate::saved::Stamp;
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use slicer_api::Timestamp;
use slicer_machine::{Capabilities, MacAddress};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Bytes that are read at a time.
const CHUNK: usize = 1 << 20;
/// The note, whose being there makes a directory a template's.
const NOTE: &str = "template.json";

/// What a VM must be to begin as a template's clone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shape {
    pub(crate) group: String,
    pub(crate) image_digest: String,
    pub(crate) arch: String,
    pub(crate) cpus: u32,
    pub(crate) ram_bytes: u64,
    pub(crate) storage_size: u64,
}

impl Shape {
    /// That of a VM with this record.
    pub(crate) fn of(record: &VmRecord, group: &HostGroupConfig, prepared: &Prepared) -> Self {
        Self {
            group: group.name.clone(),
            image_digest: prepared.image_digest.clone(),
            arch: record.arch.clone(),
            cpus: record.cpus,
            ram_bytes: record.ram_bytes,
            storage_size: group.storage_size,
        }
    }
}

/// Whether VMs of this group can be clones at all, and if not, why.
pub(crate) fn check_group(
    group: &HostGroupConfig,
    capabilities: &Capabilities,
) -> Result<(), &'static str> {
    if !capabilities.templates {
        Err("this hypervisor has no templates: use warm_pool")
    } else if group.network.mode != NetworkMode::Nat {
        Err("templates are for networks of the mode nat")
    } else if !group.shares.is_empty() {
        Err("a VM with shared folders can't share memory with others")
    } else if group.rosetta {
        Err("a VM with Rosetta can't share memory with others")
    } else {
        Ok(())
    }
}

/// Whether a VM of this record may be a clone: one that is kept has a disk that needs no other.
pub(crate) fn may_clone(record: &VmRecord) -> bool {
    !record.is_kept()
        && record.disk.is_none()
        && record.network.is_none()
        && record.parent_commit_id.is_none()
}

/// A template's note.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Template {
    pub(crate) id: String,
    pub(crate) shape: Shape,
    /// The reference of its image.
    pub(crate) image: String,
    pub(crate) created_at: Timestamp,
    pub(crate) disk: DiskKind,
    /// The hardware address of its network card.
    pub(crate) mac: [u8; 6],
    /// What the hypervisor has to know.
    pub(crate) note: String,
    /// Of its own files, and of those it was booted from.
    stamps: Vec<Stamp>,
    /// SHA-256 of what is in its own files, by their names.
    digests: Vec<(String, String)>,
}

/// Where a template's files are.
#[derive(Debug, Clone)]
pub(crate) struct Place(PathBuf);

impl Place {
    /// In this directory.
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self(dir)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.0
    }

    pub(crate) fn memory(&self) -> PathBuf {
        self.0.join("memory")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.0.join("state")
    }

    pub(crate) fn disk(&self) -> PathBuf {
        self.0.join("disk.img")
    }

    pub(crate) fn console(&self) -> PathBuf {
        self.0.join("console.txt")
    }

    /// What the hypervisor keeps while the template boots.
    pub(crate) fn run(&self) -> PathBuf {
        self.0.join("run")
    }

    pub(crate) fn note(&self) -> PathBuf {
        self.0.join(NOTE)
    }

    /// Its own files, by what they are.
    fn own(&self) -> [(&'static str, PathBuf); 3] {
        [
            ("memory", self.memory()),
            ("state", self.state()),
            ("disk", self.disk()),
        ]
    }
}

/// The files it was booted from, by what they are.
fn booted_from(prepared: &Prepared) -> [(&'static str, &Path); 4] {
    [
        ("kernel", &prepared.boot.kernel),
        ("initramfs", &prepared.boot.initramfs),
        ("modules", &prepared.boot.modules),
        ("base", &prepared.base),
    ]
}

/// What makes a template, besides its files.
pub(crate) struct Made {
    pub(crate) id: String,
    pub(crate) shape: Shape,
    pub(crate) image: String,
    pub(crate) disk: DiskKind,
    pub(crate) mac: MacAddress,
    pub(crate) note: String,
}

impl Template {
    /// Makes what was saved at a place a template, durably. Blocks.
    pub(crate) fn complete(
        place: &Place,
        prepared: &Prepared,
        made: Made,
    ) -> Result<Self, DaemonError> {
        let (mut stamps, mut digests) = (Vec::new(), Vec::new());
        for (role, path) in place.own() {
            let failed = |action| DaemonError::io(action, &path);
            let file = File::open(&path).map_err(failed("open"))?;
            file.sync_all().map_err(failed("write out"))?;
            digests.push((role.to_owned(), digest(&file).map_err(failed("read"))?));
            stamps.push(Stamp::of(role, &path).map_err(failed("look at"))?);
        }
        for (role, path) in booted_from(prepared) {
            stamps.push(Stamp::of(role, path).map_err(DaemonError::io("look at", path))?);
        }
        let template = Self {
            id: made.id,
            shape: made.shape,
            image: made.image,
            created_at: Timestamp::now(),
            disk: made.disk,
            mac: made.mac.0,
            note: made.note,
            stamps,
            digests,
        };
        let text = serde_json::to_vec_pretty(&template).unwrap_or_default();
        let path = place.note();
        crate::files::write_atomically(&path, &text).map_err(DaemonError::io("write", path))?;
        Ok(template)
    }

    /// The template at this place, if there is one.
    pub(crate) fn load(place: &Place) -> Option<Self> {
        serde_json::from_slice(&fs::read(place.note()).ok()?).ok()
    }

    /// What of its files, or of those it was booted from, is no longer as it was.
    pub(crate) fn stale(&self, place: &Place, prepared: &Prepared) -> Option<String> {
        let own = place.own();
        let own = own.iter().map(|(role, path)| (*role, path.as_path()));
        own.chain(booted_from(prepared)).find_map(|(role, path)| {
            let now = Stamp::of(role, path);
            let same = now.is_ok_and(|now| self.stamps.contains(&now));
            (!same).then(|| format!("{} was changed since", path.display()))
        })
    }

    /// Which of its own files has other content than was written, if one has. Reads them all.
    pub(crate) fn damaged(&self, place: &Place) -> Option<String> {
        place.own().iter().find_map(|(role, path)| {
            let now = File::open(path).and_then(|file| digest(&file));
            let then = self.digests.iter().find(|(r, _)| r == role);
            match (now, then) {
                (Ok(now), Some((_, then))) if now == *then => None,
                (Ok(_), _) => Some(format!("{} is damaged", path.display())),
                (Err(e), _) => Some(format!("{} can't be read: {e}", path.display())),
            }
        })
    }

    /// What its own files take on disk, bytes.
    pub(crate) fn size(place: &Place) -> u64 {
        let blocks = |path: &Path| fs::metadata(path).map_or(0, |m| m.blocks());
        let blocks = place.own().map(|(_, path)| blocks(&path));
        blocks.into_iter().fold(0, u64::saturating_add) * 512
    }
}

/// SHA-256 of a file's size and of its data, with where they are. Holes need not be read: what is zero
/// counts as one, wherever the file system has made one of it.
fn digest(file: &File) -> io::Result<String> {
    let size = file.metadata()?.len();
    let mut hash = Sha256::new();
    hash.update(size.to_le_bytes());
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while let Some(data) = next_data(file, at, size)? {
        // In steps that don't depend on where the file system's extents begin.
        at = data - data % CHUNK as u64;
        let length = usize::try_from((size - at).min(CHUNK as u64)).unwrap_or(CHUNK);
        let chunk = buffer
            .get_mut(..length)
            .ok_or(io::ErrorKind::InvalidInput)?;
        file.read_exact_at(chunk, at)?;
        if chunk.iter().any(|b| *b != 0) {
            hash.update(at.to_le_bytes());
            hash.update(&*chunk);
        }
        at += length as u64;
    }
    Ok(hash.finalize().iter().fold(String::new(), |mut text, b| {
        for digit in [b >> 4, b & 15] {
            text.push(char::from_digit(digit.into(), 16).unwrap_or('0'));
        }
        text
    }))
}

/// Where the next data begins at or after `at`.
fn next_data(file: &File, at: u64, size: u64) -> io::Result<Option<u64>> {
    if at >= size {
        return Ok(None);
    }
    match seek(file, SeekFrom::Data(at)) {
        Ok(data) => Ok(Some(data)),
        Err(Errno::NXIO) => Ok(None),
        // A file system that knows no holes.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some(at)),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
pub(super) fn sample(id: &str) -> Template {
    Template {
        id: id.to_owned(),
        shape: Shape {
            group: "sbox".to_owned(),
            image_digest: "sha256:0".to_owned(),
            arch: "amd64".to_owned(),
            cpus: 1,
            ram_bytes: 1 << 30,
            storage_size: 1 << 30,
        },
        image: "oci:x".to_owned(),
        created_at: Timestamp::UNIX_EPOCH,
        disk: DiskKind::Raw,
        mac: [2, 0, 0, 0, 0, 1],
        note: String::new(),
        stamps: Vec::new(),
        digests: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_and_zeroes_are_the_same_and_all_else_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let of = |write: &dyn Fn(&File)| {
            let file = File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .open(&path)
                .unwrap();
            file.set_len(5 << 20).unwrap();
            write(&file);
            digest(&file).unwrap()
        };
        let empty = of(&|_| {});
        let zeroes = of(&|f| f.write_all_at(&vec![0; 3 << 20], 1 << 20).unwrap());
        assert_eq!(empty, zeroes);
        let one = of(&|f| f.write_all_at(b"x", (3 << 20) + 5).unwrap());
        let moved = of(&|f| f.write_all_at(b"x", (2 << 20) + 5).unwrap());
        let last = of(&|f| f.write_all_at(b"x", (5 << 20) - 1).unwrap());
        let shorter = of(&|f| f.set_len((5 << 20) - 1).unwrap());
        let all = [&empty, &one, &moved, &last, &shorter];
        for (i, a) in all.iter().enumerate() {
            assert!(!all[..i].contains(a), "{i}");
        }
        let with_zeroes = of(&|f| {
            f.write_all_at(&vec![0; 5 << 20], 0).unwrap();
            f.write_all_at(b"x", (3 << 20) + 5).unwrap();
        });
        assert_eq!(one, with_zeroes);
    }
}
