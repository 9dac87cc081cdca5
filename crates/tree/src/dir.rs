//! Directories by descriptor.

use crate::error::{TreeError, failed, text};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// How deep directories may be nested. Everything that walks a tree holds one descriptor a level
/// at the most.
pub(crate) const MAX_DEPTH: usize = 256;

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

/// Whom something new shall belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

impl Owner {
    /// Gives away what a descriptor stands for.
    pub(crate) fn give(self, fd: impl AsFd) -> rustix::io::Result<()> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        rustix::fs::fchown(fd, Some(uid), Some(gid))
    }
}

/// A directory that was opened. Names in it are looked up from here, whatever happens to the path
/// it was found by.
#[derive(Debug)]
pub struct Dir(OwnedFd);

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Dir {
    /// Opens a directory by its path, following symlinks.
    ///
    /// # Errors
    /// As open(2).
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(rustix::fs::open(path, DIRECTORY, Mode::empty())?))
    }

    /// Opens the directory `name`, following a symlink.
    ///
    /// # Errors
    /// As openat(2).
    pub fn enter(&self, name: &[u8]) -> io::Result<Self> {
        let fd = rustix::fs::openat(&self.0, name, DIRECTORY, Mode::empty())?;
        Ok(Self(fd))
    }

    /// Opens the directory `name`, which must not be a symlink.
    ///
    /// # Errors
    /// As openat(2); `ENOTDIR` or `ELOOP` for a symlink.
    pub fn child(&self, name: &[u8]) -> io::Result<Self> {
        self.child_raw(name).map_err(Into::into)
    }

    pub(crate) fn child_raw(&self, name: &[u8]) -> rustix::io::Result<Self> {
        let flags = DIRECTORY | OFlags::NOFOLLOW;
        rustix::fs::openat(&self.0, name, flags, Mode::empty()).map(Self)
    }

    /// Makes the directory `name` for `owner` with exactly this mode; `None` when there is
    /// something of that name already, perhaps made by somebody else just now.
    ///
    /// # Errors
    /// As mkdirat(2), fchown(2) and fchmod(2).
    pub fn make(&self, name: &[u8], mode: u32, owner: Option<Owner>) -> io::Result<Option<Self>> {
        match rustix::fs::mkdirat(&self.0, name, Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Ok(None),
            Err(e) => return Err(e.into()),
        }
        let dir = self.child_raw(name)?;
        if let Some(owner) = owner {
            owner.give(&dir)?;
        }
        if mode != 0o700 {
            rustix::fs::fchmod(&dir, bits(mode))?;
        }
        Ok(Some(dir))
    }

    /// Opens the directory at a clean relative path, following no symlink; empty is itself.
    pub(crate) fn descend(&self, path: &[u8]) -> Result<Self, TreeError> {
        let mut at: Option<Self> = None;
        for name in path.split(|b| *b == b'/').filter(|n| !n.is_empty()) {
            let next = at.as_ref().unwrap_or(self).child_raw(name);
            at = Some(next.map_err(not_directory("open", path))?);
        }
        match at {
            Some(dir) => Ok(dir),
            None => self.again().map_err(failed("open", path)),
        }
    }

    /// Another descriptor of it.
    fn again(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// What `name` is; `None` when there is nothing. `follow` looks where a symlink leads.
    ///
    /// # Errors
    /// As fstatat(2).
    pub fn stat(&self, name: &[u8], follow: bool) -> io::Result<Option<Stat>> {
        let flags = if follow {
            AtFlags::empty()
        } else {
            AtFlags::SYMLINK_NOFOLLOW
        };
        match rustix::fs::statat(&self.0, name, flags) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Opens the regular file `name` for reading; `None` for anything else, symlinks included.
    /// Never waits for a pipe's other end.
    ///
    /// # Errors
    /// As openat(2).
    pub fn open_file(&self, name: &[u8]) -> io::Result<Option<(File, Stat)>> {
        let flags =
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let fd = match rustix::fs::openat(&self.0, name, flags, Mode::empty()) {
            // A symlink, a socket or a device without a driver.
            Err(Errno::LOOP | Errno::NXIO | Errno::NODEV) => return Ok(None),
            other => other?,
        };
        let stat = rustix::fs::fstat(&fd)?;
        let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        Ok(regular.then(|| (File::from(fd), stat)))
    }

    /// Renames within the directory, over whatever the new name stood for.
    ///
    /// # Errors
    /// As renameat(2).
    pub fn rename(&self, from: &[u8], to: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.0, from, &self.0, to)?)
    }

    /// Removes the file `name`.
    ///
    /// # Errors
    /// As unlinkat(2).
    pub fn remove_file(&self, name: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.0, name, AtFlags::empty())?)
    }

    /// Removes `name` and, if it is a directory, all that is in it. Follows no symlink. Something
    /// that isn't there is removed already.
    ///
    /// # Errors
    /// As unlinkat(2); `ELOOP` for a tree deeper than any this crate makes.
    pub fn remove_all(&self, name: &[u8]) -> io::Result<()> {
        self.remove_levels(name, MAX_DEPTH + 8)
            .or_else(|e| match e {
                Errno::NOENT => Ok(()),
                e => Err(e.into()),
            })
    }

    fn remove_levels(&self, name: &[u8], levels: usize) -> rustix::io::Result<()> {
        // Linux says EISDIR and POSIX EPERM of a directory that is to be unlinked.
        match rustix::fs::unlinkat(&self.0, name, AtFlags::empty()) {
            Err(Errno::ISDIR | Errno::PERM) => {}
            done => return done,
        }
        if levels == 0 {
            return Err(Errno::LOOP);
        }
        let dir = self.child_raw(name)?;
        // One that is ours may have been made unwritable; where it isn't ours, so be it.
        let _ = rustix::fs::fchmod(&dir, Mode::RWXU);
        loop {
            let mut removed = false;
            for entry in rustix::fs::Dir::read_from(&dir)? {
                let entry = entry?;
                let name = entry.file_name().to_bytes();
                if !matches!(name, b"." | b"..") {
                    match dir.remove_levels(name, levels - 1) {
                        Ok(()) | Err(Errno::NOENT) => removed = true,
                        Err(e) => return Err(e),
                    }
                }
            }
            match rustix::fs::unlinkat(&self.0, name, AtFlags::REMOVEDIR) {
                // Some file systems leave names out of a listing that is shortened meanwhile.
                Err(Errno::NOTEMPTY) if removed => {}
                done => return done,
            }
        }
    }

    /// Bytes an ordinary user can still write to its file system.
    ///
    /// # Errors
    /// As fstatvfs(3).
    pub fn free_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::fstatvfs(&self.0)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    pub(crate) fn set_mode(&self, mode: u32) -> rustix::io::Result<()> {
        rustix::fs::fchmod(&self.0, bits(mode))
    }

    pub(crate) fn set_mtime(&self, mtime: Timespec) -> rustix::io::Result<()> {
        set_mtime(&self.0, mtime)
    }
}

