//! What inotify says about files and directories, and those below them (inotify(7)).

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use slicer_api::WatchKind;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Directories one tree may have: each costs the kernel about a KiB.
const MAX_WATCHES: usize = 32 << 10;
/// Changes that are read at once.
pub(super) const BATCH: usize = 4096;
/// The longest event there is has a name of 255 bytes.
const BUFFER: usize = 16 << 10;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Change {
    pub(super) kind: WatchKind,
    pub(super) path: PathBuf,
    pub(super) is_dir: bool,
}

/// What was read.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) changes: Vec<Change>,
    /// Why there may be more than these.
    pub(super) lost: Option<String>,
    /// Whether there is nothing more to be read now.
    pub(super) drained: bool,
}

#[derive(Debug)]
struct Watched {
    path: PathBuf,
    is_root: bool,
    is_dir: bool,
}

/// Everything one client watches.
#[derive(Debug)]
pub(super) struct Tree {
    events: Arc<OwnedFd>,
    watched: HashMap<i32, Watched>,
    roots: Vec<PathBuf>,
    recursive: bool,
}

impl Tree {
    /// Watches these; the error names the one that can't be. Blocks.
    pub(super) fn new(roots: Vec<PathBuf>, recursive: bool) -> Result<Self, (PathBuf, io::Error)> {
        let first = roots.first().cloned().unwrap_or_default();
        let events = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
            .map_err(|e| (first, e.into()))?;
        let mut tree = Self {
            events: Arc::new(events),
            watched: HashMap::new(),
            roots,
            recursive,
        };
        for root in tree.roots.clone() {
            tree.arm(&root, true, &mut Vec::new())
                .map_err(|e| (root, e))?;
        }
        Ok(tree)
    }

