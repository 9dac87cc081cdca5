//! Writes empty qcow2 overlays: a disk that reads as its base and keeps only what is changed.
//!
//! Source: QEMU's docs/interop/qcow2.txt (version 3). All numbers are big-endian.

use crate::ImageError;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 4] = b"QFI\xfb";
const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
const HEADER_LENGTH: u32 = 104;
/// The header extension that names the format of the backing file.
const BACKING_FORMAT: u32 = 0xe279_2aca;
/// The longest name of a backing file, bytes.
pub(crate) const MAX_BACKING: usize = 1023;
/// 2^4 bits per reference count.
const REFCOUNT_ORDER: u32 = 4;

/// The bytes of an overlay of `size` bytes (a multiple of 512) over a raw `backing` file. `None` if
/// the name of the backing file is too long. As long as one cluster of reference counts lasts,
/// which is for disks up to 1 PiB, the layout is: header, reference count table, reference counts,
/// first-level table.
pub(crate) fn overlay(backing: &Path, size: u64) -> Option<Vec<u8>> {
    let name = backing.as_os_str().as_bytes();
    if name.is_empty() || name.len() > MAX_BACKING {
        return None;
    }
    // A second-level table is one cluster of 8-byte entries, each of which maps a cluster.
    let mapped = CLUSTER * (CLUSTER / 8);
    let l1_entries = u32::try_from(size.div_ceil(mapped).max(1)).ok()?;
    let l1_clusters = (u64::from(l1_entries) * 8).div_ceil(CLUSTER);
    let clusters = 3 + l1_clusters;
    let total = usize::try_from(clusters * CLUSTER).ok()?;
    if clusters > CLUSTER / 2 {
        return None;
    }

    let mut extensions = Vec::new();
    extensions.extend(BACKING_FORMAT.to_be_bytes());
    extensions.extend(3u32.to_be_bytes());
    extensions.extend(b"raw\0\0\0\0\0");
    extensions.extend([0; 8]);
    let name_offset = u64::from(HEADER_LENGTH) + extensions.len() as u64;

    let mut bytes = Vec::with_capacity(total);
    bytes.extend(MAGIC);
    bytes.extend(3u32.to_be_bytes());
    bytes.extend(name_offset.to_be_bytes());
    bytes.extend(u32::try_from(name.len()).ok()?.to_be_bytes());
    bytes.extend(CLUSTER_BITS.to_be_bytes());
    bytes.extend(size.to_be_bytes());
    bytes.extend(0u32.to_be_bytes()); // no encryption
    bytes.extend(l1_entries.to_be_bytes());
    bytes.extend((3 * CLUSTER).to_be_bytes());
    bytes.extend(CLUSTER.to_be_bytes()); // reference count table
    bytes.extend(1u32.to_be_bytes()); // clusters in it
    bytes.extend([0; 12]); // snapshots: none
    bytes.extend([0; 24]); // features: none
    bytes.extend(REFCOUNT_ORDER.to_be_bytes());
    bytes.extend(HEADER_LENGTH.to_be_bytes());
    bytes.extend(extensions);
    bytes.extend(name);

    let cluster = |n: u64| usize::try_from(n * CLUSTER).unwrap_or(usize::MAX);
    bytes.resize(cluster(1), 0);
    bytes.extend((2 * CLUSTER).to_be_bytes());
    bytes.resize(cluster(2), 0);
    for _ in 0..clusters {
        bytes.extend(1u16.to_be_bytes());
    }
    bytes.resize(total, 0);
    Some(bytes)
}

