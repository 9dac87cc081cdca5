//! Reads disks: a raw file, or qcow2 files that lie over each other, as what a machine sees.
//!
//! Source: QEMU's docs/interop/qcow2.txt (version 3). What is there is what QEMU writes into the
//! overlays of this crate; anything else the format allows is refused.

use crate::ImageError;
use crate::qcow2::{self, CLUSTER, CLUSTER_BITS, FileFormat, MAGIC};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Entries of a second-level table.
const L2_ENTRIES: u64 = CLUSTER / 8;
/// Where in its file a cluster is, in an entry of a table.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
/// The cluster reads as zeros.
const ZERO: u64 = 1;
/// Incompatible features that change nothing for who reads: the reference counts may be wrong.
const HARMLESS: u64 = 1;
/// More files than any disk lies over.
const MAX_FILES: usize = 1024;

/// A disk that nobody writes to meanwhile. It stays readable when its files are removed.
pub(crate) struct Chain {
    /// The disk's own file is first.
    files: Vec<Layer>,
    size: u64,
}

enum Layer {
    Raw(Raw),
    Qcow2(Qcow2),
}

struct Raw {
    file: File,
    path: PathBuf,
    size: u64,
    /// What was looked up last: data or a hole, from and to.
    known: (bool, u64, u64),
}

struct Qcow2 {
    file: File,
    path: PathBuf,
    length: u64,
    l1: Vec<u64>,
    /// The second-level table that was read last, and which.
    l2: (Option<u64>, Vec<u8>),
}

/// Where a cluster's bytes are.
enum Place {
    /// In the file of this number, from 0, at this offset.
    Data(usize, u64),
    Zeros,
}

impl Chain {
    /// Opens the disk at `path`. What it lies over has to be what `known` knows the format of:
    /// nothing else is opened, whatever its file says.
    pub(crate) fn open(
        path: &Path,
        format: FileFormat,
        known: &dyn Fn(&Path) -> Option<FileFormat>,
    ) -> Result<Self, ImageError> {
        let mut files = Vec::new();
        let mut next = Some((path.to_owned(), format));
        let mut size = None;
        while let Some((path, format)) = next.take() {
            let failed = |e| ImageError::io("read", &path)(e);
            if files.len() == MAX_FILES {
                return Err(failed(bad("it lies over too many others")));
            }
            let file = File::open(&path).map_err(ImageError::io("open", &path))?;
            let length = file.metadata().map_err(failed)?.len();
            match format {
                FileFormat::Raw => {
                    size.get_or_insert(length);
                    files.push(Layer::Raw(Raw {
                        file,
                        path,
                        size: length,
                        known: (false, 0, 0),
                    }));
                }
                FileFormat::Qcow2 => {
                    let header = qcow2::read(&file).map_err(failed)?;
                    let header = header.ok_or_else(|| failed(bad("it is no qcow2 image")))?;
                    let l1 = first_level(&file, length, header.size).map_err(failed)?;
                    size.get_or_insert(header.size);
                    if let Some(below) = header.backing {
                        let below = path.parent().unwrap_or(Path::new(".")).join(below);
                        let format = known(&below);
                        let format = format.ok_or_else(|| {
                            failed(bad("what it lies over is no disk of this daemon's"))
                        })?;
                        next = Some((below, format));
                    }
                    files.push(Layer::Qcow2(Qcow2 {
                        file,
                        path,
                        length,
                        l1,
                        l2: (None, Vec::new()),
                    }));
                }
            }
        }
        Ok(Self {
            files,
            size: size.unwrap_or_default(),
        })
    }

    /// The disk's size, bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Clusters of [`CLUSTER`] bytes, the last of which may be shorter.
    pub(crate) fn clusters(&self) -> u64 {
        self.size.div_ceil(CLUSTER)
    }

    /// Whether a cluster may have other bytes than zeros.
    pub(crate) fn has_data(&mut self, cluster: u64) -> Result<bool, ImageError> {
        Ok(matches!(self.place(cluster)?, Place::Data(..)))
    }

    /// Reads a cluster. What is behind the disk's end is zeros.
    pub(crate) fn read(&mut self, cluster: u64, into: &mut [u8]) -> Result<(), ImageError> {
        into.fill(0);
        let Place::Data(file, at) = self.place(cluster)? else {
            return Ok(());
        };
        let (file, path) = match &self.files[file] {
            Layer::Raw(raw) => (&raw.file, &raw.path),
            Layer::Qcow2(image) => (&image.file, &image.path),
        };
        let mut done = 0;
        while done < into.len() {
            match file.read_at(&mut into[done..], at + done as u64) {
                // Files end where nothing but zeros would follow.
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(ImageError::io("read", path)(e)),
            }
        }
        Ok(())
    }

