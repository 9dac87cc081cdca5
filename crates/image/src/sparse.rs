//! Copying a file without its holes.

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const BUFFER: usize = 1 << 20;
/// What is left as a hole when it is all zeros.
const CHUNK: usize = 4096;

/// Copies the data of `from` to the same places of `to`, an empty file, and makes it as long. Holes
/// stay holes; where the filesystem can't tell them, zeros become some.
pub(crate) fn copy_sparse(from: &File, to: &File) -> io::Result<()> {
    let length = from.metadata()?.len();
    to.set_len(length)?;
    let mut copier = Copier {
        from,
        to,
        by_kernel: cfg!(target_os = "linux"),
        buffer: Vec::new(),
    };
    let mut at = 0;
    while at < length {
        let start = match seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return copier.copy(at, length),
            Err(e) => return Err(e.into()),
        };
        let end = seek(from, SeekFrom::Hole(start))?;
        copier.copy(start, end)?;
        at = end;
    }
    Ok(())
}

struct Copier<'a> {
    from: &'a File,
    to: &'a File,
    /// Whether the kernel copies between these two by itself.
    by_kernel: bool,
    buffer: Vec<u8>,
}

impl Copier<'_> {
    /// Copies one range.
    fn copy(&mut self, start: u64, end: u64) -> io::Result<()> {
        let mut at = start;
        while at < end {
            let by_kernel = if self.by_kernel {
                copy_range(self.from, self.to, at, end - at)?
            } else {
                None
            };
            self.by_kernel = by_kernel.is_some();
            let copied = match by_kernel {
                Some(copied) => copied,
                None => self.copy_chunk(at, end - at)?,
            };
            // The file was cut meanwhile; what is missing reads as zeros, as a hole does.
            if copied == 0 {
                break;
            }
            at += copied;
        }
        Ok(())
    }

    fn copy_chunk(&mut self, at: u64, length: u64) -> io::Result<u64> {
        let want = usize::try_from(length).unwrap_or(BUFFER).min(BUFFER);
        self.buffer.resize(want, 0);
        let n = self.from.read_at(&mut self.buffer, at)?;
        let mut offset = at;
        for chunk in self.buffer[..n].chunks(CHUNK) {
            if chunk.iter().any(|b| *b != 0) {
                self.to.write_all_at(chunk, offset)?;
            }
            offset += chunk.len() as u64;
        }
        Ok(n as u64)
    }
}

/// Has the kernel copy up to `length` bytes at `at`; `None` when it does not do that between these
/// two files.
#[cfg(target_os = "linux")]
fn copy_range(from: &File, to: &File, at: u64, length: u64) -> io::Result<Option<u64>> {
    let (mut source, mut dest) = (at, at);
    let length = usize::try_from(length).unwrap_or(usize::MAX).min(1 << 30);
    match rustix::fs::copy_file_range(from, Some(&mut source), to, Some(&mut dest), length) {
        Ok(n) => Ok(Some(n as u64)),
        Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => Ok(None),
        Err(Errno::INTR) => copy_range(from, to, at, length as u64),
        Err(e) => Err(e.into()),
    }
}

#[cfg(not(target_os = "linux"))]
#[expect(clippy::unnecessary_wraps, reason = "as where the kernel does it")]
fn copy_range(_: &File, _: &File, _: u64, _: u64) -> io::Result<Option<u64>> {
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    /// A file with data at both ends and in the middle of 64 MiB.
    fn holey() -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 << 20).unwrap();
        for (at, len) in [(0, 5000), (30 << 20, 2 << 20), ((64 << 20) - 3, 3)] {
            file.write_all_at(&vec![9; len], at).unwrap();
        }
        file
    }

    fn content(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    fn check(to: &File, from: &File) {
        assert!(content(to) == content(from));
        assert!(to.metadata().unwrap().blocks() * 512 < 8 << 20);
    }

    #[test]
    fn data_is_copied_and_holes_are_not() {
        let (from, to) = (holey(), tempfile::tempfile().unwrap());
        copy_sparse(&from, &to).unwrap();
        check(&to, &from);
    }

    #[test]
    fn without_help_of_the_kernel_zeros_become_holes() {
        let (from, to) = (holey(), tempfile::tempfile().unwrap());
        let length = from.metadata().unwrap().len();
        to.set_len(length).unwrap();
        let mut copier = Copier {
            from: &from,
            to: &to,
            by_kernel: false,
            buffer: Vec::new(),
        };
        copier.copy(0, length).unwrap();
        check(&to, &from);
    }
}
