//! Files that appear under their name complete or not at all.

#[cfg(target_os = "linux")]
use crate::buffer::ALIGN;
use crate::dir::{Dir, Owner, bits, set_mtime, temporary_name};
use crate::error::{TreeError, failed};
use rustix::fs::{Mode, OFlags, Timespec};
use std::borrow::Borrow;
use std::fs::File;
use std::io::{self, Write};

/// Bytes of a file that may go through the system's cache before the rest is kept out of it.
const CACHED: u64 = 8 << 20;

/// A file on its way to a name in a directory. Dropped before [`NewFile::place`], it is gone.
#[derive(Debug)]
pub struct NewFile<D: Borrow<Dir> = Dir> {
    dir: D,
    file: File,
    temporary: Vec<u8>,
    name: Vec<u8>,
    placed: bool,
    written: u64,
    past_cache: bool,
}

impl<D: Borrow<Dir>> NewFile<D> {
    /// Begins the file `name` in `dir`, under another name.
    ///
    /// # Errors
    /// When it can't be created.
    pub fn create(dir: D, name: &[u8]) -> Result<Self, TreeError> {
        let temporary = temporary_name().map_err(failed("name", name))?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(dir.borrow(), &*temporary, flags, Mode::RUSR | Mode::WUSR)
            .map_err(failed("create", name))?;
        Ok(Self {
            dir,
            file: fd.into(),
            temporary,
            name: name.to_owned(),
            placed: false,
            written: 0,
            past_cache: false,
        })
    }

    /// Has it, once it is large, written past the system's cache, as far as the file system and
    /// what is written allow. That is for a system with little memory, and one that is slow at
    /// managing it, as emulated guests are.
    #[must_use]
    pub fn past_cache(mut self) -> Self {
        self.past_cache = true;
        self
    }

    /// Adds bytes at its end.
    ///
    /// # Errors
    /// As write(2).
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), TreeError> {
        let done = (|| {
            if self.past_cache && self.written >= CACHED {
                bytes = self.write_past_cache(bytes)?;
            }
            self.file.write_all(bytes)?;
            self.written += bytes.len() as u64;
            Ok::<_, io::Error>(())
        })();
        done.map_err(failed("write", &self.name))
    }

    /// Writes what can be written past the cache, whole blocks in a place of whole blocks, and
    /// gives back the rest.
    #[cfg(target_os = "linux")]
    fn write_past_cache<'b>(&mut self, mut bytes: &'b [u8]) -> io::Result<&'b [u8]> {
        use rustix::fs::fcntl_setfl;
        use rustix::io::Errno;

        let whole =
            self.written.is_multiple_of(ALIGN as u64) && bytes.as_ptr().align_offset(ALIGN) == 0;
        if !whole || bytes.len() < ALIGN {
            return Ok(bytes);
        }
        if fcntl_setfl(&self.file, OFlags::DIRECT).is_err() {
            self.past_cache = false;
            return Ok(bytes);
        }
        while bytes.len() >= ALIGN {
            let blocks = bytes.len() - bytes.len() % ALIGN;
            match rustix::io::write(&self.file, &bytes[..blocks]) {
                Ok(n) => {
                    self.written += n as u64;
                    bytes = &bytes[n..];
                    if !n.is_multiple_of(ALIGN) {
                        break;
                    }
                }
                Err(Errno::INTR) => {}
                // Its blocks are larger than ours, or it has none.
                Err(Errno::INVAL) => {
                    self.past_cache = false;
                    break;
                }
                Err(e) => return Err(e.into()),
            }
        }
        fcntl_setfl(&self.file, OFlags::empty())?;
        Ok(bytes)
    }

    #[cfg(not(target_os = "linux"))]
    #[expect(clippy::unnecessary_wraps, reason = "as where it can be done")]
    fn write_past_cache<'b>(&mut self, bytes: &'b [u8]) -> io::Result<&'b [u8]> {
        self.past_cache = false;
        Ok(bytes)
    }

    /// Gives the file its owner, mode and time, and then its name.
    ///
    /// # Errors
    /// As fchown(2), fchmod(2), futimens(3) and renameat(2).
    pub fn place(
        mut self,
        owner: Option<Owner>,
        mode: u32,
        mtime: Option<Timespec>,
    ) -> Result<(), TreeError> {
        if let Some(owner) = owner {
            owner
                .give(&self.file)
                .map_err(failed("give away", &self.name))?;
        }
        // After the owner, whose change takes setuid and setgid away.
        rustix::fs::fchmod(&self.file, bits(mode))
            .map_err(failed("set the mode of", &self.name))?;
        if let Some(mtime) = mtime {
            set_mtime(&self.file, mtime).map_err(failed("set the time of", &self.name))?;
        }
        self.dir
            .borrow()
            .rename(&self.temporary, &self.name)
            .map_err(failed("replace", &self.name))?;
        self.placed = true;
        Ok(())
    }
}

impl<D: Borrow<Dir>> Drop for NewFile<D> {
    fn drop(&mut self) {
        if !self.placed {
            // Whoever removed it before did what was to be done.
            let _ = self.dir.borrow().remove_file(&self.temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Buffers;
    use std::path::Path;

    #[test]
    fn what_goes_past_the_cache_is_all_there() {
        // One of them on a disk, one most likely not.
        let dirs = [
            tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap(),
            tempfile::tempdir_in(if Path::new("/dev/shm").is_dir() {
                Path::new("/dev/shm").to_owned()
            } else {
                std::env::temp_dir()
            })
            .unwrap(),
        ];
        for dir in dirs {
            let open = Dir::open(dir.path()).unwrap();
            let mut file = NewFile::create(open, b"large").unwrap().past_cache();
            let mut expected = Vec::new();
            let buffers = Buffers::new(1 << 20);
            let mut byte = 0u8;
            // Whole buffers, one that ends within a block, and what comes behind it.
            for size in [1 << 20; 10].into_iter().chain([700_001, 1 << 20, 5]) {
                let mut buffer = buffers.take();
                while buffer.as_ref().len() < size {
                    let most = size - buffer.as_ref().len();
                    byte = byte.wrapping_add(1);
                    buffer.append(&[byte; 999][..most.min(999)]);
                }
                file.write(buffer.as_ref()).unwrap();
                expected.extend_from_slice(buffer.as_ref());
            }
            file.place(None, 0o600, None).unwrap();
            assert!(std::fs::read(dir.path().join("large")).unwrap() == expected);
        }
    }
}
