//! From tar to files, within one directory and nowhere else.

use crate::archive::{Archive, Event};
use crate::dir::{Dir, MAX_DEPTH, Owner, not_directory};
use crate::error::{TreeError, failed, text};
use crate::file::NewFile;
use crate::file_mode;
use crate::header::{Entry, Kind};
use crate::names::Names;
use rustix::fs::Timespec;
use slicer_api::Excludes;
use std::collections::HashMap;
use std::sync::Arc;

/// The mode of a directory that an archive doesn't list.
const UNLISTED: u32 = 0o755;
/// Directories are remembered until the end, when they get their modes and times: so many bytes
/// of names may be, at a cost of a hundred bytes for each besides.
const MAX_REMEMBERED: usize = 32 << 20;
const COST: usize = 100;

/// How a tree is extracted.
#[derive(Debug, Clone, Default)]
pub struct ExtractOptions {
    /// Whom everything shall belong to; without one, whoever extracts.
    pub owner: Option<Owner>,
    /// The mode of files; without one, the archive's.
    pub mode: Option<u32>,
    /// What is left out.
    pub exclude: Excludes,
}

/// What an extraction came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extracted {
    /// Files written.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Links, devices and other entries that are never made.
    pub skipped: u64,
}

/// A directory that was made here, and what it gets at the end.
#[derive(Debug, Clone, Copy)]
struct Made {
    mode: u32,
    mtime: Option<Timespec>,
}

/// The file that is being written.
#[derive(Debug)]
struct Open {
    file: NewFile<Arc<Dir>>,
    dir: Arc<Dir>,
    path: Vec<u8>,
    mode: u32,
    mtime: Option<Timespec>,
}

/// Makes the files and directories of an archive as its bytes come in.
///
/// Existing files are replaced, existing directories kept as they are. What is neither file nor
/// directory is left out.
#[derive(Debug)]
pub struct Extractor {
    root: Arc<Dir>,
    options: ExtractOptions,
    archive: Archive,
    open: Option<Open>,
    /// The directory of the last entry: the next is likely in it, too.
    last: Option<(Vec<u8>, Arc<Dir>)>,
    made: HashMap<Vec<u8>, Made>,
    remembered: usize,
    names: Names,
    done: Extracted,
}

impl Extractor {
    /// Extracts into `root`.
    #[must_use]
    pub fn new(root: Dir, options: ExtractOptions) -> Self {
        Self {
            root: Arc::new(root),
            options,
            archive: Archive::new(),
            open: None,
            last: None,
            made: HashMap::new(),
            remembered: 0,
            names: Names::default(),
            done: Extracted::default(),
        }
    }

