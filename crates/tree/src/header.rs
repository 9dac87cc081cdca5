//! What one tar header says.
//!
//! Source: POSIX.1-2017, pax(1), "ustar Interchange Format" and "pax Extended Header"; GNU tar's
//! manual, "Basic Tar Format", for long names and numbers in base 256.

use crate::error::{TreeError, text};
use rustix::fs::Timespec;
use tar::{EntryType, Header, PaxExtensions};

/// Bytes of a header, and what all parts of an archive are a multiple of.
pub(crate) const BLOCK: usize = 512;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A regular file of this size, bytes.
    File(u64),
    Directory,
    /// Anything that isn't made, with this many bytes to leave out.
    Other(u64),
}

/// An entry of an archive, without its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Clean and relative, unless the kind is [`Kind::Other`].
    pub(crate) name: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) mtime: Option<Timespec>,
}

/// What a block at the place of a header is.
pub(crate) enum Block {
    /// All zeroes: the end.
    End,
    /// An entry, unless extensions before it change it.
    Entry(Box<Header>),
    /// A long name of this many bytes follows.
    LongName(u64),
    /// Records on the next entry, of this many bytes, follow.
    Records(u64),
    /// This many bytes that mean nothing here follow.
    Ignored(u64),
}

/// What headers before an entry said about it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Extensions {
    long_name: Option<Vec<u8>>,
    path: Option<Vec<u8>>,
    size: Option<u64>,
    mtime: Option<Timespec>,
}

const BROKEN: TreeError = TreeError::Archive("a header makes no sense");

/// Reads a block at the place of a header.
pub(crate) fn block(bytes: &[u8; BLOCK]) -> Result<Block, TreeError> {
    if bytes.iter().all(|b| *b == 0) {
        return Ok(Block::End);
    }
    let header = Header::from_byte_slice(bytes);
    // The checksum is that of the header with spaces in the checksum's place.
    let sum =
        |range: std::ops::Range<usize>| -> u32 { bytes[range].iter().map(|b| u32::from(*b)).sum() };
    let expected: u32 = sum(0..148) + 8 * u32::from(b' ') + sum(156..BLOCK);
    if header.cksum().map_err(|_| BROKEN)? != expected {
        return Err(TreeError::Archive("a header's checksum is wrong"));
    }
    let size = || header.entry_size().map_err(|_| BROKEN);
    Ok(match header.entry_type() {
        EntryType::GNULongName => Block::LongName(size()?),
        EntryType::XHeader => Block::Records(size()?),
        EntryType::GNULongLink | EntryType::XGlobalHeader => Block::Ignored(size()?),
        _ => Block::Entry(Box::new(header.clone())),
    })
}

impl Extensions {
    /// Takes the name that followed a [`Block::LongName`].
    pub(crate) fn long_name(&mut self, mut name: Vec<u8>) {
        while name.last() == Some(&0) {
            name.pop();
        }
        self.long_name = Some(name);
    }

    /// Takes the records that followed a [`Block::Records`].
    pub(crate) fn records(&mut self, bytes: &[u8]) -> Result<(), TreeError> {
        for record in PaxExtensions::new(bytes) {
            let record = record.map_err(|_| BROKEN)?;
            let value = record.value_bytes();
            match record.key_bytes() {
                b"path" => self.path = Some(value.to_vec()),
                b"size" => self.size = Some(decimal(value).ok_or(BROKEN)?),
                b"mtime" => self.mtime = time(value),
                key if key.starts_with(b"GNU.sparse.") => return Err(sparse()),
                _ => {}
            }
        }
        Ok(())
    }

    /// The entry of this header, and of what was said before it.
    pub(crate) fn entry(self, header: &Header) -> Result<Entry, TreeError> {
        let name = match self.path.or(self.long_name) {
            Some(name) => name,
            None => header.path_bytes().into_owned(),
        };
        let kind = header.entry_type();
        let size = match self.size {
            Some(size) => size,
            None => header.entry_size().map_err(|_| BROKEN)?,
        };
        let kind = match kind {
            EntryType::GNUSparse => return Err(sparse()),
            EntryType::Directory => Kind::Directory,
            // So did the first tar say it.
            EntryType::Regular if name.ends_with(b"/") => Kind::Directory,
            EntryType::Regular | EntryType::Continuous => Kind::File(size),
            // These are all header, whatever size it says.
            EntryType::Link
            | EntryType::Symlink
            | EntryType::Char
            | EntryType::Block
            | EntryType::Fifo => Kind::Other(0),
            _ => Kind::Other(size),
        };
        let name = match kind {
            Kind::Other(_) => name,
            _ => clean(&name, kind == Kind::Directory)
                .ok_or_else(|| TreeError::Name { name: text(&name) })?
                .to_vec(),
        };
        let seconds = header.mtime().ok().and_then(|t| i64::try_from(t).ok());
        Ok(Entry {
            name,
            kind,
            mode: header.mode().map_err(|_| BROKEN)?,
            mtime: self
                .mtime
                .or(seconds.map(|tv_sec| Timespec { tv_sec, tv_nsec: 0 })),
        })
    }
}

