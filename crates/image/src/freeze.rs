//! Disks that others are made of: to be copied as they are, or lain over.

use crate::ImageError;
use crate::clone::{means_cannot, overlay, reflink};
use crate::qcow2::{self, FileFormat};
use std::fs::File;
use std::io;
use std::path::Path;

/// The size of the disk in `file`, bytes, as a machine sees it.
pub fn disk_size(file: &Path, format: FileFormat) -> Result<u64, ImageError> {
    let opened = File::open(file).map_err(ImageError::io("open", file))?;
    match format {
        FileFormat::Raw => {
            let meta = opened.metadata();
            meta.map(|m| m.len())
                .map_err(ImageError::io("inspect", file))
        }
        FileFormat::Qcow2 => {
            let header = qcow2::read(&opened).map_err(ImageError::io("read", file))?;
            let no_image = || io::Error::new(io::ErrorKind::InvalidData, "it is no qcow2 image");
            header
                .map(|h| h.size)
                .ok_or_else(|| ImageError::io("use", file)(no_image()))
        }
    }
}

/// Has the qcow2 image in `file` lie over `backing`, which has the content of what it lay over. It
/// is durable when this returns; a crash leaves the one or the other.
pub fn set_backing_file(file: &Path, backing: &Path) -> Result<(), ImageError> {
    let opened = File::options().read(true).write(true).open(file);
    let opened = opened.map_err(ImageError::io("open", file))?;
    qcow2::set_backing(&opened, backing).map_err(ImageError::io("change the base of", file))
}

/// Makes `dest` an empty disk that reads as `base` and is as large, in the place of what has its
/// name. `base` must stay where and as it is for as long as the overlay lives. It is durable when
/// this returns.
pub fn overlay_disk(base: &Path, format: FileFormat, dest: &Path) -> Result<(), ImageError> {
    let size = disk_size(base, format)?;
    overlay(base, format, dest, size)?.finish()
}

/// Copies a file by sharing its blocks, at once; false where the filesystem can't. It is durable
/// when this returns.
pub fn reflink_file(from: &Path, dest: &Path) -> Result<bool, ImageError> {
    match reflink(from, dest) {
        Ok(partial) => partial.finish().map(|()| true),
        Err(ImageError::Io { source, .. }) if means_cannot(&source) => Ok(false),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backing_file;
    use std::fs;
    use std::os::unix::fs::FileExt;
    use std::process::Command;

    #[test]
    fn overlays_lie_over_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base");
        let file = File::create(&base).unwrap();
        file.set_len(8 << 20).unwrap();
        file.write_all_at(b"first", 1 << 20).unwrap();
        let (first, second) = (dir.path().join("first"), dir.path().join("second"));
        overlay_disk(&base, FileFormat::Raw, &first).unwrap();
        overlay_disk(&first, FileFormat::Qcow2, &second).unwrap();
        assert_eq!(disk_size(&second, FileFormat::Qcow2).unwrap(), 8 << 20);
        let real = |path: &Path| path.canonicalize().unwrap();
        assert_eq!(backing_file(&base).unwrap(), None);
        assert_eq!(backing_file(&first).unwrap(), Some(real(&base)));
        assert_eq!(backing_file(&second).unwrap(), Some(real(&first)));
        assert!(matches!(
            disk_size(&base, FileFormat::Qcow2),
            Err(ImageError::Io { .. })
        ));

        let moved = dir.path().join("moved to another place");
        fs::rename(&first, &moved).unwrap();
        set_backing_file(&second, &moved).unwrap();
        assert_eq!(backing_file(&second).unwrap().as_deref(), Some(&*moved));

        let raw = dir.path().join("raw");
        let convert = Command::new("qemu-img")
            .args(["convert", "-f", "qcow2", "-O", "raw"])
            .args([&second, &raw])
            .output();
        let Ok(convert) = convert else {
            println!("no qemu-img here");
            return;
        };
        assert!(convert.status.success(), "{convert:?}");
        assert!(fs::read(raw).unwrap() == fs::read(&base).unwrap());
    }

    #[test]
    fn a_file_shares_its_blocks_or_says_that_it_cannot() {
        let dir = tempfile::tempdir().unwrap();
        let (from, dest) = (dir.path().join("from"), dir.path().join("dest"));
        fs::write(&from, "content").unwrap();
        if reflink_file(&from, &dest).unwrap() {
            assert_eq!(fs::read_to_string(&dest).unwrap(), "content");
        } else {
            assert!(!dest.exists());
        }
        assert!(reflink_file(&dir.path().join("absent"), &dest).is_err());
    }
}