    /// Takes the next bytes of the archive.
    ///
    /// # Errors
    /// On anything that is wrong with them, and when the system refuses. What was extracted
    /// before stays; nothing more should be fed.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), TreeError> {
        while let Some(event) = self.archive.next(&mut bytes)? {
            match event {
                Event::Entry(entry) => self.entry(entry)?,
                Event::Data(data) => {
                    if let Some(open) = &mut self.open {
                        open.file.write(data)?;
                        self.done.bytes += data.len() as u64;
                    }
                }
                Event::FileEnd => {
                    if let Some(open) = self.open.take() {
                        let dir = open.dir;
                        let name = name_of(&open.path);
                        self.names.before_file(&dir, name, &open.path)?;
                        open.file
                            .place(self.options.owner, open.mode, open.mtime)
                            .map_err(|e| match e {
                                // It knows its own name only.
                                TreeError::Io { action, source, .. } => TreeError::Io {
                                    action,
                                    path: text(&open.path),
                                    source,
                                },
                                e => e,
                            })?;
                        self.names.after_file(&dir, name, &open.path)?;
                        self.done.files += 1;
                    }
                }
            }
        }
        Ok(())
    }

    /// Ends the extraction: directories get their modes and times.
    ///
    /// # Errors
    /// When the archive isn't complete, or when the system refuses.
    pub fn finish(mut self) -> Result<Extracted, TreeError> {
        if !self.archive.may_end() {
            return Err(TreeError::CutOff);
        }
        self.last = None;
        let mut made: Vec<(Vec<u8>, Made)> = self.made.drain().collect();
        // What is within a directory comes before it: it may not be entered any more after.
        made.sort_unstable_by(|(a, _), (b, _)| b.cmp(a));
        for (path, made) in made {
            let dir = self.root.descend(&path)?;
            dir.set_mode(made.mode)
                .map_err(failed("set the mode of", &path))?;
            if let Some(mtime) = made.mtime {
                dir.set_mtime(mtime)
                    .map_err(failed("set the time of", &path))?;
            }
        }
        Ok(self.done)
    }

    fn entry(&mut self, entry: Entry) -> Result<(), TreeError> {
        if matches!(entry.kind, Kind::Other(_)) {
            self.done.skipped += 1;
            return Ok(());
        }
        if entry.name.is_empty() || self.options.exclude.excludes(&entry.name) {
            return Ok(());
        }
        if entry.name.split(|b| *b == b'/').count() > MAX_DEPTH {
            return Err(TreeError::TooLarge("its directories are nested too deep"));
        }
        if entry.kind == Kind::Directory {
            self.directory(&entry.name)?;
            if let Some(made) = self.made.get_mut(&entry.name) {
                made.mode = entry.mode & 0o777;
                made.mtime = entry.mtime;
            }
            return Ok(());
        }
        let name = name_of(&entry.name);
        let parent = &entry.name[..entry.name.len() - name.len()];
        let dir = self.directory(parent.strip_suffix(b"/").unwrap_or(parent))?;
        let file = NewFile::create(Arc::clone(&dir), name).map_err(|e| match e {
            TreeError::Io { action, source, .. } => TreeError::Io {
                action,
                path: text(&entry.name),
                source,
            },
            e => e,
        })?;
        self.open = Some(Open {
            file,
            dir,
            mode: self.options.mode.unwrap_or_else(|| file_mode(entry.mode)),
            mtime: entry.mtime,
            path: entry.name,
        });
        Ok(())
    }

    /// The directory at a clean path, which is made where it is missing.
    fn directory(&mut self, path: &[u8]) -> Result<Arc<Dir>, TreeError> {
        if path.is_empty() {
            return Ok(Arc::clone(&self.root));
        }
        if let Some((last, dir)) = &self.last
            && last == path
        {
            return Ok(Arc::clone(dir));
        }
        let mut at = Arc::clone(&self.root);
        let ends = path
            .iter()
            .enumerate()
            .filter(|(_, b)| **b == b'/')
            .map(|(end, _)| end)
            .chain([path.len()]);
        let mut from = 0;
        for end in ends {
            let (name, here) = (&path[from..end], &path[..end]);
            let dir = self.step(&at, name, here)?;
            self.names.directory(&at, name, here, &dir)?;
            at = Arc::new(dir);
            from = end + 1;
        }
        self.last = Some((path.to_vec(), Arc::clone(&at)));
        Ok(at)
    }

    /// The directory `name` in `at`, made if it is missing. `path` is where that is.
    fn step(&mut self, at: &Dir, name: &[u8], path: &[u8]) -> Result<Dir, TreeError> {
        match at.child_raw(name) {
            Err(rustix::io::Errno::NOENT) => {}
            other => return other.map_err(not_directory("open", path)),
        }
        self.remembered += path.len() + COST;
        if self.remembered > MAX_REMEMBERED {
            return Err(TreeError::TooLarge("it has too many directories"));
        }
        match at
            .make(name, 0o700, self.options.owner)
            .map_err(failed("create", path))?
        {
            Some(dir) => {
                let made = Made {
                    mode: UNLISTED,
                    mtime: None,
                };
                self.made.insert(path.to_vec(), made);
                Ok(dir)
            }
            // Somebody else made it just now.
            None => at.child_raw(name).map_err(not_directory("open", path)),
        }
    }
}

/// The last part of a clean path.
fn name_of(path: &[u8]) -> &[u8] {
    path.rsplit(|b| *b == b'/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests;