    /// By what is known that there is something to read.
    pub(super) fn events(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.events)
    }

    /// Whether all that was watched is gone.
    pub(super) fn is_empty(&self) -> bool {
        self.watched.is_empty()
    }

    /// The first path that is watched.
    pub(super) fn root(&self) -> &Path {
        self.roots.first().map_or(Path::new("/"), PathBuf::as_path)
    }

    fn add(&mut self, path: &Path, is_root: bool, is_dir: bool) -> io::Result<()> {
        if self.watched.len() >= MAX_WATCHES {
            return Err(Errno::NOSPC.into());
        }
        let mut flags = WatchFlags::ATTRIB
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MODIFY
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::EXCL_UNLINK;
        if is_root {
            flags |= WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
        } else {
            // What was a directory a moment ago may be a link by now.
            flags |= WatchFlags::ONLYDIR | WatchFlags::DONT_FOLLOW;
        }
        let wd = inotify::add_watch(&self.events, path, flags)?;
        let is_root = is_root || self.watched.get(&wd).is_some_and(|w| w.is_root);
        self.watched.insert(
            wd,
            Watched {
                path: path.to_owned(),
                is_root,
                is_dir,
            },
        );
        Ok(())
    }

    /// Watches a path and, if they are wanted, all directories below it; what is below it is put
    /// into `found`. What vanishes meanwhile is no error.
    fn arm(&mut self, top: &Path, is_root: bool, found: &mut Vec<Change>) -> io::Result<()> {
        let is_dir = fs::metadata(top)?.is_dir();
        self.add(top, is_root, is_dir)?;
        if !is_dir || !self.recursive {
            return Ok(());
        }
        let mut dirs = vec![top.to_owned()];
        while let Some(dir) = dirs.pop() {
            let Ok(entries) = fs::read_dir(&dir) else {
                continue;
            };
            for entry in entries.flatten() {
                let path = entry.path();
                // A link to a directory is not followed: it could lead anywhere, and in a circle.
                let is_dir = entry.file_type().is_ok_and(|t| t.is_dir());
                if found.len() < BATCH {
                    found.push(Change {
                        kind: WatchKind::Create,
                        path: path.clone(),
                        is_dir,
                    });
                }
                if is_dir {
                    match self.add(&path, false, true) {
                        Ok(()) => dirs.push(path),
                        Err(e) if is_passing(&e) => {}
                        Err(e) => return Err(e),
                    }
                }
            }
        }
        Ok(())
    }

    /// Forgets what was moved away, with all below it.
    fn disarm(&mut self, top: &Path) {
        let events = &self.events;
        self.watched.retain(|wd, watched| {
            let gone = !watched.is_root && watched.path.starts_with(top);
            if gone {
                let _ = inotify::remove_watch(events, *wd);
            }
            !gone
        });
    }

    /// Reads what there is, at most about [`BATCH`] changes. Blocks for file work, never for
    /// events.
    pub(super) fn read(&mut self) -> io::Result<Batch> {
        let mut batch = Batch::default();
        let mut overflow = false;
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        let events = Arc::clone(&self.events);
        let mut reader = inotify::Reader::new(&*events, &mut buffer);
        // Events that were read with the last one must be taken, too.
        while batch.changes.len() < BATCH || !reader.is_buffer_empty() {
            match reader.next() {
                Ok(event) => {
                    let flags = event.events();
                    if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
                        overflow = true;
                        continue;
                    }
                    let name = event.file_name().map(|n| OsStr::from_bytes(n.to_bytes()));
                    if let Err(e) = self.take(event.wd(), flags, name, &mut batch.changes) {
                        batch.lost = Some(format!("not all directories can be watched: {e}"));
                    }
                }
                Err(Errno::AGAIN) => {
                    batch.drained = true;
                    break;
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        if overflow {
            batch.lost = Some("too much happened at once: look at everything again".to_owned());
            for root in self.roots.clone() {
                // New directories may be among what was lost.
                let _ = self.arm(&root, true, &mut Vec::new());
            }
        }
        Ok(batch)
    }

    fn take(
        &mut self,
        wd: i32,
        flags: ReadFlags,
        name: Option<&OsStr>,
        changes: &mut Vec<Change>,
    ) -> io::Result<()> {
        if flags.contains(ReadFlags::IGNORED) {
            self.watched.remove(&wd);
            return Ok(());
        }
        let Some(watched) = self.watched.get(&wd) else {
            return Ok(());
        };
        // Without a name it is about what is watched itself, which for all but the roots is told
        // by the directory it is in.
        if name.is_none() && !watched.is_root {
            return Ok(());
        }
        let path = name.map_or_else(|| watched.path.clone(), |n| watched.path.join(n));
        let is_dir = flags.contains(ReadFlags::ISDIR) || (name.is_none() && watched.is_dir);
        for (flag, kind) in [
            (ReadFlags::CREATE, WatchKind::Create),
            (ReadFlags::MOVED_TO, WatchKind::Create),
            (ReadFlags::MODIFY, WatchKind::Write),
            (ReadFlags::ATTRIB, WatchKind::Chmod),
            (ReadFlags::DELETE, WatchKind::Remove),
            (ReadFlags::DELETE_SELF, WatchKind::Remove),
            (ReadFlags::MOVED_FROM, WatchKind::Rename),
            (ReadFlags::MOVE_SELF, WatchKind::Rename),
        ] {
            if flags.contains(flag) {
                changes.push(Change {
                    kind,
                    path: path.clone(),
                    is_dir,
                });
            }
        }
        if name.is_some() && is_dir && self.recursive {
            if flags.contains(ReadFlags::MOVED_FROM) {
                self.disarm(&path);
            }
            if flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO) {
                match self.arm(&path, false, changes) {
                    Err(e) if !is_passing(&e) => return Err(e),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// Whether an error only says that somebody was faster.
fn is_passing(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    ) || e.raw_os_error() == Some(Errno::LOOP.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(tree: &mut Tree) -> Vec<(WatchKind, String)> {
        let root = tree.root().to_owned();
        let batch = tree.read().unwrap();
        assert!(batch.drained && batch.lost.is_none());
        let name = |c: &Change| c.path.strip_prefix(&root).unwrap().display().to_string();
        batch.changes.iter().map(|c| (c.kind, name(c))).collect()
    }

    #[test]
    fn new_directories_are_watched_with_what_is_in_them() {
        use WatchKind::{Create, Remove, Rename, Write};
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path();
        let mut tree = Tree::new(vec![dir.to_owned()], true).unwrap();
        fs::create_dir_all(dir.join("a/b")).unwrap();
        fs::write(dir.join("a/b/early"), "1").unwrap();
        let changes = read(&mut tree);
        for path in ["a", "a/b", "a/b/early"] {
            assert!(changes.contains(&(Create, path.to_owned())), "{changes:?}");
        }
        fs::write(dir.join("a/b/late"), "1").unwrap();
        let changes = read(&mut tree);
        assert_eq!(
            changes,
            [(Create, "a/b/late".into()), (Write, "a/b/late".into())]
        );
        // What moves is watched under its new name.
        fs::rename(dir.join("a"), dir.join("c")).unwrap();
        let changes = read(&mut tree);
        assert_eq!(changes[0], (Rename, "a".into()));
        assert!(
            changes.contains(&(Create, "c/b/late".into())),
            "{changes:?}"
        );
        fs::remove_file(dir.join("c/b/late")).unwrap();
        assert_eq!(read(&mut tree), [(Remove, "c/b/late".into())]);
        // A link is not followed.
        let other = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(other.path(), dir.join("link")).unwrap();
        read(&mut tree);
        fs::write(other.path().join("x"), "").unwrap();
        assert_eq!(read(&mut tree), []);
        fs::remove_dir_all(dir).unwrap();
        let changes = read(&mut tree);
        assert_eq!(changes.last(), Some(&(Remove, String::new())));
        assert!(tree.is_empty());
    }
}
