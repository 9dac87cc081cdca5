//! From files to tar.

use crate::archive::padding;
use crate::dir::Dir;
use crate::error::{TreeError, failed, text};
use crate::header::BLOCK;
use crate::walk::{Filter, Found, Walk, open};
use std::fs::File;
use std::io::Read;
use tar::{EntryType, Header};

/// The longest name that needs no header of its own, bytes.
const SHORT_NAME: usize = 100;

/// What a packed tree came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Packed {
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Links, devices and the like, which aren't packed.
    pub skipped: u64,
}

/// The file that is being packed.
#[derive(Debug)]
struct Open {
    file: File,
    path: Vec<u8>,
    left: u64,
    padding: u64,
}

/// Gives out a tree as a tar archive: entries named from its root, which is none itself; files
/// and directories only, with permission bits and times, without owners.
///
/// The form is GNU's, which takes names that are not UTF-8.
pub struct Packer {
    walk: Walk,
    /// Headers and padding that are to be given out.
    out: Vec<u8>,
    given: usize,
    open: Option<Open>,
    over: bool,
    done: Packed,
}

impl Packer {
    /// Packs what is in `root` and passes the filter.
    #[must_use]
    pub fn new(root: Dir, filter: Filter) -> Self {
        Self {
            walk: Walk::new(root, filter),
            out: Vec::new(),
            given: 0,
            open: None,
            over: false,
            done: Packed::default(),
        }
    }

    /// What was packed so far.
    #[must_use]
    pub fn packed(&self) -> Packed {
        Packed {
            skipped: self.walk.skipped,
            ..self.done
        }
    }

    /// Fills `buffer` from its beginning; gives back how many bytes, 0 at the end.
    ///
    /// # Errors
    /// When a part of the tree can't be read, or changes in a way that an archive, whose sizes
    /// come first, can't express.
    pub fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, TreeError> {
        let mut filled = 0;
        while filled < buffer.len() {
            let room = &mut buffer[filled..];
            if self.given < self.out.len() {
                let piece = &self.out[self.given..];
                let n = piece.len().min(room.len());
                room[..n].copy_from_slice(&piece[..n]);
                self.given += n;
                filled += n;
                continue;
            }
            self.out.clear();
            self.given = 0;
            if let Some(open) = &mut self.open {
                if open.left > 0 {
                    let most = usize::try_from(open.left).unwrap_or(usize::MAX);
                    let most = most.min(room.len());
                    let n = open
                        .file
                        .read(&mut room[..most])
                        .map_err(failed("read", &open.path))?;
                    if n == 0 {
                        let path = text(&open.path);
                        return Err(TreeError::Shrank { path });
                    }
                    open.left -= n as u64;
                    self.done.bytes += n as u64;
                    filled += n;
                    continue;
                }
                zeroes(&mut self.out, open.padding);
                self.done.files += 1;
                self.open = None;
                continue;
            }
            if self.over {
                break;
            }
            match self.walk.next()? {
                Some(found) => self.begin(found)?,
                None => {
                    zeroes(&mut self.out, 2 * BLOCK as u64);
                    self.over = true;
                }
            }
        }
        Ok(filled)
    }

    fn begin(&mut self, found: Found) -> Result<(), TreeError> {
        let Found {
            mut path,
            stat,
            is_dir,
        } = found;
        if is_dir {
            path.push(b'/');
            self.header(&path, EntryType::Directory, 0, &stat);
            return Ok(());
        }
        let opened = match self.walk.directory() {
            Some(dir) => open(dir, &path)?,
            None => None,
        };
        // Removed, or replaced by something else, since it was listed: as if it had been before.
        let Some((file, stat)) = opened else {
            return Ok(());
        };
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        self.header(&path, EntryType::Regular, size, &stat);
        self.open = Some(Open {
            file,
            path,
            left: size,
            padding: padding(size),
        });
        Ok(())
    }

    fn header(&mut self, path: &[u8], kind: EntryType, size: u64, stat: &rustix::fs::Stat) {
        if path.len() > SHORT_NAME {
            let mut long = Header::new_gnu();
            long.set_entry_type(EntryType::GNULongName);
            put_name(&mut long, b"././@LongLink");
            long.set_mode(0o644);
            let with_end = path.len() as u64 + 1;
            long.set_size(with_end);
            long.set_cksum();
            self.out.extend_from_slice(long.as_bytes());
            self.out.extend_from_slice(path);
            zeroes(&mut self.out, 1 + padding(with_end));
        }
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        put_name(&mut header, &path[..path.len().min(SHORT_NAME)]);
        #[allow(
            clippy::allow_attributes,
            clippy::useless_conversion,
            clippy::unnecessary_cast,
            reason = "their types differ between systems"
        )]
        let (mode, mtime) = (u32::from(stat.st_mode) & 0o777, stat.st_mtime as i64);
        header.set_mode(mode);
        header.set_mtime(u64::try_from(mtime).unwrap_or(0));
        header.set_size(size);
        header.set_cksum();
        self.out.extend_from_slice(header.as_bytes());
    }
}

fn put_name(header: &mut Header, name: &[u8]) {
    // The name is the header's first field; `set_path` takes no name that isn't UTF-8 everywhere.
    header.as_mut_bytes()[..name.len()].copy_from_slice(name);
}

fn zeroes(out: &mut Vec<u8>, count: u64) {
    // At most a few blocks.
    out.resize(out.len() + usize::try_from(count).unwrap_or(0), 0);
}

#[cfg(test)]
mod tests;
