//! Files that appear under their names complete or not at all.

use crate::ImageError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// How the names of unfinished files end.
const SUFFIX: &str = ".slicer-part";
/// More than any note is long, bytes.
const MAX_NOTE: u64 = 64 << 10;

/// An unfinished file beside the place where it will be. Dropping it removes it.
pub(crate) struct Partial {
    file: NamedTempFile<File>,
    dest: PathBuf,
}

impl Partial {
    /// Creates an empty one, readable and writable by its owner only.
    pub(crate) fn create(dest: &Path) -> Result<Self, ImageError> {
        Self::create_with(dest, "create", |path| {
            File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(path)
        })
    }

    /// Like [`Partial::create`], with the file made by `make`, which must not replace one.
    pub(crate) fn create_with(
        dest: &Path,
        action: &'static str,
        make: impl FnMut(&Path) -> io::Result<File>,
    ) -> Result<Self, ImageError> {
        let name = dest.file_name().unwrap_or_default().to_string_lossy();
        let file = tempfile::Builder::new()
            .prefix(&format!(".{name}."))
            .suffix(SUFFIX)
            .make_in(directory(dest), make)
            .map_err(ImageError::io(action, dest))?;
        Ok(Self {
            file,
            dest: dest.to_owned(),
        })
    }

    pub(crate) fn file(&self) -> &File {
        self.file.as_file()
    }

    pub(crate) fn path(&self) -> &Path {
        self.file.path()
    }

    /// Writes it to the disk and gives it its name, in the place of what had it before.
    pub(crate) fn finish(self) -> Result<(), ImageError> {
        self.file()
            .sync_all()
            .map_err(ImageError::io("write", self.path()))?;
        let dir = directory(&self.dest).to_owned();
        self.rename()?;
        File::open(&dir)
            .and_then(|d| d.sync_all())
            .map_err(ImageError::io("write", &dir))
    }

    /// Gives it its name without waiting for the disk: after a crash of the host the file may be
    /// there without its content.
    pub(crate) fn rename(self) -> Result<(), ImageError> {
        let dest = self.dest;
        self.file
            .persist(&dest)
            .map(drop)
            .map_err(|e| ImageError::io("create", &dest)(e.error))
    }
}

/// Writes a whole file through a [`Partial`].
pub(crate) fn write_file(dest: &Path, bytes: &[u8]) -> Result<(), ImageError> {
    let partial = Partial::create(dest)?;
    let mut file = partial.file();
    file.write_all(bytes)
        .map_err(ImageError::io("write", dest))?;
    partial.finish()
}

/// Writes a small JSON document that [`read_note`] understands.
pub(crate) fn write_note(dest: &Path, note: &impl Serialize) -> Result<(), ImageError> {
    let text =
        serde_json::to_vec(note).map_err(|e| ImageError::io("write", dest)(io::Error::other(e)))?;
    write_file(dest, &text)
}

/// Reads a note. One that is missing, unreadable or not understood is none: what it tells of is
/// then made anew.
pub(crate) fn read_note<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let file = File::open(path).ok()?;
    serde_json::from_reader(io::Read::take(file, MAX_NOTE)).ok()
}

/// Removes the unfinished files that a process that died left in `dir`. Only for a directory
/// nobody else is building in, as when a daemon starts.
pub fn remove_unfinished(dir: &Path) -> Result<(), ImageError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(ImageError::io("read", dir)(e)),
    };
    for entry in entries {
        let entry = entry.map_err(ImageError::io("read", dir))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with('.') && name.ends_with(SUFFIX) {
            let path = entry.path();
            fs::remove_file(&path).map_err(ImageError::io("remove", &path))?;
        }
    }
    Ok(())
}

/// The directory a file is in.
fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("f");
        drop(Partial::create(&dest).unwrap());
        assert!(names(dir.path()).is_empty());
        write_file(&dest, b"one").unwrap();
        let partial = Partial::create(&dest).unwrap();
        partial.file().write_all(b"two").unwrap();
        assert_eq!(fs::read(&dest).unwrap(), b"one");
        partial.finish().unwrap();
        assert_eq!(fs::read(&dest).unwrap(), b"two");
        assert_eq!(names(dir.path()), ["f"]);
    }

    #[test]
    fn what_a_dead_process_left_is_removed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        for name in [".a.x1.slicer-part", "kept", ".kept"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        remove_unfinished(dir.path()).unwrap();
        assert_eq!(names(dir.path()), [".kept", "kept"]);
        remove_unfinished(&dir.path().join("absent")).unwrap();
    }

    #[test]
    fn a_note_that_makes_no_sense_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("n");
        assert_eq!(read_note::<Vec<u8>>(&path), None);
        write_note(&path, &[1u8, 2]).unwrap();
        assert_eq!(read_note::<Vec<u8>>(&path), Some(vec![1, 2]));
        fs::write(&path, "[1,").unwrap();
        assert_eq!(read_note::<Vec<u8>>(&path), None);
    }
}
