//! Tar archives that images are in: where each of their files is, read by its place.

use crate::ImageError;
use crate::layout::MAX_DOCUMENT;
use std::cell::Cell;
use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// More files than an archive of images has: each blob is one.
const MAX_ENTRIES: usize = 100_000;
/// More than the headers of one entry ever need, bytes: long names are held in memory.
const MAX_HEADERS: u64 = 64 << 10;
/// How many links lead from one name to another at most.
const MAX_LINKS: usize = 8;

/// An open archive. Nothing of it is trusted but that it is a file.
pub(crate) struct Archive {
    path: PathBuf,
    file: File,
    entries: HashMap<String, Entry>,
}

enum Entry {
    Data { offset: u64, size: u64 },
    Link(String),
}

impl Archive {
    /// Opens the archive and reads its headers; what lies between them is stepped over.
    pub(crate) fn open(path: &Path) -> Result<Self, ImageError> {
        let file = File::open(path).map_err(ImageError::io("open", path))?;
        let mut this = Self {
            path: path.to_owned(),
            entries: HashMap::new(),
            file,
        };
        let length = this.metadata()?.len();
        let mut start = [0; 6];
        let read = (&this.file).take(6).read(&mut start);
        let read = read.map_err(ImageError::io("read", path))?;
        let packed = [
            &[0x1f, 0x8b][..],
            b"\x28\xb5\x2f\xfd",
            b"\xfd7zXZ\0",
            b"BZh",
        ];
        if packed.iter().any(|magic| start[..read].starts_with(magic)) {
            return Err(this.unusable(
                "it is compressed as a whole: unpack it with gzip -d or its like first",
            ));
        }
        (&this.file)
            .rewind()
            .map_err(ImageError::io("read", path))?;

        this.entries = this.headers(length)?;
        Ok(this)
    }

    /// What is where in this archive of `length` bytes.
    fn headers(&self, length: u64) -> Result<HashMap<String, Entry>, ImageError> {
        let allowance = Cell::new(MAX_HEADERS);
        let mut archive = tar::Archive::new(Headers {
            file: &self.file,
            allowance: &allowance,
        });
        let unreadable = |e: io::Error| self.unusable(&e.to_string());
        let mut entries = HashMap::new();
        let mut headers = archive.entries_with_seek().map_err(unreadable)?;
        loop {
            allowance.set(MAX_HEADERS);
            let Some(entry) = headers.next() else { break };
            let entry = entry.map_err(unreadable)?;
            if entries.len() >= MAX_ENTRIES {
                return Err(self.unusable("it has more files than an archive of images"));
            }
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let name = name.strip_prefix("./").unwrap_or(&name).to_owned();
            let (offset, size) = (entry.raw_file_position(), entry.size());
            let kind = entry.header().entry_type();
            if kind.is_symlink() || kind.is_hard_link() {
                let target = entry.link_name_bytes().unwrap_or_default();
                let target = String::from_utf8_lossy(&target).into_owned();
                let from = if kind.is_symlink() { name.as_str() } else { "" };
                entries.insert(name.clone(), Entry::Link(resolve(from, &target)));
            } else if kind.is_file() {
                if offset.checked_add(size).is_none_or(|end| end > length) {
                    return Err(self.unusable(&format!("it is cut short in {name}")));
                }
                entries.insert(name, Entry::Data { offset, size });
            }
        }
        Ok(entries)
    }

    /// What tells this state of the file from others, at the cost of one look: its size, time of
    /// change and inode.
    pub(crate) fn stamp(&self) -> Result<String, ImageError> {
        self.metadata().map(|metadata| stamp(&metadata))
    }

    fn metadata(&self) -> Result<Metadata, ImageError> {
        let metadata = self.file.metadata();
        let metadata = metadata.map_err(ImageError::io("inspect", &self.path))?;
        if !metadata.is_file() {
            return Err(self.unusable("it is not a file"));
        }
        Ok(metadata)
    }

    /// Whether there is a file of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    fn find(&self, name: &str) -> Option<(u64, u64)> {
        let mut name = name;
        for _ in 0..MAX_LINKS {
            match self.entries.get(name)? {
                Entry::Data { offset, size } => return Some((*offset, *size)),
                Entry::Link(target) => name = target,
            }
        }
        None
    }

    /// The size of a file, bytes.
    pub(crate) fn size(&self, name: &str) -> Result<u64, ImageError> {
        self.find(name)
            .map(|(_, size)| size)
            .ok_or_else(|| self.unusable(&format!("{name} is missing")))
    }

    /// A file, from `skip` on. One at a time: they share the place in the archive.
    pub(crate) fn read(&self, name: &str, skip: u64) -> Result<io::Take<&File>, ImageError> {
        let Some((offset, size)) = self.find(name) else {
            return Err(self.unusable(&format!("{name} is missing")));
        };
        let skip = skip.min(size);
        (&self.file)
            .seek(SeekFrom::Start(offset + skip))
            .map_err(ImageError::io("read", &self.path))?;
        Ok((&self.file).take(size - skip))
    }

    /// A file that is a JSON document.
    pub(crate) fn document(&self, name: &str) -> Result<Vec<u8>, ImageError> {
        let mut text = Vec::new();
        if self.size(name)? > MAX_DOCUMENT {
            return Err(self.unusable(&format!("{name} is too large for a JSON document")));
        }
        self.read(name, 0)?
            .read_to_end(&mut text)
            .map_err(ImageError::io("read", &self.path))?;
        Ok(text)
    }

    /// The name of a part in errors.
    pub(crate) fn part(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub(crate) fn unusable(&self, why: &str) -> ImageError {
        ImageError::Archive {
            path: self.path.clone(),
            why: why.to_owned(),
        }
    }
}

/// The state a file is in, see [`Archive::stamp`].
pub(crate) fn stamp(metadata: &Metadata) -> String {
    let (seconds, nanos) = (metadata.mtime(), metadata.mtime_nsec());
    format!(
        "{} bytes, {seconds}.{nanos:09}, inode {}:{}",
        metadata.len(),
        metadata.dev(),
        metadata.ino()
    )
}

/// Where a link leads that is at `from`, as a name in the archive.
fn resolve(from: &str, target: &str) -> String {
    let mut parts: Vec<_> = from.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// The archive as tar reads it: data is sought over, so all that is read are headers.
struct Headers<'a> {
    file: &'a File,
    allowance: &'a Cell<u64>,
}

impl Read for Headers<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buf)?;
        let left = self.allowance.get().checked_sub(n as u64);
        let left = left.ok_or_else(|| io::Error::other("an entry has too long a name"))?;
        self.allowance.set(left);
        Ok(n)
    }
}

impl Seek for Headers<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_to_names() {
        for (from, target, name) in [
            ("a/layer.tar", "../b/layer.tar", "b/layer.tar"),
            ("a/layer.tar", "./x", "a/x"),
            ("a", "../../../etc/passwd", "etc/passwd"),
        ] {
            assert_eq!(resolve(from, target), name);
        }
    }
}