fn sparse() -> TreeError {
    TreeError::Archive("it holds a sparse file; make it without --sparse")
}

/// A name without the `./` in front that tar(1) writes for `.`, and a directory's `/` at the end;
/// `None` when what is left isn't a relative path of plain names. The root itself is empty.
fn clean(name: &[u8], directory: bool) -> Option<&[u8]> {
    if directory && matches!(name, b"." | b"./") {
        return Some(b"");
    }
    let name = name.strip_prefix(b"./").unwrap_or(name);
    let name = match name.strip_suffix(b"/") {
        Some(rest) if directory => rest,
        _ => name,
    };
    let plain = |part: &[u8]| !matches!(part, b"" | b"." | b"..") && !part.contains(&0);
    name.split(|b| *b == b'/').all(plain).then_some(name)
}

fn decimal(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    digits
        .then(|| std::str::from_utf8(text).ok()?.parse().ok())
        .flatten()
}

/// A time as pax writes it: seconds, perhaps negative, perhaps with a fraction. One that makes no
/// sense is none.
fn time(text: &[u8]) -> Option<Timespec> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |b| *b == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let mut nanos = 0i64;
    if let Some(fraction) = parts.next().filter(|f| !f.is_empty()) {
        decimal(&fraction[..fraction.len().min(9)])?;
        for place in 0..9 {
            let digit = fraction.get(place).map_or(0, |b| b - b'0');
            nanos = nanos * 10 + i64::from(digit);
        }
    }
    let (seconds, nanos) = match (negative, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanos),
    };
    Some(Timespec {
        tv_sec: seconds,
        tv_nsec: nanos,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names() {
        for (name, directory, cleaned) in [
            ("a", false, Some("a")),
            ("a/b", false, Some("a/b")),
            ("./a", false, Some("a")),
            ("a\\b", false, Some("a\\b")),
            ("a/", true, Some("a")),
            ("a/", false, None),
            ("./", true, Some("")),
            (".", true, Some("")),
            (".", false, None),
            ("", true, None),
            ("/a", false, None),
            ("//", true, None),
            ("../a", false, None),
            ("a/../b", false, None),
            ("a/..", true, None),
            ("a/./b", false, None),
            ("a//b", false, None),
            ("././a", false, None),
            ("a\0b", false, None),
        ] {
            let got = clean(name.as_bytes(), directory);
            assert_eq!(got, cleaned.map(str::as_bytes), "{name:?}");
        }
    }

    #[test]
    fn times() {
        let parts = |t: &str| time(t.as_bytes()).map(|t| (t.tv_sec, t.tv_nsec));
        assert_eq!(parts("12"), Some((12, 0)));
        assert_eq!(parts("12.5"), Some((12, 500_000_000)));
        assert_eq!(parts("1.0000000019"), Some((1, 1)));
        assert_eq!(parts("-1.25"), Some((-2, 750_000_000)));
        assert_eq!(parts("-3."), Some((-3, 0)));
        for wrong in ["", "x", "1.x", "--1", "1e9", "99999999999999999999"] {
            assert_eq!(parts(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn clean_names_stay_inside(name in proptest::collection::vec(prop::sample::select(&b"./a\0\\"[..]), 0..12), directory: bool) {
            if let Some(name) = clean(&name, directory) {
                let path = std::path::Path::new(std::str::from_utf8(name).unwrap());
                prop_assert!(path.components().all(|c| matches!(c, std::path::Component::Normal(_))));
                prop_assert!(!name.contains(&0));
            }
        }

        #[test]
        fn any_records(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Extensions::default().records(&bytes);
        }
    }
}
