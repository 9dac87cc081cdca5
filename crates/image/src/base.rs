//! Base images: an image's root filesystem as an ext4 disk that virtual machines' disks are
//! cloned from.

use crate::ext4::{self, Shape};
use crate::files::{Partial, read_note, write_note};
use crate::merge::Merged;
use crate::tree::Tree;
use crate::{ImageError, Resolved};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};

/// Goes up when the same image should give another base.
const FORMAT: u32 = 2;
/// 64 MiB, as for a filesystem of some 100 GB. Fixed, because a journal can't grow with its
/// filesystem.
const JOURNAL_BLOCKS: u32 = 16384;

/// The largest a base is made beyond what its content needs, bytes: what says that the rest is free
/// takes room, too, and the guest can grow its filesystem.
const LARGEST: u64 = 64 << 30;

/// What an image may unpack to at most, against archives made to fill disk or memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes in all layers, unpacked.
    pub max_bytes: u64,
    /// Files and directories in all layers; each costs some 200 bytes of memory while building.
    pub max_files: usize,
}

impl Default for Limits {
    /// 64 GiB in 4 million files.
    fn default() -> Self {
        Self {
            max_bytes: 64 << 30,
            max_files: 4_000_000,
        }
    }
}

/// How far a build has come, for those who watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress<'a> {
    /// This layer's headers are being read.
    Layer {
        /// From 1.
        number: usize,
        /// How many there are.
        of: usize,
    },
    /// The bytes of files are being written.
    Data {
        /// Bytes so far.
        done: u64,
        /// Bytes in all.
        of: u64,
    },
    /// Something was left out, which the guest's Linux could not have used.
    Skipped {
        /// Its path, or its name.
        entry: &'a str,
        /// Why.
        why: &'a str,
    },
}

/// What is written beside a base: of what it was made.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
struct Note {
    format: u32,
    manifest: String,
    /// The size that was asked for.
    asked: u64,
    /// The size it has.
    size: u64,
}

/// Builds the base of `image` at `out`: a sparse ext4 file of `size` bytes, or as large as its
/// content needs, to be cloned ([`crate::clone_disk`]). It appears under its name complete, or not
/// at all. With the size its clones will have, no guest needs to grow its filesystem, which takes a
/// moment at every first boot; above 64 GiB it does all the same.
///
/// Disks made as [`crate::CloneKind::Qcow2Overlay`] read from their base for as long as they live:
/// build a changed image under another name while there are any. Needs no privileges. Returns the
/// base's size in bytes.
pub fn build_base(
    image: &Resolved,
    out: &Path,
    size: u64,
    limits: &Limits,
    progress: &dyn Fn(Progress<'_>),
) -> Result<u64, ImageError> {
    let merged = Merged::read(image, limits, progress)?;
    let shape = Shape {
        label: "root",
        uuid: uuid(image.manifest_digest()),
        // Rounded down, because a clone can't be smaller than its base.
        min_size: size.min(LARGEST) >> 20 << 20,
        journal_blocks: JOURNAL_BLOCKS,
    };
    let partial = Partial::create(out)?;
    let asked = size;
    let size = ext4::write(
        &merged,
        Tree::ROOT,
        &shape,
        partial.file(),
        partial.path(),
        progress,
    )?;
    // The old note must not vouch for the new base, nor a new one for an old base.
    let note = note_path(out);
    match fs::remove_file(&note) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(ImageError::io("remove", &note)(e));
        }
        _ => {}
    }
    slicer_fault::point("base.whole");
    partial.finish()?;
    slicer_fault::point("base.named");
    let manifest = image.manifest_digest().to_owned();
    write_note(
        &note,
        &Note {
            format: FORMAT,
            manifest,
            asked,
            size,
        },
    )?;
    Ok(size)
}

/// Whether the base at `out` is there and was made of this very image, for this size. Reads one
/// small file.
pub fn base_is_current(out: &Path, image: &Resolved, size: u64) -> bool {
    let Some(note) = read_note::<Note>(&note_path(out)) else {
        return false;
    };
    note.format == FORMAT
        && note.asked == size
        && note.manifest == image.manifest_digest()
        && fs::metadata(out).is_ok_and(|m| m.is_file() && m.len() == note.size)
}

/// The name that says what is in a base of `image` and `size`: two that have it are the same byte
/// for byte.
pub fn base_name(image: &Resolved, size: u64) -> String {
    let digest = image.manifest_digest().replace(':', "-");
    format!("{digest}-{size}-v{FORMAT}.img")
}

/// Makes the base at `from`, which must be current, known at `out` as well, without a copy.
pub fn adopt_base(from: &Path, out: &Path) -> Result<(), ImageError> {
    for (from, out) in [
        (from.to_owned(), out.to_owned()),
        // The note is last: it vouches for the base.
        (note_path(from), note_path(out)),
    ] {
        fs::hard_link(&from, &out).map_err(ImageError::io("link", &out))?;
    }
    Ok(())
}

/// `NAME.json` beside the base.
fn note_path(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".json");
    name.into()
}

/// A filesystem's UUID that follows from the image: version 8 of RFC 9562.
pub(crate) fn uuid(of: &str) -> [u8; 16] {
    let hash = Sha256::digest(of.as_bytes());
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&hash[..16]);
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}
