//! Writes empty qcow2 overlays: a disk that reads as its base and keeps only what is changed. Reads
//! of such a file how large the disk is and what it lies over.
//!
//! Source: QEMU's docs/interop/qcow2.txt (version 3). All numbers are big-endian.

use crate::ImageError;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

pub(crate) const MAGIC: &[u8; 4] = b"QFI\xfb";
pub(crate) const CLUSTER_BITS: u32 = 16;
pub(crate) const CLUSTER: u64 = 1 << CLUSTER_BITS;
pub(crate) const HEADER_LENGTH: u32 = 104;
/// The header extension that names the format of the backing file.
const BACKING_FORMAT: u32 = 0xe279_2aca;
/// The longest name of a backing file, bytes.
pub(crate) const MAX_BACKING: usize = 1023;
/// 2^4 bits per reference count.
pub(crate) const REFCOUNT_ORDER: u32 = 4;

/// How the bytes of a file make a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileFormat {
    /// They are the disk's.
    Raw,
    /// They are a qcow2 image.
    Qcow2,
}

impl FileFormat {
    fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// What the header of a qcow2 file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    /// The disk's size, bytes.
    pub(crate) size: u64,
    /// The file under it.
    pub(crate) backing: Option<PathBuf>,
}

/// Reads the header of a file; `None` when it isn't one of qcow2. Who names a raw file gets what a
/// guest may have written there, so what is told is no more than a hint then.
pub(crate) fn read(file: &File) -> io::Result<Option<Header>> {
    let mut head = [0; 32];
    match file.read_exact_at(&mut head, 0) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    if !head.starts_with(MAGIC) {
        return Ok(None);
    }
    let number = |at: usize, len: usize| {
        let bytes = &head[at..at + len];
        bytes.iter().fold(0, |n: u64, b| n << 8 | u64::from(*b))
    };
    let (at, len, size) = (number(8, 8), number(16, 4), number(24, 8));
    if at == 0 {
        return Ok(Some(Header {
            size,
            backing: None,
        }));
    }
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    // The format has it in the first cluster, of which none is larger than 2 MiB.
    if len > MAX_BACKING || at > 2 << 20 {
        return Ok(None);
    }
    let mut name = vec![0; len];
    match file.read_exact_at(&mut name, at) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    Ok(Some(Header {
        size,
        backing: Some(OsStr::from_bytes(&name).into()),
    }))
}

/// Has a qcow2 file lie over `backing`, a name that is written behind the one it had, which counts
/// until the one write that leads to the new one.
pub(crate) fn set_backing(file: &File, backing: &Path) -> io::Result<()> {
    let bad = |why| io::Error::new(io::ErrorKind::InvalidData, why);
    let mut head = [0; 24];
    file.read_exact_at(&mut head, 0)?;
    let number = |at: usize, len: usize| {
        let bytes = &head[at..at + len];
        bytes.iter().fold(0, |n: u64, b| n << 8 | u64::from(*b))
    };
    let (at, len, cluster_bits) = (number(8, 8), number(16, 4), number(20, 4));
    if !head.starts_with(MAGIC) || at == 0 || !(9..=21).contains(&cluster_bits) {
        return Err(bad("it is no qcow2 image that lies over another"));
    }
    let name = backing.as_os_str().as_bytes();
    let end = at.saturating_add(len);
    // The first cluster is the header's alone.
    if name.is_empty()
        || name.len() > MAX_BACKING
        || end.saturating_add(name.len() as u64) > 1 << cluster_bits
    {
        return Err(bad("there is no room for the name of what it lies over"));
    }
    file.write_all_at(name, end)?;
    file.sync_all()?;
    let mut place = [0; 12];
    place[..8].copy_from_slice(&end.to_be_bytes());
    let length = u32::try_from(name.len()).unwrap_or_default();
    place[8..].copy_from_slice(&length.to_be_bytes());
    file.write_all_at(&place, 8)?;
    file.sync_all()
}

