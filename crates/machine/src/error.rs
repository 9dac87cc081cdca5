//! What can go wrong between slicer and a hypervisor.

use std::io;
use std::path::PathBuf;

/// An error of a backend. Each variant names the file, the program or the VM it is about.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// This backend, or this host, can't do it. The text says why and what to do instead.
    #[error("{what} is not supported by {backend}: {why}")]
    Unsupported {
        /// What was asked for.
        what: &'static str,
        /// The backend's name.
        backend: &'static str,
        /// Why, and what to do instead.
        why: String,
    },
    /// A program the backend needs is missing.
    #[error("{program} not found: {hint}")]
    ProgramMissing {
        /// The program.
        program: String,
        /// How to get it.
        hint: &'static str,
    },
    /// A file or process operation failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was attempted, such as `open`.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The VM did not come up.
    #[error("{vm} did not start: {why}")]
    Launch {
        /// The VM.
        vm: String,
        /// What its hypervisor said.
        why: String,
    },
    /// A saved state is not of this machine, or not whole.
    #[error("the saved state of {vm} can't be taken up: {why}")]
    Incompatible {
        /// The VM.
        vm: String,
        /// What is different.
        why: String,
    },
    /// The hypervisor refused or garbled a command.
    #[error("{vm}: hypervisor command {command} failed: {why}")]
    Command {
        /// The VM.
        vm: String,
        /// The command.
        command: &'static str,
        /// What came back.
        why: String,
    },
    /// The VM is gone.
    #[error("{vm} is not running")]
    Gone {
        /// The VM.
        vm: String,
    },
    /// The channel to the guest's agent broke, or was never there.
    #[error("no channel to the agent of {vm}: {why}")]
    Channel {
        /// The VM.
        vm: String,
        /// Why.
        why: String,
    },
}