/// The file that the disk at `path` reads from, if it is an overlay on one.
///
/// # Errors
/// An error, too, if it is a qcow2 file whose header makes no sense: nobody can say then what it
/// needs.
pub fn backing_file(path: &Path) -> Result<Option<PathBuf>, ImageError> {
    let mut file = File::open(path).map_err(ImageError::io("open", path))?;
    let failed = |e| ImageError::io("read", path)(e);
    let mut header = [0; 20];
    match file.read_exact(&mut header) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(failed(e)),
    }
    let [
        m0,
        m1,
        m2,
        m3,
        _,
        _,
        _,
        _,
        o0,
        o1,
        o2,
        o3,
        o4,
        o5,
        o6,
        o7,
        l0,
        l1,
        l2,
        l3,
    ] = header;
    if [m0, m1, m2, m3] != *MAGIC {
        return Ok(None);
    }
    let offset = u64::from_be_bytes([o0, o1, o2, o3, o4, o5, o6, o7]);
    if offset == 0 {
        return Ok(None);
    }
    let length = usize::try_from(u32::from_be_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
    if length == 0 || length > MAX_BACKING {
        return Err(failed(io::Error::other(
            "the name of its backing file is too long",
        )));
    }
    let mut name = vec![0; length];
    file.seek(SeekFrom::Start(offset))
        .and_then(|_| file.read_exact(&mut name))
        .map_err(failed)?;
    let dir = path.parent().unwrap_or(Path::new("."));
    Ok(Some(dir.join(OsStr::from_bytes(&name))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn the_header_is_that_of_the_format() {
        let bytes = overlay(Path::new("/base.img"), 15 << 30).unwrap();
        assert_eq!(&bytes[..8], b"QFI\xfb\0\0\0\x03");
        let (at, len) = (u64_at(&bytes, 8), u32_at(&bytes, 16));
        let at = usize::try_from(at).unwrap();
        assert_eq!(&bytes[at..at + len as usize], b"/base.img");
        assert_eq!(u64_at(&bytes, 24), 15 << 30);
        assert_eq!(u32_at(&bytes, 36), 30);
        assert_eq!(u32_at(&bytes, 100), HEADER_LENGTH);
    }

    #[test]
    fn a_backing_file_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("disk");
        for (name, found) in [
            ("/base.img", "/base.img".into()),
            ("b", dir.path().join("b")),
        ] {
            std::fs::write(&disk, overlay(Path::new(name), 1 << 30).unwrap()).unwrap();
            assert_eq!(backing_file(&disk).unwrap(), Some(found));
        }
        for raw in [&b""[..], b"QFI", &[0; 4096]] {
            std::fs::write(&disk, raw).unwrap();
            assert_eq!(backing_file(&disk).unwrap(), None);
        }
        let mut bytes = overlay(Path::new("/base.img"), 1 << 30).unwrap();
        for damage in [8, 16] {
            bytes[damage] = 0xff;
            std::fs::write(&disk, &bytes).unwrap();
            assert!(backing_file(&disk).is_err());
            bytes[damage] = 0;
        }
    }

    #[test]
    fn long_names_and_huge_disks_are_refused() {
        assert!(overlay(Path::new(&"x".repeat(1024)), 1 << 30).is_none());
        assert!(overlay(Path::new(&"x".repeat(1023)), 1 << 30).is_some());
        assert!(overlay(Path::new("/b"), u64::MAX).is_none());
    }

    proptest! {
        #[test]
        fn tables_cover_the_disk_and_do_not_overlap(blocks in 0u64..(64 << 40) / 512) {
            let size = blocks * 512;
            let bytes = overlay(Path::new("/b"), size).unwrap();
            prop_assert_eq!(bytes.len() as u64 % CLUSTER, 0);
            let l1 = u64::from(u32_at(&bytes, 36));
            prop_assert!(l1 * CLUSTER * CLUSTER / 8 >= size);
            prop_assert!(u64_at(&bytes, 40) + l1 * 8 <= bytes.len() as u64);
            let counts = usize::try_from(2 * CLUSTER).unwrap();
            let used = bytes[counts..].chunks(2).take(32768).filter(|c| c[1] == 1);
            prop_assert_eq!(used.count() as u64, bytes.len() as u64 / CLUSTER);
        }
    }
}