    fn place(&mut self, cluster: u64) -> Result<Place, ImageError> {
        for (number, layer) in self.files.iter_mut().enumerate() {
            match layer {
                Layer::Raw(raw) => {
                    let at = cluster * CLUSTER;
                    let data = raw
                        .has_data(at)
                        .map_err(ImageError::io("read", &raw.path))?;
                    return Ok(if data {
                        Place::Data(number, at)
                    } else {
                        Place::Zeros
                    });
                }
                Layer::Qcow2(image) => {
                    let found = image.find(cluster);
                    match found.map_err(ImageError::io("read", &image.path))? {
                        Some(0) => return Ok(Place::Zeros),
                        Some(at) => return Ok(Place::Data(number, at)),
                        None => {}
                    }
                }
            }
        }
        Ok(Place::Zeros)
    }
}

impl Raw {
    /// Whether there is data in the cluster that begins at `at`.
    fn has_data(&mut self, at: u64) -> io::Result<bool> {
        if at >= self.size {
            return Ok(false);
        }
        let end = (at + CLUSTER).min(self.size);
        let (data, from, to) = self.known;
        if data && at < to && end > from {
            return Ok(true);
        }
        if !data && at >= from && end <= to {
            return Ok(false);
        }
        let start = match seek(&self.file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => self.size,
            // Where holes can't be told, all of it is data.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                self.known = (true, 0, self.size);
                return Ok(true);
            }
            Err(e) => return Err(e.into()),
        };
        if start >= end {
            self.known = (false, at, start);
            return Ok(false);
        }
        let hole = seek(&self.file, SeekFrom::Hole(start)).unwrap_or(self.size);
        self.known = (true, start, hole);
        Ok(true)
    }
}

impl Qcow2 {
    /// Where a cluster is in the file; 0 when it is zeros there, `None` when it is what lies below.
    fn find(&mut self, cluster: u64) -> io::Result<Option<u64>> {
        let table = cluster / L2_ENTRIES;
        let entry = usize::try_from(table).ok().and_then(|n| self.l1.get(n));
        let at = entry.copied().unwrap_or_default() & OFFSET;
        if at == 0 {
            return Ok(None);
        }
        if self.l2.0 != Some(table) {
            let mut bytes = std::mem::take(&mut self.l2).1;
            bytes.resize(cluster_length(), 0);
            self.check(at)?;
            self.file.read_exact_at(&mut bytes, at)?;
            self.l2 = (Some(table), bytes);
        }
        let index = usize::try_from(cluster % L2_ENTRIES).unwrap_or_default() * 8;
        let entry = number(&self.l2.1, index);
        if entry & COMPRESSED != 0 {
            return Err(bad("it has compressed clusters"));
        }
        if entry & ZERO != 0 {
            return Ok(Some(0));
        }
        let at = entry & OFFSET;
        if at == 0 {
            return Ok(None);
        }
        self.check(at)?;
        Ok(Some(at))
    }

    fn check(&self, at: u64) -> io::Result<()> {
        if at.is_multiple_of(CLUSTER) && at < self.length {
            Ok(())
        } else {
            Err(bad("a cluster is not in the file"))
        }
    }
}

/// The table that leads to all others.
fn first_level(file: &File, length: u64, size: u64) -> io::Result<Vec<u64>> {
    let mut head = [0; 104];
    file.read_exact_at(&mut head, 0)?;
    let (version, bits) = (word(&head, 4), word(&head, 20));
    if !head.starts_with(MAGIC) || version != 3 || bits != CLUSTER_BITS {
        return Err(bad("it is no qcow2 image of this daemon's"));
    }
    if word(&head, 32) != 0 || number(&head, 72) & !HARMLESS != 0 {
        return Err(bad("it is encrypted or has features that are not known"));
    }
    let (entries, at) = (u64::from(word(&head, 36)), number(&head, 40));
    let needed = size.div_ceil(CLUSTER).div_ceil(L2_ENTRIES);
    if entries < needed || at.saturating_add(entries * 8) > length {
        return Err(bad("its first table is cut short"));
    }
    let bytes = usize::try_from(needed * 8).map_err(|_| bad("it is too large"))?;
    let mut table = vec![0; bytes];
    file.read_exact_at(&mut table, at)?;
    Ok(table
        .chunks_exact(8)
        .map(|entry| number(entry, 0))
        .collect())
}

fn cluster_length() -> usize {
    usize::try_from(CLUSTER).unwrap_or(usize::MAX)
}

fn number(bytes: &[u8], at: usize) -> u64 {
    let bytes = bytes.iter().skip(at).take(8);
    bytes.fold(0, |n, b| n << 8 | u64::from(*b))
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes.iter().skip(at).take(4);
    bytes.fold(0, |n, b| n << 8 | u32::from(*b))
}

fn bad(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
