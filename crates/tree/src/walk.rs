//! What is in a tree, directory by directory, without following symlinks.

use crate::dir::{Dir, MAX_DEPTH, not_directory};
use crate::error::{TreeError, failed, text};
use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

/// Says of a path from the tree's root, and of whether it is a directory, whether it belongs to
/// the copy. A directory that doesn't isn't looked into.
pub type Filter = Box<dyn Fn(&[u8], bool) -> bool + Send>;

/// Bytes of paths of directories that may wait to be looked into.
const MAX_WAITING: usize = 64 << 20;

/// Something in a tree.
#[derive(Debug)]
pub(crate) struct Found {
    /// From the root, `/`-separated.
    pub(crate) path: Vec<u8>,
    pub(crate) stat: Stat,
    pub(crate) is_dir: bool,
}

/// Walks a tree: each directory before what is in it. Files and directories only.
pub(crate) struct Walk {
    root: Dir,
    filter: Filter,
    /// Directories to look into.
    waiting: Vec<Vec<u8>>,
    waiting_bytes: usize,
    current: Option<(Vec<u8>, Dir, rustix::fs::Dir)>,
    /// What was neither file nor directory.
    pub(crate) skipped: u64,
}

impl Walk {
    pub(crate) fn new(root: Dir, filter: Filter) -> Self {
        Self {
            root,
            filter,
            waiting: vec![Vec::new()],
            waiting_bytes: 0,
            current: None,
            skipped: 0,
        }
    }

    /// The directory that the file which was found last is in.
    pub(crate) fn directory(&self) -> Option<&Dir> {
        self.current.as_ref().map(|(_, dir, _)| dir)
    }

    pub(crate) fn next(&mut self) -> Result<Option<Found>, TreeError> {
        loop {
            let Some((path, dir, listing)) = &mut self.current else {
                let Some(path) = self.waiting.pop() else {
                    return Ok(None);
                };
                self.waiting_bytes -= path.len();
                match self.look_into(path)? {
                    Some(found) if !found.path.is_empty() => return Ok(Some(found)),
                    _ => continue,
                }
            };
            let Some(entry) = listing.read() else {
                self.current = None;
                continue;
            };
            let entry = entry.map_err(failed("list", path))?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let mut at = path.clone();
            if !at.is_empty() {
                at.push(b'/');
            }
            at.extend_from_slice(name);
            let Some(stat) = dir.stat(name, false).map_err(failed("look at", &at))? else {
                // It was there a moment ago.
                continue;
            };
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory if (self.filter)(&at, true) => {
                    if at.split(|b| *b == b'/').count() > MAX_DEPTH {
                        return Err(TreeError::TooLarge("its directories are nested too deep"));
                    }
                    self.waiting_bytes += at.len();
                    if self.waiting_bytes > MAX_WAITING {
                        return Err(TreeError::TooLarge("it has too many directories"));
                    }
                    self.waiting.push(at);
                }
                FileType::RegularFile if (self.filter)(&at, false) => {
                    return Ok(Some(Found {
                        path: at,
                        stat,
                        is_dir: false,
                    }));
                }
                FileType::Directory | FileType::RegularFile => {}
                _ if (self.filter)(&at, false) => self.skipped += 1,
                _ => {}
            }
        }
    }

    /// Begins with a directory; `None` when it is gone.
    fn look_into(&mut self, path: Vec<u8>) -> Result<Option<Found>, TreeError> {
        let dir = match self.root.descend(&path) {
            Ok(dir) => dir,
            Err(TreeError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound && !path.is_empty() =>
            {
                return Ok(None);
            }
            Err(e) => return Err(e),
        };
        let stat = rustix::fs::fstat(&dir).map_err(failed("look at", &path))?;
        let listing = rustix::fs::Dir::read_from(&dir).map_err(failed("list", &path))?;
        self.current = Some((path.clone(), dir, listing));
        Ok(Some(Found {
            path,
            stat,
            is_dir: true,
        }))
    }
}

/// How much there is in a tree.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Measured {
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Adds up a tree's files.
///
/// # Errors
/// When a part of it can't be read.
pub fn measure(root: Dir, filter: Filter) -> Result<Measured, TreeError> {
    let mut walk = Walk::new(root, filter);
    let mut sum = Measured::default();
    while let Some(found) = walk.next()? {
        if !found.is_dir {
            sum.files += 1;
            sum.bytes += u64::try_from(found.stat.st_size).unwrap_or(0);
        }
    }
    Ok(sum)
}

/// Opens a file that was found, if it still is one.
pub(crate) fn open(dir: &Dir, path: &[u8]) -> Result<Option<(std::fs::File, Stat)>, TreeError> {
    let name = path.rsplit(|b| *b == b'/').next().unwrap_or_default();
    match dir.open_file(name) {
        Ok(opened) => Ok(opened),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => match Errno::from_io_error(&e) {
            Some(errno) => Err(not_directory("read", path)(errno)),
            None => Err(TreeError::Io {
                action: "read",
                path: text(path),
                source: e,
            }),
        },
    }
}
