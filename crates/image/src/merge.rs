//! Reading an image's layers: first their headers, into one [`Tree`]; then the bytes of the files
//! that survived, wherever they are wanted. Nothing is unpacked on the way.
//!
//! Sources: the OCI image specification 1.1 (layer.md); pax records as POSIX and libarchive define
//! them; the kernel's posix_acl_xattr.h for access control lists.

use crate::tree::{Attrs, Change, Leaf, LeafId, LeafKind, Node, Time, Tree};
use crate::{ImageError, Limits, Progress, Resolved};
use std::cell::Cell;
use std::collections::HashMap;
use std::io::{self, Read};
use tar::EntryType;

/// More than the extension headers before one entry ever need, bytes: they are held in memory.
const MAX_HEADERS: u64 = 4 << 20;
/// Linux's limits of a device number's parts.
const MAX_MAJOR: u32 = 0xfff;
const MAX_MINOR: u32 = 0xf_ffff;
/// The longest target of a symlink, bytes.
const MAX_TARGET: usize = 4095;
/// What ext4 can say of time.
const TIMES: std::ops::RangeInclusive<i64> = -0x8000_0000..=0x3_7fff_ffff;

/// An image whose layers' headers are read and merged.
pub(crate) struct Merged<'a> {
    pub(crate) image: &'a Resolved,
    pub(crate) tree: Tree,
}

/// Where a file's bytes are: an entry of a layer.
pub(crate) type Source = (usize, u64);

