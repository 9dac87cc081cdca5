//! File trees to and from tar, on both sides of a copy.
//!
//! The agent extracts what API users send and the client extracts what a guest sends. Neither
//! trusts the other, so there is one extraction, and it can't leave its root: it works with
//! descriptors of directories, follows no symlink, makes nothing but files and directories, and
//! holds a bounded amount of memory. Every file is written under another name and renamed.
//!
//! Both directions are plain state machines. [`Extractor`] is fed bytes, [`Packer`] gives bytes
//! out; whoever moves the bytes decides on threads, see [`Worker`] and [`Intake`].
#![forbid(unsafe_code)]

mod archive;
mod buffer;
mod dir;
mod error;
mod extract;
mod file;
mod header;
mod intake;
mod names;
mod pack;
mod walk;
mod worker;

pub use buffer::{Buffer, Buffers};
pub use dir::{Dir, Owner};
pub use error::TreeError;
pub use extract::{ExtractOptions, Extracted, Extractor};
pub use file::NewFile;
pub use intake::Intake;
pub use pack::{Packed, Packer};
pub use walk::{Filter, Measured, measure};
pub use worker::{Abandoned, Step, Worker};

/// The mode a file gets of a source's: its permission bits; what some may execute, all may.
#[must_use]
pub fn file_mode(mode: u32) -> u32 {
    let mode = mode & 0o777;
    if mode & 0o111 == 0 {
        mode
    } else {
        mode | 0o111
    }
}
