//! Names that are one to the file system.
//!
//! To many a file system of a Mac, `Makefile` and `makefile` are one name, and so are two spellings of
//! an `é`. A tree that has both would lose one of them without a word. Which names are one is the file
//! system's business, so it is asked: a name that leads to what another name of the tree was made as.

use crate::dir::Dir;
use crate::error::{TreeError, failed, text};
use rustix::fs::{AtFlags, Stat, fstat, statat};
use rustix::io::Errno;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::fd::AsFd;

/// What of a tree is remembered at most: about 32 bytes each.
const MAX_NAMES: usize = 2_000_000;

/// The names of a tree, where the file system takes different ones for one.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// Whether it does; not known before the first name with ASCII's letters. Until then it may, for
    /// there are names that are two by the spelling of other letters.
    folds: Option<bool>,
    /// By device and inode, a hash of the name it was made as.
    made: HashMap<(i128, u64), u64>,
}

impl Names {
    /// Refuses a file that would replace another one of the tree.
    pub(crate) fn before_file(
        &mut self,
        dir: &Dir,
        name: &[u8],
        path: &[u8],
    ) -> Result<(), TreeError> {
        if self.folds == Some(false) {
            return Ok(());
        }
        match stat(dir, name) {
            Ok(Some(there)) => {
                self.check(&there, path)?;
                // It is about to be replaced, and its inode is anybody's then.
                self.made.remove(&id(&there));
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(e) => Err(failed("inspect", path)(e)),
        }
    }

    /// Takes note of a file that has its name now.
    pub(crate) fn after_file(
        &mut self,
        dir: &Dir,
        name: &[u8],
        path: &[u8],
    ) -> Result<(), TreeError> {
        if self.folds == Some(false) {
            return Ok(());
        }
        match stat(dir, name) {
            Ok(Some(made)) => self.note(dir, name, path, &made),
            // Somebody else was quick.
            Ok(None) => Ok(()),
            Err(e) => Err(failed("inspect", path)(e)),
        }
    }

    /// Refuses a directory that is another one of the tree, else takes note of it.
    pub(crate) fn directory(
        &mut self,
        parent: &Dir,
        name: &[u8],
        path: &[u8],
        dir: impl AsFd,
    ) -> Result<(), TreeError> {
        if self.folds == Some(false) {
            return Ok(());
        }
        let there = fstat(dir).map_err(failed("inspect", path))?;
        self.check(&there, path)?;
        self.note(parent, name, path, &there)
    }

    fn check(&self, there: &Stat, path: &[u8]) -> Result<(), TreeError> {
        match self.made.get(&id(there)) {
            Some(other) if *other != hash(path) => Err(TreeError::SameName { path: text(path) }),
            _ => Ok(()),
        }
    }

    fn note(&mut self, dir: &Dir, name: &[u8], path: &[u8], made: &Stat) -> Result<(), TreeError> {
        if self.folds.is_none()
            && let Some(swapped) = swap_case(name)
        {
            let other = stat(dir, &swapped).map_err(failed("inspect", path))?;
            self.decide(other.is_some_and(|other| id(&other) == id(made)));
        }
        if self.made.len() >= MAX_NAMES {
            if self.folds == Some(true) {
                return Err(TreeError::TooLarge(
                    "it has too many files for a file system that takes different names for one",
                ));
            }
            // So many numbers, or names of a script without case: most likely nothing is wrong.
            self.decide(false);
        }
        if self.folds != Some(false) {
            self.made.insert(id(made), hash(path));
        }
        Ok(())
    }

    fn decide(&mut self, folds: bool) {
        self.folds = Some(folds);
        if !folds {
            self.made = HashMap::new();
        }
    }
}

fn stat(dir: &Dir, name: &[u8]) -> rustix::io::Result<Option<Stat>> {
    match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Of a type that has room for what every system counts devices in.
fn id(stat: &Stat) -> (i128, u64) {
    (i128::from(stat.st_dev), stat.st_ino)
}

fn hash(path: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    path.hash(&mut hasher);
    hasher.finish()
}

/// The name in the other case; none for one without ASCII's letters. What is the other case of more
/// letters than these, file systems don't agree about.
fn swap_case(name: &[u8]) -> Option<Vec<u8>> {
    let swapped: Vec<u8> = name
        .iter()
        .map(|b| {
            if b.is_ascii_lowercase() {
                b.to_ascii_uppercase()
            } else {
                b.to_ascii_lowercase()
            }
        })
        .collect();
    (swapped != name).then_some(swapped)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// Hard links are what such a file system has for both spellings.
    #[test]
    fn a_name_without_case_is_remembered_until_it_is_known() {
        let place = tempfile::tempdir().unwrap();
        let dir = Dir::open(place.path()).unwrap();
        let mut names = Names::default();
        let (one, other) = ("가", "\u{1100}\u{1161}");
        fs::write(place.path().join(one), one).unwrap();
        fs::hard_link(place.path().join(one), place.path().join(other)).unwrap();
        names
            .after_file(&dir, one.as_bytes(), one.as_bytes())
            .unwrap();
        let e = names
            .before_file(&dir, other.as_bytes(), other.as_bytes())
            .unwrap_err();
        assert!(matches!(e, TreeError::SameName { .. }), "{e}");
    }

    #[test]
    fn what_is_replaced_is_forgotten() {
        let place = tempfile::tempdir().unwrap();
        let dir = Dir::open(place.path()).unwrap();
        let mut names = Names::default();
        fs::write(place.path().join("1"), "").unwrap();
        names.after_file(&dir, b"1", b"1").unwrap();
        names.before_file(&dir, b"1", b"1").unwrap();
        assert!(names.made.is_empty());
    }

    #[test]
    fn where_case_counts_nothing_is_remembered() {
        let place = tempfile::tempdir().unwrap();
        let dir = Dir::open(place.path()).unwrap();
        let mut names = Names::default();
        for name in ["1", "2", "Makefile", "makefile"] {
            let bytes = name.as_bytes();
            names.before_file(&dir, bytes, bytes).unwrap();
            fs::write(place.path().join(name), name).unwrap();
            names.after_file(&dir, bytes, bytes).unwrap();
        }
        assert_eq!(names.folds, Some(false));
        assert!(names.made.is_empty());
    }

    /// A hard link of the other case is what such a file system has for every name.
    #[test]
    fn where_it_does_not_the_second_name_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let dir = Dir::open(place.path()).unwrap();
        let mut names = Names::default();
        let make = |one: &str, other: &str| {
            fs::write(place.path().join(one), one).unwrap();
            fs::hard_link(place.path().join(one), place.path().join(other)).unwrap();
        };
        make("Makefile", "mAKEFILE");
        names.after_file(&dir, b"Makefile", b"Makefile").unwrap();
        assert_eq!(names.folds, Some(true));
        // Listed twice, the later one counts.
        names.before_file(&dir, b"Makefile", b"Makefile").unwrap();
        names.after_file(&dir, b"Makefile", b"Makefile").unwrap();
        let e = names
            .before_file(&dir, b"mAKEFILE", b"mAKEFILE")
            .unwrap_err();
        assert!(matches!(e, TreeError::SameName { .. }), "{e}");
        // What was there before may be replaced.
        make("old", "OLD");
        names.before_file(&dir, b"OLD", b"OLD").unwrap();

        fs::create_dir(place.path().join("src")).unwrap();
        let src = dir.child(b"src").unwrap();
        names.directory(&dir, b"src", b"src", &src).unwrap();
        names.directory(&dir, b"src", b"src", &src).unwrap();
        let e = names.directory(&dir, b"SRC", b"SRC", &src).unwrap_err();
        assert!(e.to_string().contains("SRC"), "{e}");
    }
}