/// Sets when something was last changed, and nothing else.
pub(crate) fn set_mtime(fd: impl AsFd, mtime: Timespec) -> rustix::io::Result<()> {
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_OMIT,
        },
        last_modification: mtime,
    };
    rustix::fs::futimens(fd, &times)
}

/// Mode bits as the system has them.
pub(crate) fn bits(mode: u32) -> Mode {
    #[allow(
        clippy::allow_attributes,
        clippy::cast_possible_truncation,
        clippy::useless_conversion,
        reason = "it has 16 bits on macOS and 32 on Linux"
    )]
    Mode::from_raw_mode((mode & 0o7777) as rustix::fs::RawMode)
}

/// Says of an error on the way through directories what it means.
pub(crate) fn not_directory(action: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> TreeError {
    move |e| match e {
        Errno::NOTDIR | Errno::LOOP => TreeError::NotDirectory { path: text(path) },
        e => failed(action, path)(e),
    }
}

/// A name nobody else has: of something that isn't complete yet.
pub(crate) fn temporary_name() -> io::Result<Vec<u8>> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    Ok(format!(".slicer-{:016x}.part", u64::from_ne_bytes(random)).into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn removing_follows_no_symlink() {
        let tmp = tempfile::tempdir().unwrap();
        let root = Dir::open(tmp.path()).unwrap();
        let at = |path: &str| tmp.path().join(path);
        fs::create_dir_all(at("tree/a/b")).unwrap();
        fs::create_dir(at("kept")).unwrap();
        fs::write(at("kept/file"), "x").unwrap();
        fs::write(at("tree/a/file"), "x").unwrap();
        symlink(at("kept"), at("tree/a/link")).unwrap();
        symlink(at("kept"), at("tree/link")).unwrap();
        fs::set_permissions(at("tree/a"), PermissionsExt::from_mode(0o500)).unwrap();
        root.remove_all(b"tree").unwrap();
        assert!(!at("tree").exists());
        assert!(at("kept/file").exists());
        root.remove_all(b"tree").unwrap();
        symlink(at("kept"), at("link")).unwrap();
        root.remove_all(b"link").unwrap();
        assert!(at("kept/file").exists() && !at("link").exists());
    }

    #[test]
    fn symlinks_are_not_descended() {
        let tmp = tempfile::tempdir().unwrap();
        let root = Dir::open(tmp.path()).unwrap();
        fs::create_dir_all(tmp.path().join("a/b")).unwrap();
        symlink("a", tmp.path().join("link")).unwrap();
        assert!(root.descend(b"a/b").is_ok());
        assert!(root.descend(b"").is_ok());
        for path in [&b"link/b"[..], b"link"] {
            assert!(matches!(
                root.descend(path),
                Err(TreeError::NotDirectory { .. })
            ));
        }
        assert!(root.enter(b"link").is_ok());
    }

    #[test]
    fn only_regular_files_are_opened() {
        let tmp = tempfile::tempdir().unwrap();
        let root = Dir::open(tmp.path()).unwrap();
        fs::write(tmp.path().join("file"), "x").unwrap();
        symlink("file", tmp.path().join("link")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(tmp.path().join("sock")).unwrap();
        #[cfg(target_os = "linux")]
        rustix::fs::mkfifoat(&root, "fifo", Mode::RWXU).unwrap();
        assert!(root.open_file(b"file").unwrap().is_some());
        for name in [
            &b"link"[..],
            b"sock",
            #[cfg(target_os = "linux")]
            b"fifo",
        ] {
            assert!(root.open_file(name).unwrap().is_none(), "{name:?}");
        }
        assert!(root.open_file(b"none").is_err());
    }
}
