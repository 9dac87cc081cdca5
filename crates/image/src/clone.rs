//! Disks: clones of a base image, grown to the size a virtual machine asks for.

use crate::ImageError;
use crate::files::Partial;
use crate::qcow2::{self, FileFormat};
use crate::sparse::copy_sparse;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// Disk sizes are multiples of this, bytes.
const GRAIN: u64 = 4096;
/// The largest disk, bytes: what ext4 with 32-bit block numbers can grow to.
const MAX_DISK: u64 = 16 << 40;

/// A way to make a disk out of a base.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloneKind {
    /// The filesystem shares the blocks until they change (btrfs, XFS, APFS): at once, and
    /// independent of the base. A raw disk.
    Reflink,
    /// A qcow2 file that keeps what changes and reads the rest from the base: at once, anywhere.
    /// The base must stay where and as it is for as long as the disk lives.
    Qcow2Overlay,
    /// A copy of the base's data without its holes: takes as long as that takes. A raw disk.
    SparseCopy,
}

/// What a clone should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CloneOptions<'a> {
    /// The disk's size, bytes; rounded up to whole pages of 4096.
    pub size: u64,
    /// The ways that are allowed, the one to try first in front.
    pub kinds: &'a [CloneKind],
    /// Whether the disk must survive a crash of the host right after this: it waits for the
    /// storage. What is thrown away with its virtual machine need not.
    pub durable: bool,
}

/// Makes the disk `dest` out of the raw image `base`, by the first way that works here, and returns
/// that way. The disk appears under its name complete or not at all, readable by its owner only. A
/// full storage is an error at once: the ways that are left would need more.
pub fn clone_disk(
    base: &Path,
    dest: &Path,
    options: &CloneOptions<'_>,
) -> Result<CloneKind, ImageError> {
    let base_size = fs::metadata(base)
        .map_err(ImageError::io("open", base))?
        .len();
    let size = options
        .size
        .checked_next_multiple_of(GRAIN)
        .filter(|size| *size <= MAX_DISK);
    let Some(size) = size else {
        return Err(ImageError::DiskTooLarge {
            size: options.size,
            limit: MAX_DISK,
        });
    };
    if size < base_size {
        return Err(ImageError::TooSmall {
            base: base.to_owned(),
            base_size,
            size: options.size,
        });
    }
    let mut reasons = Vec::new();
    for kind in options.kinds {
        let partial = match kind {
            CloneKind::Reflink => reflink(base, dest).and_then(|made| grow(made, size)),
            CloneKind::Qcow2Overlay => overlay(base, FileFormat::Raw, dest, size),
            CloneKind::SparseCopy => copy(base, dest, size),
        };
        match partial {
            Ok(partial) if options.durable => partial.finish()?,
            Ok(partial) => partial.rename()?,
            Err(ImageError::Io { source, .. })
                if *kind == CloneKind::Reflink && means_cannot(&source) =>
            {
                reasons.push(format!("{kind:?}: {source}"));
                continue;
            }
            Err(e) => return Err(e),
        }
        return Ok(*kind);
    }
    Err(ImageError::NoClone {
        base: base.to_owned(),
        dest: dest.to_owned(),
        why: if reasons.is_empty() {
            "no way was allowed".to_owned()
        } else {
            reasons.join("; ")
        },
    })
}

/// Whether the filesystem just has no reflinks, or not between these two places.
pub(crate) fn means_cannot(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let cannot = [
        Errno::OPNOTSUPP,
        Errno::NOTSUP,
        Errno::XDEV,
        Errno::INVAL,
        Errno::NOTTY,
        Errno::NOSYS,
        Errno::PERM,
    ];
    error.kind() == io::ErrorKind::Unsupported
        || Errno::from_io_error(error).is_some_and(|errno| cannot.contains(&errno))
}

/// A file that shares the blocks of `base`.
pub(crate) fn reflink(base: &Path, dest: &Path) -> Result<Partial, ImageError> {
    // The crate refuses links, with an error that hides the one that counts.
    let base = fs::canonicalize(base).map_err(ImageError::io("open", base))?;
    let partial = Partial::create_with(dest, "clone to", |path| {
        let made = reflink_copy::reflink(&base, path)
            .and_then(|()| File::options().read(true).write(true).open(path));
        if made.is_err() {
            // It may have come as far as an empty file.
            let _ = fs::remove_file(path);
        }
        made
    })?;
    make_private(&partial)?;
    Ok(partial)
}

fn copy(base: &Path, dest: &Path, size: u64) -> Result<Partial, ImageError> {
    let from = File::open(base).map_err(ImageError::io("open", base))?;
    let partial = Partial::create(dest)?;
    copy_sparse(&from, partial.file()).map_err(ImageError::io("copy to", dest))?;
    grow(partial, size)
}

/// An overlay of `size` bytes on `base`.
pub(crate) fn overlay(
    base: &Path,
    format: FileFormat,
    dest: &Path,
    size: u64,
) -> Result<Partial, ImageError> {
    let base = fs::canonicalize(base).map_err(ImageError::io("open", base))?;
    let bytes = qcow2::overlay(&base, format, size).ok_or_else(|| ImageError::NoClone {
        base: base.clone(),
        dest: dest.to_owned(),
        why: format!(
            "the base's path is longer than {} bytes",
            qcow2::MAX_BACKING
        ),
    })?;
    let partial = Partial::create(dest)?;
    partial
        .file()
        .write_all(&bytes)
        .map_err(ImageError::io("write", dest))?;
    Ok(partial)
}

fn grow(partial: Partial, size: u64) -> Result<Partial, ImageError> {
    partial
        .file()
        .set_len(size)
        .map_err(ImageError::io("grow", partial.path()))?;
    Ok(partial)
}

/// A clone takes its base's permissions.
fn make_private(partial: &Partial) -> Result<(), ImageError> {
    use std::os::unix::fs::PermissionsExt;
    partial
        .file()
        .set_permissions(fs::Permissions::from_mode(0o600))
        .map_err(ImageError::io("restrict", partial.path()))
}

#[cfg(test)]
mod tests;
