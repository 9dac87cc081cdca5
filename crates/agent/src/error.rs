//! What can go wrong in the agent, besides what an exec's own frames report.

use std::io;
use std::path::{Path, PathBuf};

/// An operation of the agent that failed, and on what.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    /// A system call on a path or a device.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was attempted, such as `mount`.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// No disk has the serial the host gives to the root disk.
    #[error(
        "no disk with serial {serial:?} after {seconds} s: is it attached as virtio-blk, and are \
         its modules in the initramfs?"
    )]
    NoDisk {
        /// The serial.
        serial: &'static str,
        /// How long was waited.
        seconds: u64,
    },
    /// No network interface has this hardware address.
    #[error("no network interface with address {mac} after {seconds} s")]
    NoInterface {
        /// The hardware address.
        mac: String,
        /// How long was waited.
        seconds: u64,
    },
    /// A line of the module list that is neither a section nor a name.
    #[error("line {line} of the module list is not understood: {text:?}")]
    ModuleList {
        /// Counted from 1.
        line: usize,
        /// The line.
        text: String,
    },
    /// The superblock of a root disk that isn't ext4.
    #[error("{} is not an ext4 file system", .0.display())]
    NotExt4(PathBuf),
    /// Programs for x86-64 won't run.
    #[error("no Rosetta: {0}")]
    Rosetta(String),
    /// The guest channel failed.
    #[error("guest channel on {}: {source}", path.display())]
    Channel {
        /// The port or socket.
        path: PathBuf,
        /// Why.
        source: slicer_channel::ChannelError,
    },
}

/// Names the operation and the path of a system call's error.
pub(crate) fn io_error<E: Into<io::Error>>(
    action: &'static str,
    path: impl AsRef<Path>,
) -> impl FnOnce(E) -> AgentError {
    move |source| AgentError::Io {
        action,
        path: path.as_ref().to_owned(),
        source: source.into(),
    }
}
