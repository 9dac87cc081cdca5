//! Files that appear under their name complete or not at all.

use crate::dir::{Dir, Owner, bits, set_mtime, temporary_name};
use crate::error::{TreeError, failed};
use rustix::fs::{Mode, OFlags, Timespec};
use std::fs::File;
use std::io::Write;

/// A file on its way to a name in a directory. Dropped before [`NewFile::place`], it is gone.
#[derive(Debug)]
pub struct NewFile<D: std::borrow::Borrow<Dir> = Dir> {
    dir: D,
    file: File,
    temporary: Vec<u8>,
    name: Vec<u8>,
    placed: bool,
}

impl<D: std::borrow::Borrow<Dir>> NewFile<D> {
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
        })
    }

    /// Adds bytes at its end.
    ///
    /// # Errors
    /// As write(2).
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), TreeError> {
        self.file
            .write_all(bytes)
            .map_err(failed("write", &self.name))
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

impl<D: std::borrow::Borrow<Dir>> Drop for NewFile<D> {
    fn drop(&mut self) {
        if !self.placed {
            // Whoever removed it before did what was to be done.
            let _ = self.dir.borrow().remove_file(&self.temporary);
        }
    }
}