impl<'a> Merged<'a> {
    /// Reads all layers once, checking their digests.
    pub(crate) fn read(
        image: &'a Resolved,
        limits: &Limits,
        progress: &dyn Fn(Progress<'_>),
    ) -> Result<Self, ImageError> {
        let mut merged = Self {
            image,
            tree: Tree::new(),
        };
        let mut budget = limits.max_bytes;
        for (layer, descriptor) in image.layers().iter().enumerate() {
            progress(Progress::Layer {
                number: layer + 1,
                of: image.layers().len(),
            });
            image.open_layer(descriptor)?.read(|digest, plain| {
                merged.read_layer(layer, digest, plain, limits, &mut budget, progress)
            })?;
        }
        Ok(merged)
    }

    fn read_layer(
        &mut self,
        layer: usize,
        digest: &str,
        plain: &mut dyn Read,
        limits: &Limits,
        budget: &mut u64,
        progress: &dyn Fn(Progress<'_>),
    ) -> Result<(), ImageError> {
        let too_large = |limit, unit| ImageError::TooLarge {
            image: self.image.manifest_digest().to_owned(),
            limit,
            unit,
        };
        let unreadable = |source| ImageError::Layer {
            layer: digest.to_owned(),
            source,
        };
        let allowance = Cell::new(MAX_HEADERS);
        let mut archive = tar::Archive::new(Metered {
            inner: plain,
            allowance: &allowance,
        });
        let mut number = 0;
        let mut entries = archive.entries().map_err(unreadable)?;
        loop {
            // What is read until the next entry is there are headers: the data of the one before
            // has been read to its end.
            allowance.set(MAX_HEADERS);
            let Some(entry) = entries.next() else { break };
            let mut entry = entry.map_err(unreadable)?;
            let path = entry.path_bytes().into_owned();
            let refused = |why: String| ImageError::Entry {
                layer: digest.to_owned(),
                entry: String::from_utf8_lossy(&path).into_owned(),
                why,
            };

            // An entry without data counts as a block, or small ones would be free.
            let size = entry.size();
            *budget = budget
                .checked_sub(size.max(512))
                .ok_or_else(|| too_large(limits.max_bytes, "bytes"))?;
            if self.tree.nodes() >= limits.max_files {
                return Err(too_large(limits.max_files as u64, "files"));
            }
            match change(&mut entry, Source::from((layer, number))).map_err(refused)? {
                Ok(change) => {
                    self.tree
                        .apply(layer, &path, change)
                        .map_err(|e| refused(e.to_string()))?;
                }
                Err(why) => {
                    let entry = String::from_utf8_lossy(&path);
                    progress(Progress::Skipped {
                        entry: &entry,
                        why: &why,
                    });
                }
            }
            allowance.set(u64::MAX);
            io::copy(&mut entry, &mut io::sink()).map_err(unreadable)?;
            number += 1;
        }
        Ok(())
    }

    /// Reads the layers again and hands the bytes of every file in `wanted` to `work`, in the order
    /// in which the layers hold them.
    pub(crate) fn stream<T: Copy>(
        &self,
        wanted: &HashMap<Source, T>,
        work: &mut dyn FnMut(T, &mut dyn Read) -> Result<(), ImageError>,
    ) -> Result<(), ImageError> {
        for (layer, descriptor) in self.image.layers().iter().enumerate() {
            if !wanted.keys().any(|source| source.0 == layer) {
                continue;
            }
            self.image.open_layer(descriptor)?.read(|digest, plain| {
                let unreadable = |source| ImageError::Layer {
                    layer: digest.to_owned(),
                    source,
                };
                let mut archive = tar::Archive::new(plain);
                for (number, entry) in (0..).zip(archive.entries().map_err(unreadable)?) {
                    let mut entry = entry.map_err(unreadable)?;
                    if let Some(item) = wanted.get(&(layer, number)) {
                        work(*item, &mut entry)?;
                    }
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// The regular file at `path`: its id and size.
    pub(crate) fn file(&self, path: &str) -> Result<(LeafId, u64), ImageError> {
        if let Some(Node::Leaf(id)) = self.tree.get(path)
            && let LeafKind::File { size, .. } = self.tree.leaf(id).kind
        {
            return Ok((id, size));
        }
        Err(ImageError::Missing {
            image: self.image.manifest_digest().to_owned(),
            what: format!("file {path}"),
        })
    }

    /// The contents of files, each at most `limit` bytes long, in the order of `paths`.
    pub(crate) fn contents(
        &self,
        paths: &[String],
        limit: u64,
    ) -> Result<Vec<Vec<u8>>, ImageError> {
        let mut wanted = HashMap::new();
        for (index, path) in paths.iter().enumerate() {
            let (id, size) = self.file(path)?;
            if size > limit {
                return Err(ImageError::TooLarge {
                    image: self.image.manifest_digest().to_owned(),
                    limit,
                    unit: "bytes in one file",
                });
            }
            if let LeafKind::File { layer, entry, .. } = self.tree.leaf(id).kind {
                wanted.insert((layer, entry), index);
            }
        }
        let mut contents = vec![Vec::new(); paths.len()];
        self.stream(&wanted, &mut |index: usize, bytes| {
            let read = bytes.read_to_end(&mut contents[index]);
            read.map(drop).map_err(|source| ImageError::Layer {
                layer: self.image.manifest_digest().to_owned(),
                source,
            })
        })?;
        Ok(contents)
    }
}

/// What an entry says. The outer error refuses the image, the inner one leaves out the entry.
fn change<R: Read>(
    entry: &mut tar::Entry<'_, R>,
    (layer, number): Source,
) -> Result<Result<Change, String>, String> {
    let attrs = attrs(entry)?;
    let header = entry.header();
    let device = || -> Result<(u32, u32), String> {
        let part = |n: io::Result<Option<u32>>| {
            n.map_err(|e| e.to_string()).map(Option::unwrap_or_default)
        };
        match (part(header.device_major())?, part(header.device_minor())?) {
            (major, minor) if major <= MAX_MAJOR && minor <= MAX_MINOR => Ok((major, minor)),
            (major, minor) => Err(format!("device number {major}:{minor} is out of range")),
        }
    };
    let kind = match header.entry_type() {
        EntryType::Directory => return Ok(Ok(Change::Dir(attrs))),
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => LeafKind::File {
            size: entry.size(),
            layer,
            entry: number,
        },
        EntryType::Symlink => {
            let target = entry.link_name_bytes().unwrap_or_default().into_owned();
            if target.is_empty() || target.len() > MAX_TARGET || target.contains(&0) {
                return Err("a symlink to nothing, or to an impossible name".to_owned());
            }
            LeafKind::Symlink(target)
        }
        EntryType::Link => {
            let target = entry.link_name_bytes().unwrap_or_default().into_owned();
            return Ok(Ok(Change::HardLink(target)));
        }
        EntryType::Char => {
            let (major, minor) = device()?;
            LeafKind::Char { major, minor }
        }
        EntryType::Block => {
            let (major, minor) = device()?;
            LeafKind::Block { major, minor }
        }
        EntryType::Fifo => LeafKind::Fifo,
        other => {
            return Ok(Err(format!(
                "unknown kind of entry {:?}",
                char::from(other.as_byte())
            )));
        }
    };
    Ok(Ok(Change::Leaf(Leaf { attrs, kind })))
}

fn attrs<R: Read>(entry: &mut tar::Entry<'_, R>) -> Result<Attrs, String> {
    let mut mtime = None;
    let mut xattrs = Vec::new();
    if let Some(records) = entry.pax_extensions().map_err(|e| e.to_string())? {
        for record in records {
            let record = record.map_err(|e| e.to_string())?;
            if record.key_bytes() == b"mtime" {
                mtime = record.value().ok().and_then(parse_time);
            } else if let Some(name) = record.key_bytes().strip_prefix(b"SCHILY.xattr.") {
                let name = std::str::from_utf8(name).map_err(|_| "an unreadable xattr name")?;
                let value = record.value_bytes();
                let value = match name {
                    "system.posix_acl_access" | "system.posix_acl_default" => {
                        disk_acl(value).ok_or("a malformed access control list")?
                    }
                    _ => value.to_vec(),
                };
                if has_namespace(name) {
                    xattrs.push((name.to_owned(), value));
                }
            }
        }
    }
    let header = entry.header();
    let number = |what: &str, field: &[u8; 8], value: io::Result<u64>| -> Result<u32, String> {
        // Some writers leave zero out, and every tar reads it so.
        if field.iter().all(|b| matches!(b, 0 | b' ')) {
            return Ok(0);
        }
        let value = value.map_err(|e| e.to_string())?;
        u32::try_from(value).map_err(|_| format!("{what} {value} is out of range"))
    };
    let mode = header.mode().map_err(|e| e.to_string())? & 0o7777;
    let seconds = header
        .mtime()
        .ok()
        .and_then(|t| i64::try_from(t).ok())
        .unwrap_or(0);
    let (seconds, nanos) = mtime.unwrap_or((seconds, 0));
    Ok(Attrs {
        mode: u16::try_from(mode).map_err(|e| e.to_string())?,
        uid: number("owner", &header.as_old().uid, header.uid())?,
        gid: number("group", &header.as_old().gid, header.gid())?,
        mtime: (seconds.clamp(*TIMES.start(), *TIMES.end()), nanos),
        xattrs,
    })
}

/// Whether ext4 has a place for this extended attribute.
fn has_namespace(name: &str) -> bool {
    match name.split_once('.') {
        Some(("system", rest)) => rest.starts_with("posix_acl_"),
        Some(("user" | "trusted" | "security", rest)) => !rest.is_empty() && rest.len() <= 255,
        _ => false,
    }
}

/// A pax time: decimal seconds with a fraction, possibly negative.
fn parse_time(text: &str) -> Option<Time> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let nanos: u32 = digits.parse().ok()?;
    let whole: i64 = seconds.parse().ok()?;
    // -1.25 is a quarter before -1, and nanoseconds only count forward.
    if seconds.starts_with('-') && nanos > 0 {
        Some((whole.checked_sub(1)?, 1_000_000_000 - nanos))
    } else {
        Some((whole, nanos))
    }
}

/// An access control list as ext4 keeps it (version 1, ids only where they mean something), from
/// the form of the system call (version 2, an id in every entry).
fn disk_acl(value: &[u8]) -> Option<Vec<u8>> {
    const NAMED_USER: u16 = 0x02;
    const NAMED_GROUP: u16 = 0x08;
    let entries = value.strip_prefix(&2u32.to_le_bytes())?;
    let mut out = 1u32.to_le_bytes().to_vec();
    let (entries, []) = entries.as_chunks::<8>() else {
        return None;
    };
    for [tag_low, tag_high, perm_low, perm_high, id @ ..] in entries {
        out.extend([tag_low, tag_high, perm_low, perm_high]);
        if matches!(
            u16::from_le_bytes([*tag_low, *tag_high]),
            NAMED_USER | NAMED_GROUP
        ) {
            out.extend(id);
        }
    }
    Some(out)
}

/// A reader that gives no more bytes than it is allowed.
struct Metered<'a, R> {
    inner: R,
    allowance: &'a Cell<u64>,
}

impl<R: Read> Read for Metered<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        let left = self.allowance.get().checked_sub(n as u64).ok_or_else(|| {
            io::Error::other(format!(
                "an entry has more than {MAX_HEADERS} bytes of headers"
            ))
        })?;
        self.allowance.set(left);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn times_are_read() {
        assert_eq!(
            parse_time("1700000000.5"),
            Some((1_700_000_000, 500_000_000))
        );
        assert_eq!(parse_time("-1.25"), Some((-2, 750_000_000)));
        assert_eq!(parse_time("-100"), Some((-100, 0)));
        assert_eq!(parse_time("7.1234567899"), Some((7, 123_456_789)));
        assert_eq!(parse_time("soon"), None);
        assert_eq!(parse_time("-9223372036854775808.1"), None);
    }

    #[test]
    fn access_control_lists_take_their_disk_form() {
        let entry = |tag: u16, perm: u16, id: u32| {
            [
                &tag.to_le_bytes()[..],
                &perm.to_le_bytes(),
                &id.to_le_bytes(),
            ]
            .concat()
        };
        let wire = [
            2u32.to_le_bytes().to_vec(),
            entry(1, 6, u32::MAX),
            entry(2, 4, 1000),
        ]
        .concat();
        let disk = disk_acl(&wire).unwrap();
        assert_eq!(disk, [1, 0, 0, 0, 1, 0, 6, 0, 2, 0, 4, 0, 0xe8, 3, 0, 0]);
        assert_eq!(disk_acl(&wire[..wire.len() - 1]), None);
        assert_eq!(disk_acl(&[1, 0, 0, 0]), None);
    }

    proptest! {
        #[test]
        fn untrusted_values_never_panic(text in "\\PC{0,30}", acl in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = parse_time(&text);
            let _ = disk_acl(&acl);
        }
    }
}