/// The bytes of an overlay of `size` bytes (a multiple of 512) over a `backing` file of this format.
/// `None` if the name of the backing file is too long. As long as one cluster of reference counts lasts,
/// which is for disks up to 1 PiB, the layout is: header, reference count table, reference counts,
/// first-level table.
pub(crate) fn overlay(backing: &Path, format: FileFormat, size: u64) -> Option<Vec<u8>> {
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
    let format = format.name().as_bytes();
    extensions.extend(u32::try_from(format.len()).ok()?.to_be_bytes());
    extensions.extend(format);
    extensions.resize(extensions.len().next_multiple_of(8), 0);
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
        let bytes = overlay(Path::new("/base.img"), FileFormat::Raw, 15 << 30).unwrap();
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
            std::fs::write(
                &disk,
                overlay(Path::new(name), FileFormat::Raw, 1 << 30).unwrap(),
            )
            .unwrap();
            assert_eq!(backing_file(&disk).unwrap(), Some(found));
        }
        for raw in [&b""[..], b"QFI", &[0; 4096]] {
            std::fs::write(&disk, raw).unwrap();
            assert_eq!(backing_file(&disk).unwrap(), None);
        }
        let mut bytes = overlay(Path::new("/base.img"), FileFormat::Raw, 1 << 30).unwrap();
        for damage in [8, 16] {
            bytes[damage] = 0xff;
            std::fs::write(&disk, &bytes).unwrap();
            assert!(backing_file(&disk).is_err());
            bytes[damage] = 0;
        }
    }

    #[test]
    fn long_names_and_huge_disks_are_refused() {
        assert!(overlay(Path::new(&"x".repeat(1024)), FileFormat::Raw, 1 << 30).is_none());
        assert!(overlay(Path::new(&"x".repeat(1023)), FileFormat::Raw, 1 << 30).is_some());
        assert!(overlay(Path::new("/b"), FileFormat::Raw, u64::MAX).is_none());
    }

    fn file(bytes: &[u8]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file
    }

    #[test]
    fn a_header_is_read_as_it_was_written() {
        for format in [FileFormat::Raw, FileFormat::Qcow2] {
            let bytes = overlay(Path::new("/some/base.img"), format, 15 << 30).unwrap();
            let header = read(&file(&bytes)).unwrap().unwrap();
            assert_eq!(header.size, 15 << 30);
            assert_eq!(header.backing.unwrap(), Path::new("/some/base.img"));
            // Cut short, it is none.
            assert_eq!(read(&file(&bytes[..120])).unwrap(), None);
        }
        assert_eq!(read(&file(b"")).unwrap(), None);
        assert_eq!(read(&file(&[0; 4096])).unwrap(), None);
    }

    #[test]
    fn a_backing_file_may_move_as_long_as_there_is_room() {
        let bytes = overlay(Path::new("/old/base.img"), FileFormat::Raw, 1 << 30).unwrap();
        let file = file(&bytes);
        for name in ["/new/and/longer/base.img", "/b"] {
            set_backing(&file, Path::new(name)).unwrap();
            let header = read(&file).unwrap().unwrap();
            assert_eq!(header.backing.as_deref(), Some(Path::new(name)));
            assert_eq!(header.size, 1 << 30);
        }
        let long = "x".repeat(1000);
        let moved = (0..70).filter(|_| set_backing(&file, Path::new(&long)).is_ok());
        assert_eq!(moved.count(), 65);
        let header = read(&file).unwrap().unwrap();
        assert_eq!(header.backing.as_deref(), Some(Path::new(&long)));
        let rest = |from: &File| {
            let mut all = vec![0; bytes.len() - (1 << 16)];
            from.read_exact_at(&mut all, 1 << 16).unwrap();
            all
        };
        assert!(rest(&file) == bytes[1 << 16..]);
        set_backing(&super::tests::file(&[0; 4096]), Path::new("/b")).unwrap_err();
    }

    proptest! {
        #[test]
        fn any_header_is_read_or_refused(rest in proptest::collection::vec(any::<u8>(), 0..200)) {
            let bytes: Vec<u8> = MAGIC.iter().copied().chain(rest).collect();
            let header = read(&file(&bytes)).unwrap();
            let name = header.and_then(|h| h.backing);
            prop_assert!(name.is_none_or(|n| n.as_os_str().len() <= MAX_BACKING));
        }

        #[test]
        fn tables_cover_the_disk_and_do_not_overlap(blocks in 0u64..(64 << 40) / 512) {
            let size = blocks * 512;
            let bytes = overlay(Path::new("/b"), FileFormat::Qcow2, size).unwrap();
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
